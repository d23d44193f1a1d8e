"""A unit that may occur at several sites, each of which samples on its own: sums and integrals of its pair.

The pair is P = sum over j of B_j N(j s, 1) against Q = N(0, 1), with B = Binomial(sites, rate) and s = 1 /
noise. The ratio L(x) = sum of B_j exp(j s x - j^2 s^2 / 2) grows with x and log L is convex; everything here
rests on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cloister.privacy.accounting.pairs import MixedPair

__all__ = ["MOST_TERMS", "mixed_losses", "mixed_moment", "mixed_profiles"]

MOST_TERMS = 4096
"""Terms of a moment's sum that are worth adding up one by one."""

_STEP = 1e-3  # of the integral, in standard deviations
_TAIL = 50.0  # nats: what lies beyond this is bounded, not computed
_BLOCK = 8192  # losses at a time, so that memory stays flat


def mixed_moment(pair: MixedPair, order: int) -> float:
    """Return log of the larger of E_Q[L^order] and E_Q[L^(1 - order)], the second as an upper bound.

    order * sites is at most `MOST_TERMS`.
    """
    return max(_forward(pair, order), _reverse(pair, order))


def mixed_profiles(pair: MixedPair) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return the hockey-stick divergences of P from Q and of Q from P, as functions of float64[n] losses."""
    import numpy as np
    from scipy.special import log_ndtr

    weights, shifts = _atoms(pair)

    def log_mixed(points: Any, side: int) -> Any:  # log P[below] or P[above] the points
        return np.logaddexp.reduce(weights + log_ndtr(side * np.subtract.outer(points, shifts)), axis=1)

    def in_blocks(profile: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda losses: np.concatenate(
            [profile(losses[first : first + _BLOCK]) for first in range(0, len(losses), _BLOCK)]
        )

    @in_blocks
    def forward(losses: Any) -> Any:
        # P has more than e^loss of Q above the point where L = e^loss; everywhere, if even B_0 is more
        everywhere = losses <= weights[0]
        point = _where(weights, shifts, np.where(everywhere, 0.0, losses))
        above = np.exp(log_mixed(point, -1)) - np.exp(losses + log_ndtr(-point))
        return np.where(everywhere, -np.expm1(losses), above)

    @in_blocks
    def reverse(losses: Any) -> Any:
        # Q has more than e^loss of P below the point where L = e^-loss; nowhere, if even B_0 is more
        nowhere = -losses <= weights[0]
        point = _where(weights, shifts, np.where(nowhere, 0.0, -losses))
        below = np.exp(log_ndtr(point)) - np.exp(losses + log_mixed(point, 1))
        return np.where(nowhere, 0.0, below)

    return forward, reverse


def mixed_losses(pair: MixedPair, tail: float) -> tuple[float, float, float]:
    """Return log L at `tail` standard deviations below 0, above 0, and above the farthest shift."""
    import numpy as np

    weights, shifts = _atoms(pair)
    points = np.array([-tail, tail, shifts[-1] + tail])
    low, middle, high = np.logaddexp.reduce(weights + np.outer(points, shifts) - shifts**2 / 2, axis=1)
    return float(low), float(middle), float(high)


def _where(weights: Any, shifts: Any, losses: Any) -> Any:
    """Return where log L is `losses`, which all lie above log B_0: Newton's steps from a table's guess."""
    import numpy as np

    # L is at least each of its terms: where the first of them reaches a loss, L has passed it
    right = float(np.min((losses.max() - weights[1:] + shifts[1:] ** 2 / 2) / shifts[1:]))
    left = min(-40.0, right - 1.0)  # where neither side has mass, any point does
    table = np.linspace(left, right, 8_000)
    heights = np.logaddexp.reduce(weights + np.outer(table, shifts) - shifts**2 / 2, axis=1)
    point = np.interp(losses, heights, table)
    for _ in range(50):
        terms = weights + np.outer(point, shifts) - shifts**2 / 2
        height = np.logaddexp.reduce(terms, axis=1)
        excess = height - losses
        if np.all(np.abs(excess) < 1e-12):
            break
        slope = np.maximum(np.exp(terms - height[:, None]) @ shifts, 1e-300)
        point = np.clip(point - np.clip(excess / slope, -1.0, 1.0), left, right)
    return point


def _forward(pair: MixedPair, order: int) -> float:
    """The exact sum: L^order is a polynomial's power.

    It is the sum over j_1 .. j_order of prod B_j exp(s^2 ((sum j)^2 - sum j^2) / 2): the order-th power of a
    polynomial with coefficients B_j exp(-j^2 s^2 / 2), whose coefficient m is then times exp(m^2 s^2 / 2).
    """
    import numpy as np

    weights, shifts = _atoms(pair)
    weights = weights - shifts**2 / 2
    power = weights
    for _ in range(order - 1):
        table = np.full((len(weights), len(power) + pair.sites), -np.inf)
        for j, weight in enumerate(weights):
            table[j, j : j + len(power)] = weight + power
        power = np.logaddexp.reduce(table, axis=0)
    total = np.arange(len(power)) / pair.noise
    return float(np.logaddexp.reduce(power + total**2 / 2))


def _reverse(pair: MixedPair, order: int) -> float:
    """An upper bound: (1 - order) log L is concave, so it lies below its tangents, one in each cell.

    A Gaussian density times an exponential integrates in closed form:

        int over [a, b] of phi(x) exp(h + u (x - m)) dx = exp(h - u m + u^2 / 2) (Phi(b - u) - Phi(a - u))

    Left of all cells L >= B_0; right of them L^(1 - order) is below its last value.
    """
    import numpy as np
    from scipy.special import log_ndtr

    weights, shifts = _atoms(pair)
    far = math.sqrt(2 * (_TAIL + (order - 1) * abs(weights[0])))
    edges = np.linspace(-far, far, math.ceil(2 * far / _STEP) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    terms = weights + np.outer(middles, shifts) - shifts**2 / 2
    log_ratio = np.logaddexp.reduce(terms, axis=1)
    slope = (1 - order) * (np.exp(terms - log_ratio[:, None]) @ shifts)
    height = (1 - order) * log_ratio - slope * middles + slope**2 / 2
    low, high = edges[:-1] - slope, edges[1:] - slope
    # differences of Phi are taken on the side where both values are small
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    lower, upper = log_ndtr(low), log_ndtr(high)
    inside = height + upper + np.log(-np.expm1(lower - upper))
    outside = (1 - order) * np.array([weights[0], log_ratio[-1]]) + log_ndtr(-far)
    return float(np.logaddexp.reduce(np.concatenate([inside, outside])))


def _atoms(pair: MixedPair) -> tuple[Any, Any]:
    """Return log B_j and j s, for j from 0 to the number of sites."""
    import numpy as np

    out, into = math.log1p(-pair.rate), math.log(pair.rate)
    sites = pair.sites
    weights = [math.log(math.comb(sites, j)) + j * into + (sites - j) * out for j in range(sites + 1)]
    return np.array(weights), np.arange(sites + 1) / pair.noise
