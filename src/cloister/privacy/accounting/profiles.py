"""Profiles of pairs: the hockey-stick divergence at e^loss, as functions of a loss, in both directions.

For a pair that a reflection exchanges, H(P || Q) = H(Q || P), and sampling with a rate q is exact (Zhu, Dong,
Wang 2022, theorem 11; docs/proofs/dominating-pairs.md):

    H_g(q P + (1 - q) Q || Q) = q H_h(P || Q),  h = 1 + (g - 1) / q;           1 - g where h <= 0
    H_g(Q || q P + (1 - q) Q) = k H_(g q / k)(P || Q),  k = 1 - g (1 - q);     0 where k <= 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloister.privacy.accounting.mixture import mixed_losses, mixed_profiles
from cloister.privacy.accounting.pairs import (
    FewPointsPair,
    GaussianPair,
    IntegerLaplacePair,
    LaplacePair,
    MixedPair,
    Pair,
)

__all__ = ["Profile", "Profiles", "profiles_of"]

_TAIL = 10.5  # standard deviations: beyond lies less than 1e-25

Profile = Callable[[Any], Any]
"""From float64[n] losses, in nats, to float64[n] divergences, but for rounding in [0, 1]."""


@dataclass(frozen=True)
class Profiles:
    """Both profiles of a pair, and the losses between which all mass lies but 1e-25.

    Attributes:
        forward: of P from Q.
        reverse: of Q from P.
        forward_ends: least and largest loss log P/Q under P.
        reverse_ends: least and largest loss log Q/P under Q.
    """

    forward: Profile
    reverse: Profile
    forward_ends: tuple[float, float]
    reverse_ends: tuple[float, float]


def profiles_of(pair: Pair) -> Profiles:
    """Return the profiles of a Gaussian, mixed, Laplace or few-points pair."""
    if isinstance(pair, GaussianPair):
        return _gaussian(pair)
    if isinstance(pair, MixedPair):
        low, middle, high = mixed_losses(pair, _TAIL)
        return Profiles(*mixed_profiles(pair), (low, high), (-middle, -low))
    if isinstance(pair, LaplacePair):
        return _laplace(pair)
    if isinstance(pair, IntegerLaplacePair):
        return _integer_laplace(pair)
    if isinstance(pair, FewPointsPair):
        return _few_points(pair)
    raise TypeError(f"a {type(pair).__name__} has no profile here")


def _sampled(symmetric: Profile, rate: float, low: float, middle: float, high: float) -> Profiles:
    """Sample a pair with H(P || Q) = H(Q || P): losses in [low, middle] under Q, up to high under P."""
    import numpy as np

    def forward(losses: Any) -> Any:
        inner = 1 + np.expm1(losses) / rate
        some = inner > 0
        return np.where(some, rate * symmetric(np.log(np.where(some, inner, 1.0))), -np.expm1(losses))

    def reverse(losses: Any) -> Any:
        outer = 1 - np.exp(losses) * (1 - rate)
        some = outer > 0
        kept = np.where(some, outer, 1.0)
        return np.where(some, kept * symmetric(losses + math.log(rate) - np.log(kept)), 0.0)

    if rate == 1.0:
        return Profiles(symmetric, symmetric, (low, high), (-middle, -low))
    least, inside, most = (math.log1p(rate * math.expm1(loss)) for loss in (low, middle, high))
    return Profiles(forward, reverse, (least, most), (-inside, -least))


def _gaussian(pair: GaussianPair) -> Profiles:
    """Balle and Wang 2018, theorem 5."""
    import numpy as np
    from scipy.special import log_ndtr, ndtr

    mu = 1 / pair.noise

    def symmetric(losses: Any) -> Any:
        return ndtr(mu / 2 - losses / mu) - np.exp(losses + log_ndtr(-mu / 2 - losses / mu))

    middle, half = _TAIL * mu, mu**2 / 2
    return _sampled(symmetric, pair.rate, -middle - half, middle - half, middle + half)


def _laplace(pair: LaplacePair) -> Profiles:
    import numpy as np

    epsilon = 1 / pair.scale

    def symmetric(losses: Any) -> Any:
        # 1 - e^((loss - epsilon) / 2) between, where only a tail is compared; 1 - e^loss left of it
        return -np.expm1(np.where(losses < -epsilon, losses, np.minimum(losses - epsilon, 0.0) / 2))

    return _sampled(symmetric, pair.rate, -epsilon, epsilon, epsilon)


def _integer_laplace(pair: IntegerLaplacePair) -> Profiles:
    import numpy as np

    scale, shift = pair.scale, pair.shift
    epsilon = shift / scale
    normaliser = math.log1p(math.exp(-1 / scale))

    def symmetric(losses: Any) -> Any:
        # moved noise has more than e^loss of the other's mass from some k in 1 .. shift on
        inside = np.clip(losses, -epsilon, epsilon)
        k = np.floor((shift + scale * inside) / 2) + 1
        beyond = np.where(  # P[moved noise >= k]
            k <= shift,
            1 - np.exp(np.minimum(k - shift - 1, 0) / scale - normaliser),
            np.exp(-np.maximum(k - shift, 0) / scale - normaliser),
        )
        less = beyond - np.exp(inside - k / scale - normaliser)
        return np.where(losses >= epsilon, 0.0, np.where(losses < -epsilon, -np.expm1(losses), less))

    return _sampled(symmetric, pair.rate, -epsilon, epsilon, epsilon)


def _few_points(pair: FewPointsPair) -> Profiles:
    import numpy as np

    def profile(upper: tuple[float, ...], lower: tuple[float, ...]) -> Profile:
        points = list(zip(upper, lower, strict=True))
        return lambda losses: sum(np.maximum(p - np.exp(losses) * q, 0.0) for p, q in points)

    losses = [math.log(p / q) for p, q in zip(pair.upper, pair.lower, strict=True)]
    least, most = min(losses), max(losses)
    forward, reverse = profile(pair.upper, pair.lower), profile(pair.lower, pair.upper)
    return Profiles(forward, reverse, (least, most), (-most, -least))
