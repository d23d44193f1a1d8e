"""How far the integers that run are from the real Gaussian that is accounted for.

A sum of h shares N_Z(0, v) is, coordinate by coordinate, within a factor e^theta of randomised rounding of a
real Gaussian of variance h v - s^2, s^2 = 4 (docs/proofs/integer-gaussian.md). Randomised rounding knows
nothing about rows, so the real Gaussian's cost is the rounded one's; what is left is a total variation
distance

    coordinates * runs * (theta(v, h) + h * distance of the sampler)

between all that the two mechanisms show, however each run depends on earlier ones. It is charged to delta,
multiplied by 1 + e^epsilon. For Laplace noise nothing is rounded and only the sampler's distance is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from cloister.privacy.accounting.events import Event
from cloister.privacy.accounting.mechanisms import IntegerGaussian, IntegerLaplace, MixedGaussian

__all__ = ["ROUNDING_VARIANCE", "real_sigma", "rounding_ratio", "total_distance"]

ROUNDING_VARIANCE = 4.0
"""s^2: what randomised rounding takes of an integer Gaussian's variance, in grid units squared."""


def real_sigma(variance: float) -> float:
    """Return the standard deviation of the real Gaussian whose rounding N_Z(0, `variance`) nearly is."""
    return math.sqrt(variance - ROUNDING_VARIANCE)


def rounding_ratio(share_variance: float, shares: int) -> float:
    """Return theta: both ratios of the two mass functions are at most e^theta at every integer.

    Args:
        share_variance: v of one share N_Z(0, v), in grid units squared.
        shares: h, how many are added.
    """
    # partial sums of j and 1 shares meet a Gaussian of variance v j / (j + 1) >= v / 2
    convolved = -math.log1p(-_ripple(share_variance / 2)) * (shares - 1)
    normalised = math.log1p(_ripple(share_variance)) * shares
    rounded = -math.log1p(-_ripple(ROUNDING_VARIANCE))
    return convolved + normalised + rounded


def total_distance(events: Iterable[Event]) -> float:
    """Return the total variation distance between what `events` show and what is accounted for, at most."""
    return math.fsum(event.count * _one_run(event) for event in events)


def _one_run(event: Event) -> float:
    mechanism = event.mechanism
    if isinstance(mechanism, IntegerLaplace):
        return mechanism.coordinates * mechanism.distance
    if isinstance(mechanism, IntegerGaussian | MixedGaussian):
        theta = rounding_ratio(mechanism.variance / mechanism.shares, mechanism.shares)
        return mechanism.coordinates * (theta + mechanism.shares * mechanism.distance)
    return 0.0


def _ripple(variance: float) -> float:
    """Return a bound on |sum over integers z of phi(z - x) - 1| for a Gaussian density phi, whatever x is.

    By Poisson summation it is 2 sum over k >= 1 of exp(-2 pi^2 k^2 variance), and k^2 >= 1 + 3 (k - 1).
    """
    first = math.exp(-2 * math.pi**2 * variance)
    return 2 * first / (1 - first**3)
