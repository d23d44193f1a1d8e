"""What an adversary can do against a private mechanism at best: trade-off functions (Dong, Roth, Su 2022).

A trade-off function f says: whoever tells two neighbouring inputs apart and raises a false alarm with
probability a misses with probability f(a) at least. It is convex, falls, and lies at or below 1 - a. Here it
is symmetric too: the relation of this product (one row zeroed, or not) has no first and second.

A privacy curve, pairs (epsilon, delta) that all hold, is the same thing:

    f(a) = max over pairs of  max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a))

Pairs that hold with room to spare, or too few of them, give a lower f, and so a weaker test, never a false
one. Nothing here draws a random number or knows a mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError

__all__ = ["GaussianTradeOff", "PrivacyCurve", "TradeOff"]


class TradeOff(Protocol):
    """A symmetric trade-off function."""

    def missed(self, false_alarms: float) -> float:
        """Return the least miss rate at a false alarm rate, both in [0, 1]."""


@dataclass(frozen=True)
class GaussianTradeOff:
    """Telling N(0, 1) from N(mu, 1): what mu-Gaussian differential privacy allows.

    Args:
        mu: sensitivity over deviation, 0 or more.
    """

    mu: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.mu >= 0.0):
            raise InputError("mu must be 0 or more, and finite", fix="Give sensitivity over deviation")

    def missed(self, false_alarms: float) -> float:
        """Return Phi(Phi^-1(1 - a) - mu)."""
        from scipy.special import ndtr, ndtri

        return float(ndtr(-ndtri(min(max(false_alarms, 0.0), 1.0)) - self.mu))


class PrivacyCurve:
    """The trade-off function of pairs (epsilon, delta); see the module's docstring.

    Args:
        pairs: epsilon 0 or more, delta in [0, 1]; every pair holds for the mechanism.

    Raises:
        InputError: there is no pair, or one is out of range.
    """

    def __init__(self, pairs: Iterable[tuple[float, float]]) -> None:
        self.pairs = tuple((float(epsilon), float(delta)) for epsilon, delta in pairs)
        if not self.pairs or any(
            not (math.isfinite(epsilon) and epsilon >= 0.0 and 0.0 <= delta <= 1.0)
            for epsilon, delta in self.pairs
        ):
            raise InputError(
                "a privacy curve needs pairs of an epsilon of 0 or more and a delta of 0 to 1",
                fix="Give at least one",
            )
        epsilons, deltas = (np.array(column) for column in zip(*self.pairs, strict=True))
        # missed >= heights - slopes * false alarms, two lines for each pair
        epsilons = np.minimum(epsilons, 700.0)  # beyond, e^epsilon is no float, and says nothing more
        self._slopes: NDArray[np.float64] = np.concatenate([np.exp(epsilons), np.exp(-epsilons)])
        self._heights: NDArray[np.float64] = np.concatenate(
            [1.0 - deltas, np.exp(-epsilons) * (1.0 - deltas)]
        )

    def __repr__(self) -> str:
        return f"PrivacyCurve({len(self.pairs)} pairs)"

    def missed(self, false_alarms: float) -> float:
        """Return f(a)."""
        return max(0.0, float(np.max(self._heights - self._slopes * false_alarms)))
