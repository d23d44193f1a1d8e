"""A site's contribution where a unit of many rows is protected: a person's visits, a vehicle's trips.

In this order: each unit is sampled whole by its own coin; it trains `local_steps` steps on its own rows; its
update (local - global) is clipped to L2 norm `clip`, multiplied by K / clip and rounded, each unit by itself;
the integers are added. A unit that is taken away changes the sum by its own rounded vector.

**The bit.** With adaptive clipping a unit's vector has one more coordinate, b units if its norm is at most
the clip and -b otherwise: the centred bit +-1/2 with a weight of 2 b, b = ceil(K / 8). Without the unit the
coordinate changes by b, whichever sign it had, so with S the sensitivity of the update (`IntegerGrid.
sensitivity`) that of the joint vector is

    sqrt(S^2 + b^2) <= 1.008 S,

and one noise of the joint vector's size covers both (`joint_sensitivity`, which the accountant takes). With a
noise multiplier z the sum of bits has noise of standard deviation z sqrt(S^2 + b^2) / (2 b), about 4 z units.

**Bounds.** clip' = clip (1 - (d + 16) 2**-52) exceeds the error of a norm of d terms, of the division and of
the product (see `closed_form`), so an exact clipped update is within the clip; the factor K / clip and its
product add 2**-52 at most: `UNIT_FLOAT_BOUND`. An update that is not finite counts as zero with norm above
the clip, and stops nobody. Only units whose steps have as many rows are trained together: what one computes
depends, in no bit, on which others were sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.models import Model
from cloister.learning.private.base import check_clip
from cloister.learning.private.poisson import poisson_rows
from cloister.learning.sections import TrainingSection
from cloister.learning.training import ClientRows, train_together
from cloister.privacy.mechanisms import IntegerGrid

__all__ = [
    "UNIT_FLOAT_BOUND",
    "bit_units",
    "joint_sensitivity",
    "split_bits",
    "sum_of_updates",
    "unit_sum",
]

UNIT_FLOAT_BOUND = 2.0**-50
"""Float error of one unit's scaled update, relative to the clip."""

_BIT_SHARE = 8  # b = K / 8: the update pays 0.8 % for the bit
_TOGETHER_BYTES = 4 << 20


def bit_units(grid: IntegerGrid) -> int:
    """Return b, what the centred bit adds to its coordinate, in units: ceil(K / 8)."""
    return -(-grid.clip_units // _BIT_SHARE)


def joint_sensitivity(grid: IntegerGrid, coordinates: int, *, norm_bit: bool) -> float:
    """Return the L2 sensitivity of `unit_sum` in units: sqrt(S^2 + b^2) with the bit, S without.

    Args:
        grid: the integers.
        coordinates: parameters of the model, d, without the bit.
        norm_bit: whether the vector has the bit.

    Raises:
        PlanError: the grid is too coarse for d coordinates.
    """
    update = grid.sensitivity(coordinates, UNIT_FLOAT_BOUND)
    return float(np.hypot(update, bit_units(grid))) * (1.0 + 2.0**-50) if norm_bit else update


def split_bits(integers: NDArray[np.int64], grid: IntegerGrid) -> tuple[NDArray[np.int64], float]:
    """Return (the update's integers int64[d], the noisy sum of bits of +-1/2) of a sum with the bit."""
    return integers[:-1], float(integers[-1]) / (2.0 * bit_units(grid))


def unit_sum(
    model: Model,
    params: Array,
    rows: ClientRows,
    *,
    training: TrainingSection,
    clip: float,
    grid: IntegerGrid,
    rate: float,
    random: StreamRandom,
    norm_bit: bool,
) -> NDArray[np.int64]:
    """Return one step's sum of a site's units in units of the grid, without noise.

    Args:
        model: what is trained.
        params: float64[d], the global model.
        rows: one client for each unit of the site.
        training: `[training]` of the plan: local steps, batch, optimiser, learning rate, l2.
        clip: L2 norm a unit's update may have.
        grid: the integers.
        rate: each unit's probability to enter the step.
        random: the source of samples and of the order of rows; `StreamRandom.system()` but in tests.
        norm_bit: whether to append the centred bit.

    Returns:
        int64[d], or int64[d + 1] with the bit.

    Raises:
        InputError: a shape or a number does not fit.
    """
    if params.shape != (model.size,):
        raise InputError(f"the model has {model.size} parameters and {params.size} were given")
    chosen = poisson_rows(rows.clients, rate, random)
    updates = _updates(model, params, rows, chosen, training, random)
    return sum_of_updates(updates, model.size, clip=clip, grid=grid, norm_bit=norm_bit)


def sum_of_updates(
    updates: Iterable[Array], size: int, *, clip: float, grid: IntegerGrid, norm_bit: bool
) -> NDArray[np.int64]:
    """Return the sum of units' updates, each clipped and rounded by itself, in units of the grid.

    Args:
        updates: float64[c, size], some units' after others; their memory is used. One that is not finite
            counts as zero.
        size: coordinates of an update.
        clip: L2 norm a unit's update may have.
        grid: the integers.
        norm_bit: whether to append the centred bit.

    Returns:
        int64[size], or int64[size + 1] with the bit.

    Raises:
        InputError: the clip is out of range.
    """
    ceiling = check_clip(clip) * (1.0 - (size + 16) * 2.0**-52)
    total = np.zeros(size + norm_bit, dtype=np.int64)
    for some in updates:
        norms = _norms(some)
        some *= (ceiling / np.maximum(norms, ceiling))[:, None]
        total[:size] += grid.round(some.reshape(-1), clip).reshape(some.shape).sum(axis=0)
        if norm_bit:
            within = int(np.count_nonzero(norms <= clip))
            total[-1] += bit_units(grid) * (2 * within - len(norms))
    return total


def _updates(
    model: Model,
    params: Array,
    rows: ClientRows,
    chosen: NDArray[np.int64],
    training: TrainingSection,
    random: StreamRandom,
) -> Iterator[Array]:
    """Yield the updates float64[c, d] of some units after others; one that diverged is not finite.

    Together are units whose steps have as many rows, so that no unit's shapes depend on who else was sampled.
    """
    widths = np.minimum(rows.counts[chosen], training.batch)
    for width in np.unique(widths).tolist():
        alike = chosen[widths == width]
        unit_bytes = 8 * (2 * model.size + width * (model.inputs + 2 * sum(model.widths[1:])))
        together = max(1, _TOGETHER_BYTES // unit_bytes)
        for at in range(0, len(alike), together):
            some = rows.select(alike[at : at + together])
            local = np.array(np.broadcast_to(params, (some.clients, model.size)), order="C")
            with np.errstate(over="ignore", invalid="ignore"):
                # not `train`, which raises where one diverges: that would show the unit, and stop the others
                train_together(model, local, some, training, random)
                local -= params
            yield local


def _norms(updates: Array) -> Array:
    """Return each update's norm, float64[c]; one that is not finite becomes zero, its norm infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: Array = np.sqrt(np.vecdot(updates, updates))
    bad = ~np.isfinite(norms)
    if bad.any():
        updates[bad], norms[bad] = 0.0, np.inf
    return norms
