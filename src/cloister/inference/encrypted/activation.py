"""Activations as polynomials, and how wrong they are.

Under encryption there is addition and multiplication, and neither tanh nor a maximum. On [-B, B] tanh becomes
an odd polynomial of degree 31, interpolated at Chebyshev's nodes, and max(x, 0) = x / 2 + |x| / 2 the best
even one of degree 32, wrong by at most 0.0044 B. Both are written in Chebyshev's basis, whose members stay
within [-1, 1].

B is no guess: a schema bounds every feature, so a hidden unit's input is bounded by its weights. Rows within
the schema cannot leave [-B, B], and the largest difference on it, found on a grid, bounds the error of every
row there can be. Bounds are wide and errors are worst at few points; on real rows the error is much smaller.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from cloister.learning import FeatureMap
from cloister.learning.models import Activation

__all__ = ["DEGREE", "approximation", "approximation_error", "reach"]

Array = NDArray[np.float64]

DEGREE: Final = 32
"""Of the largest member of the basis that is used; five squarings reach it."""

_GRID: Final = 20_001

# The even polynomial of degree 32 that is nearest |u| on [-1, 1], coefficients of T_0, T_2 .. T_32: Lawson's
# iteration, to nine digits. Its largest error is 0.008756, which is 0.2802 / 32 as Varga and Carpenter (1985)
# have it. Numbers here, so that a model's card is the same on every machine.
_ABSOLUTE: Final = (
    *(0.63656207, 0.424528937, -0.084999148, 0.036496269, -0.02033009, 0.012983699),
    *(-0.009029798, 0.006659763, -0.00512852, 0.004083687, -0.003340344, 0.0027946),
    *(-0.002383833, 0.002069367, -0.001825718, 0.001636763, -0.009530929),
)


def _values(activation: Activation, at: Array) -> Array:
    return np.tanh(at) if activation == "tanh" else np.maximum(at, 0.0)


def approximation(activation: Activation, bound: float) -> Array:
    """Return the coefficients of T_0 .. T_32 of u = x / bound, float64[33]; of T_1 apart, one parity is 0."""
    found = np.zeros(DEGREE + 1)
    if activation == "relu":
        found[::2] = np.multiply(_ABSOLUTE, bound / 2.0)
        found[1] = bound / 2.0
        return found

    def scaled(u: Array) -> Any:
        return np.tanh(bound * u)

    found[1::2] = chebyshev.chebinterpolate(scaled, DEGREE - 1)[1::2]
    return found


def approximation_error(activation: Activation, bound: float, coefficients: Array) -> float:
    """Return the largest difference from the activation on [-bound, bound], found on a grid of 20,001 points
    and widened by one part in fifty for what lies between them."""
    u = np.linspace(-1.0, 1.0, _GRID)
    difference = chebyshev.chebval(u, coefficients) - _values(activation, bound * u)
    return float(np.abs(difference).max()) * 1.02


def reach(features: FeatureMap, weights: Array, biases: Array) -> Array:
    """Return the bound of |x w + b| over all rows that the schema allows, float64[k].

    Args:
        features: of scaling "bounds".
        weights: float64[f, k].
        biases: float64[k].
    """
    low, high = biases.copy(), biases.copy()
    at = 0
    for column in features.columns.values():
        width = len(column.categories or ()) - 1 if column.type == "category" else 1
        own = weights[at : at + width]
        at += width
        if column.type in ("category", "boolean"):  # at most one of them is 1
            low += np.minimum(own.min(axis=0, initial=0.0), 0.0)
            high += np.maximum(own.max(axis=0, initial=0.0), 0.0)
        else:
            low -= np.abs(own[0])
            high += np.abs(own[0])
        if column.missing == "allow":
            low += np.minimum(weights[at], 0.0)
            high += np.maximum(weights[at], 0.0)
            at += 1
    return np.maximum(np.abs(low), np.abs(high))
