"""Privacy losses by direct summation: nothing here knows a theorem, only mass functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Mass = NDArray[np.float64]


def integer_gaussian(variance: float, reach: int) -> Mass:
    """N_Z(0, variance) on -reach .. reach."""
    x = np.arange(-reach, reach + 1)
    mass = np.exp(-(x**2) / (2 * variance))
    return mass / mass.sum()


def integer_laplace(scale: float, reach: int) -> Mass:
    mass = np.exp(-np.abs(np.arange(-reach, reach + 1)) / scale)
    return mass / mass.sum()


def shares_of(variance: float, shares: int, reach: int) -> Mass:
    """The sum of independent shares N_Z(0, variance / shares), by convolution."""
    one = integer_gaussian(variance / shares, reach)
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total


def moved(mass: Mass, by: int) -> tuple[Mass, Mass]:
    """The mass function moved by `by` points, and where it was, on common points."""
    return np.pad(mass, (by, 0)), np.pad(mass, (0, by))


def sampled(moved_mass: Mass, mass: Mass, rate: float) -> tuple[Mass, Mass]:
    """A unit that is in the sample with probability `rate`, against nothing."""
    return rate * moved_mass + (1 - rate) * mass, mass


def twice(p: Mass, q: Mass) -> tuple[Mass, Mass]:
    """Two runs."""
    return np.multiply.outer(p, p).ravel(), np.multiply.outer(q, q).ravel()


def hockey_stick(p: Mass, q: Mass, epsilon: float) -> float:
    """The larger of both directions at e^epsilon."""
    ratio = math.exp(epsilon)
    return max(float(np.maximum(p - ratio * q, 0).sum()), float(np.maximum(q - ratio * p, 0).sum()))


def log_moment(p: Mass, q: Mass, order: int) -> float:
    """log of the larger of sum p^order q^(1 - order) and its converse, over points where both have mass."""
    both = (p > 0) & (q > 0)
    p, q = np.log(p[both]), np.log(q[both])
    return max(float(np.logaddexp.reduce(order * a + (1 - order) * b)) for a, b in ((p, q), (q, p)))


def crossing(delta_at: Callable[[float], float], delta: float) -> float:
    """The epsilon where a falling delta_at meets delta, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high
