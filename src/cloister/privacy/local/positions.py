"""What many noisy positions say together, as far as that can be said honestly.

- The mean position, from positions that were not truncated: noise has mean zero. Rounding to the lattice
  moves a true mean by at most half a step along each coordinate; the interval is widened by that.
- How many are at each lattice point, on a small lattice (a few hundred cells) from truncated positions: the
  chances of every cell given every other are known exactly, and their matrix is inverted.

Not offered: the mean of truncated positions (it is pulled to the middle by an unknown amount), counts in
cells larger than the lattice's (they depend on where in the cell people are), and anything smoothed or
fitted, whose error nobody can state. Cells much smaller than 1 / epsilon have error bars larger than the
number of people; take larger ones.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.local.estimates import Estimate, normal_factor, scored
from cloister.privacy.local.planar import PlanarLaplace
from cloister.privacy.local.planarnoise import coordinate_variance, masses

__all__ = ["MAX_CELLS", "estimate_cells", "estimate_position", "transition"]

MAX_CELLS: Final = 1024
_LEAST_RATE: Final = 0.05


def estimate_position(
    planar: PlanarLaplace, released: NDArray[Any], *, confidence: float = 0.95
) -> tuple[Estimate, Estimate]:
    """Return the mean of both coordinates of the true positions, in the region's own unit.

    Args:
        planar: how they were released, not truncated.
        released: float64[n, 2].
        confidence: of each of the two intervals.

    Raises:
        InputError: positions were truncated, one is no point of the lattice, or there is none.
    """
    if planar.truncated:
        raise InputError(
            "truncated positions have no unbiased mean", fix="Release them without truncation, or count cells"
        )
    z = normal_factor(confidence)
    points = planar.read(released)
    if not len(points):
        raise InputError("there is no released position", fix="Give at least one")
    centre = points.mean(axis=0) * planar.step
    deviation = math.sqrt(coordinate_variance(planar.rate) / len(points)) * planar.step
    half = z * deviation + planar.step / 2.0
    values, lows, highs = (
        planar.region.from_plane((centre + shift)[None, :])[0].tolist() for shift in (0.0, -half, half)
    )
    first, second = (
        Estimate(value, low, high, confidence, deviation * (high - low) / (2 * half))
        for value, low, high in zip(values, lows, highs, strict=True)
    )
    return first, second


def estimate_cells(
    planar: PlanarLaplace, released: NDArray[Any], *, confidence: float = 0.95
) -> tuple[tuple[Estimate, ...], ...]:
    """Return how many true positions are nearest to each lattice point; `[i][j]` is point i, j.

    Args:
        planar: how they were released, truncated; at most 1,024 lattice points.
        released: float64[n, 2].
        confidence: of each interval.

    Raises:
        InputError: positions were not truncated, the lattice is too fine, one is no point of it, or there is
            none.
    """
    if not planar.truncated:
        raise InputError("cells are counted from truncated positions", fix="Release them truncated")
    chances = transition(planar)
    points = planar.read(released)
    if not len(points):
        raise InputError("there is no released position", fix="Give at least one")
    first, second = (side + 1 for side in planar.sides)
    inverse = np.linalg.inv(chances)
    estimates = scored(inverse[points[:, 0] * second + points[:, 1]], confidence=confidence)
    return tuple(estimates[i * second : (i + 1) * second] for i in range(first))


def transition(planar: PlanarLaplace) -> NDArray[np.float64]:
    """Return float64[m, m]: the chance of each released lattice point (column) given the true one (row).

    Points are numbered along the second coordinate first.

    Raises:
        InputError: there are more than 1,024 points, or the rate is below 0.05.
    """
    first, second = (side + 1 for side in planar.sides)
    if first * second > MAX_CELLS or planar.rate < _LEAST_RATE:
        raise InputError(
            f"cells are counted on a lattice of at most {MAX_CELLS} points, with epsilon times the step "
            f"{_LEAST_RATE} or more",
            fix="Choose a longer step",
        )
    reach = max(first, second, math.ceil(45.0 / planar.rate))
    sums = np.zeros((2 * reach + 2, 2 * reach + 2))
    sums[1:, 1:] = masses(planar.rate, reach).cumsum(axis=0).cumsum(axis=1)
    low_i, high_i = _ranges(
        first, reach
    )  # offsets that end at each cell, from each true cell; [true, released]
    low_j, high_j = _ranges(second, reach)

    def corner(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = sums[i[:, None, :, None], j[None, :, None, :]]
        return found

    chances = corner(high_i, high_j) - corner(low_i, high_j) - corner(high_i, low_j) + corner(low_i, low_j)
    return chances.reshape(first * second, first * second)


def _ranges(count: int, reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return int64[count, count] twice: first offset, and one past the last, that take cell r to cell c."""
    offset = np.arange(count)[None, :] - np.arange(count)[:, None] + reach
    low, high = offset.copy(), offset + 1
    low[:, 0] = 0  # whatever ends beyond the border is moved to it
    high[:, -1] = 2 * reach + 1
    return low, high
