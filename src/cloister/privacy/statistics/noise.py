"""Noise that was added to integers, as its distribution: how far it may have moved an answer.

What is needed for error bars is one number: how large a weighted sum of independent draws is at most, but
for a stated probability on that side.

- Gaussian: a weighted sum is Gaussian, with the weights' squares adding up.
- Laplace, one draw: the geometric tail, exactly.
- Laplace, several draws: P(X > t) = 1/2 - (1/pi) integral of sin(u t) phi(u) / u over u > 0 (Gil-Pelaez 1951,
  for a symmetric X), where phi is the product of 1 / (1 + (w s u)**2), summed by the trapezoid rule. Its
  error is the tail beyond the period it implies, of which there is nothing left.

Draws are integers and these formulas are of real numbers. A discrete Laplace is in absolute value
stochastically smaller than a continuous one that is rounded, and both are symmetric and unimodal, which sums
keep (Birnbaum 1948): so half a unit for each draw, times its weight, is added. The same is added for a
Gaussian, where the two agree to far below a unit as soon as sigma is a few units.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from cloister.errors import InputError

__all__ = ["GaussianNoise", "LaplaceNoise", "Noise", "Weights"]

Weights = tuple[tuple[float, int], ...]
"""Pairs (weight, how many independent draws have it); signs do not matter."""

_STEP: Final = 0.04  # of u, in units of 1 / (largest weight * scale): a period of 157 scales
_TOLERANCE: Final = 2e-4  # relative, upwards


@dataclass(frozen=True)
class LaplaceNoise:
    """P(x) ~ exp(-|x| / scale) on the integers, for each coordinate.

    Args:
        scale: in grid units.
    """

    scale: float

    def bound(self, weights: Weights, beta: float) -> float:
        """Return t such that a weighted sum of independent draws exceeds t with probability at most beta.

        Args:
            weights: weight and number of draws; at least one.
            beta: above 0, below 1/2.
        """
        _check(beta)
        used = tuple(sorted(((abs(w), n) for w, n in weights if w and n), reverse=True))
        if not used:
            return 0.0
        if len(used) == 1 and used[0][1] == 1:
            return used[0][0] * self._one(beta)
        largest = used[0][0]
        relative = tuple((round(w / largest, 6), n) for w, n in used)
        slack = 0.5 * sum(w * n for w, n in used)
        return largest * self.scale * _several(relative, beta) * (1 + 1e-5) + slack

    def _one(self, beta: float) -> float:
        """Return the least whole t >= 0 with P(Z > t) = q**(t + 1) / (1 + q) <= beta, q = exp(-1 / scale)."""
        q = math.exp(-1.0 / self.scale)
        return float(max(0, math.ceil(self.scale * -math.log(beta * (1 + q)) - 1 - 1e-9)))


@dataclass(frozen=True)
class GaussianNoise:
    """P(x) ~ exp(-x**2 / (2 sigma**2)) on the integers, for each coordinate; or a sum of such.

    Args:
        sigma: in grid units.
    """

    sigma: float

    def bound(self, weights: Weights, beta: float) -> float:
        """Return t such that a weighted sum of independent draws exceeds t with probability at most beta."""
        _check(beta)
        width = math.sqrt(sum(w * w * n for w, n in weights))
        slack = 0.5 * sum(abs(w) * n for w, n in weights)
        return self.sigma * width * NormalDist().inv_cdf(1.0 - beta) + slack


Noise = LaplaceNoise | GaussianNoise


def _check(beta: float) -> None:
    if not 0.0 < beta < 0.5:
        raise InputError("an error bar fails with a probability between 0 and 1/2", fix="Take 0.025")


@functools.lru_cache(maxsize=4096)
def _several(weights: Weights, beta: float) -> float:
    """Return the bound for Laplace draws of scale 1 whose largest weight is 1, at least two of them."""
    draws = sum(n for w, n in weights if w > 1e-3)
    end = 120.0 if draws <= 2 else 40.0 if draws <= 4 else 20.0  # phi has fallen to nothing beyond
    u = np.arange(0.5 * _STEP, end, _STEP)  # midpoints: the integrand is even, so they do as well as nodes
    decay = np.zeros_like(u)
    for weight, count in weights:
        decay += count * np.log1p(np.square(weight * u))
    factor = np.exp(-decay) / u * (_STEP / math.pi)

    def beyond(t: float) -> float:
        return 0.5 - float(np.dot(np.sin(u * t), factor))

    deviation = math.sqrt(2.0 * sum(w * w * n for w, n in weights))
    low, high = 0.0, deviation
    while beyond(high) > beta:
        low, high = high, high * 1.5
    while high - low > _TOLERANCE * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if beyond(middle) > beta else (low, middle)
    return high
