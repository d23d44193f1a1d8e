"""Private statistics of one table: counts, sums, means, variances, quantiles, histograms, tables.

In order of use:

1. `Declarations` say what is public of the table: columns with bounds and categories, row count, unit;
2. `Query` asks one question, `load_queries` reads many from a TOML file;
3. `Release.plan` checks and calibrates, and tells the events before a row is read; after these are charged,
   `measure` and `publish` give an `Answer` to each query, with error bars.

`FederatedRelease` is the same over several sites, whose sums are added under masks.
"""

from cloister.privacy.statistics.answer import Answer, Cell
from cloister.privacy.statistics.axes import Key
from cloister.privacy.statistics.declared import Declarations, Declared
from cloister.privacy.statistics.federated import FederatedRelease, Federation, one_budget
from cloister.privacy.statistics.noise import GaussianNoise, LaplaceNoise
from cloister.privacy.statistics.query import STATISTICS, Query, QueryFile, load_queries
from cloister.privacy.statistics.release import Measured, Release
from cloister.privacy.statistics.rows import Rows

__all__ = [
    "STATISTICS",
    "Answer",
    "Cell",
    "Declarations",
    "Declared",
    "FederatedRelease",
    "Federation",
    "GaussianNoise",
    "Key",
    "LaplaceNoise",
    "Measured",
    "Query",
    "QueryFile",
    "Release",
    "Rows",
    "load_queries",
    "one_budget",
]
