"""Noise on a single record, before anybody else sees it, with a budget for each person.

In order of use:

1. declare the domain: a `ValueGrid` for a bounded number, categories, or a `Region` (degrees) or `Rectangle`
   (metres);
2. choose a mechanism: `BoundedLaplace`, `BoundedGaussian`, `Response`, `PlanarLaplace`; its `cost` is what a
   row pays;
3. `PersonalBudget.create` once, then `open`; `declare` what each person may spend at most;
4. `release` charges, waits for the disk, and only then draws noise; `Predictions` does so around a model;
5. whoever receives the values calls `estimate_mean`, `estimate_counts`, `estimate_bars`, `estimate_position`
   or `estimate_cells`; `LocalRecord` and `summarise` do so for a file.

The relation is any value against any other, whoever looks: stronger than that of the other rooms, and paid
for with far more noise. Epsilons of one person add, whatever was released; epsilons for each metre add apart
from them.
"""

from cloister.privacy.local.bounded import BoundedGaussian, BoundedLaplace
from cloister.privacy.local.budget import DEFAULT_DELTA, PersonalBudget
from cloister.privacy.local.estimates import Estimate, estimate_bars, estimate_counts, estimate_mean
from cloister.privacy.local.mechanism import Charge, LocalMechanism
from cloister.privacy.local.planar import PlanarLaplace
from cloister.privacy.local.positions import estimate_cells, estimate_position
from cloister.privacy.local.projection import Rectangle, Region
from cloister.privacy.local.record import ColumnRecord, LocalRecord, Summary, read_record, summarise
from cloister.privacy.local.release import Predictions, release
from cloister.privacy.local.response import Response
from cloister.privacy.local.valuegrid import ValueGrid

__all__ = [
    "DEFAULT_DELTA",
    "BoundedGaussian",
    "BoundedLaplace",
    "Charge",
    "ColumnRecord",
    "Estimate",
    "LocalMechanism",
    "LocalRecord",
    "PersonalBudget",
    "PlanarLaplace",
    "Predictions",
    "Rectangle",
    "Region",
    "Response",
    "Summary",
    "ValueGrid",
    "estimate_bars",
    "estimate_cells",
    "estimate_counts",
    "estimate_mean",
    "estimate_position",
    "read_record",
    "release",
    "summarise",
]
