"""Private training in numpy: per-example clipping, Poisson sampling, integer sums, the server's step.

Order of use at a site in distributed mode: `RowSums` once, then each step `RowSums.integers` (or
`integer_sum`), the noise of `privacy.mechanisms`, the masks. At whoever takes the server's step: the sum's
values, `server_mean`, `Algorithm.step`. In local mode: `local_steps`. Where a unit has many rows: `unit_sum`,
with `joint_sensitivity` for the accountant and, if the clip adapts, `split_bits` and `AdaptiveClip.after`.
`simulate` and `central` run all of it in one process, over public data.
"""

from cloister.learning.private.adaptive import AdaptiveClip
from cloister.learning.private.base import CLIP_RANGE, Bounded, PrivateModel, PrivateSettings, check_clip
from cloister.learning.private.closed_form import NumpyPrivate
from cloister.learning.private.poisson import poisson_rows
from cloister.learning.private.simulation import central, simulate
from cloister.learning.private.steps import local_steps, server_mean
from cloister.learning.private.sums import RowSums, integer_sum
from cloister.learning.private.units import (
    UNIT_FLOAT_BOUND,
    bit_units,
    joint_sensitivity,
    split_bits,
    sum_of_updates,
    unit_sum,
)

__all__ = [
    "CLIP_RANGE",
    "UNIT_FLOAT_BOUND",
    "AdaptiveClip",
    "Bounded",
    "NumpyPrivate",
    "PrivateModel",
    "PrivateSettings",
    "RowSums",
    "bit_units",
    "central",
    "check_clip",
    "integer_sum",
    "joint_sensitivity",
    "local_steps",
    "poisson_rows",
    "server_mean",
    "simulate",
    "split_bits",
    "sum_of_updates",
    "unit_sum",
]
