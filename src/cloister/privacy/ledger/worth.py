"""What a rest of RDP would buy, for people: figures to plan with, never to admit by.

A rest r at order a is what one Gaussian release of noise multiplier s = sqrt(a / (2 r)) costs. Its epsilon at
a delta is exact (Balle and Wang 2018, Theorem 8); a query with Laplace noise and parameter e costs the RDP of
Mironov 2017, Proposition 6.
"""

from __future__ import annotations

import math

__all__ = ["gaussian_delta", "gaussian_worth", "laplace_rdp"]


def gaussian_worth(rdp: float, order: int, delta: float) -> tuple[float, float]:
    """Return noise multiplier and epsilon (at `delta`) of the Gaussian that costs `rdp` at `order`."""
    if rdp <= 0:
        return math.inf, 0.0
    sigma = math.sqrt(order / (2 * rdp))
    low, high = 0.0, 1.0
    while gaussian_delta(sigma, high) > delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(sigma, middle) > delta else (low, middle)
    return sigma, high


def gaussian_delta(sigma: float, epsilon: float) -> float:
    """Return the delta at `epsilon` of a Gaussian of noise multiplier `sigma`."""
    half = 1 / (2 * sigma)
    lower = _normal(-half - epsilon * sigma)
    return _normal(half - epsilon * sigma) - (math.exp(epsilon + math.log(lower)) if lower > 0 else 0.0)


def laplace_rdp(epsilon: float, order: int) -> float:
    """Return the RDP at `order` of a query with Laplace noise of parameter `epsilon`."""
    a = float(order)
    near, far = math.log(a / (2 * a - 1)) + (a - 1) * epsilon, math.log((a - 1) / (2 * a - 1)) - a * epsilon
    return (near + math.log1p(math.exp(far - near))) / (a - 1)


def _normal(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
