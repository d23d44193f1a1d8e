"""Privacy loss distributions of pairs, composed with dp_accounting's pessimistic estimates.

Gaussian, Laplace and capped pairs are dp_accounting's own. The others are given to its connect-the-dots
discretisation (Doroshenko et al. 2022) as profiles: the hockey-stick divergence at e^loss, in both
directions, in closed form.

The grid of losses is chosen from the events: 1e-4 wide, or finer where one run's loss is small against that,
so that the discretisation's own variance (about a sixth of the squared width a run) stays below 0.2 % of the
total; or coarser where epsilon is beyond 50.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from cloister.privacy.accounting.mixture import mixed_profiles, mixed_range
from cloister.privacy.accounting.moments import log_moment
from cloister.privacy.accounting.pairs import (
    CappedPair,
    FewPointsPair,
    FixedSizePair,
    GaussianPair,
    IntegerLaplacePair,
    LaplacePair,
    MixedPair,
    Pair,
)

__all__ = ["compose_losses", "has_losses"]

_WIDTH = 1e-4
_FINEST = 2.0**-14
_TAIL = 10.5  # standard deviations: beyond lies less than 1e-25

Profiles = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def has_losses(pairs: Mapping[Pair, int]) -> bool:
    """Return whether all have a privacy loss distribution that is worth computing.

    Sampling without replacement has none; where losses reach hundreds, moments say as much.
    """
    if any(isinstance(pair, FixedSizePair) for pair in pairs):
        return False
    spreads = [(count, log_moment(pair, 2)) for pair, count in pairs.items()]
    return all(spread < 300 for _, spread in spreads) and sum(n * spread for n, spread in spreads) < 1e4


def compose_losses(pairs: Mapping[Pair, int]) -> Any:
    """Return dp_accounting's `PrivacyLossDistribution` of all `pairs` together, each as often as it says."""
    from dp_accounting.pld import privacy_loss_distribution

    width = _width(pairs)
    # runs of unsampled Gaussian noise are one run with less of it, exactly
    precision = math.fsum(_precision(pair) * count for pair, count in pairs.items())
    total = None
    if precision > 0:
        total = privacy_loss_distribution.from_gaussian_mechanism(
            1 / math.sqrt(precision), value_discretization_interval=width
        )
    for pair, count in pairs.items():
        if _precision(pair) == 0:
            part = _one_run(pair, width).self_compose(count)
            total = part if total is None else total.compose(part)
    return total


def _precision(pair: Pair) -> float:
    """Return 1 / noise^2 of unsampled Gaussian noise, 0 for everything else."""
    return 1 / pair.noise**2 if isinstance(pair, GaussianPair) and pair.rate == 1.0 else 0.0


def _width(pairs: Mapping[Pair, int]) -> float:
    # log E_Q[L^2] is about the variance of one run's loss
    spread = math.fsum(count * log_moment(pair, 2) for pair, count in pairs.items())
    size = spread / 2 + 5 * math.sqrt(spread)  # about the largest epsilon of interest
    coarser = 2.0 ** max(0, math.ceil(math.log2(size / 50))) if size > 0 else 1.0
    sampled = {pair: count for pair, count in pairs.items() if _precision(pair) == 0}
    runs = sum(sampled.values())
    small = math.fsum(count * log_moment(pair, 2) for pair, count in sampled.items())
    if not runs or small <= 0:
        return _WIDTH * coarser
    wanted = math.sqrt(1e-2 * small / runs)
    return _WIDTH * coarser * max(_FINEST, min(1.0, 2.0 ** math.floor(math.log2(wanted / _WIDTH))))


@lru_cache(maxsize=32)
def _one_run(pair: Pair, width: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as library

    if isinstance(pair, GaussianPair):
        return library.from_gaussian_mechanism(
            pair.noise, value_discretization_interval=width, sampling_prob=pair.rate
        )
    if isinstance(pair, LaplacePair):
        return library.from_laplace_mechanism(
            pair.scale, value_discretization_interval=width, sampling_prob=pair.rate
        )
    if isinstance(pair, CappedPair):
        return library.from_truncated_subsampled_gaussian_mechanism(
            pair.size,
            pair.rate,
            pair.cap,
            pair.noise,
            value_discretization_interval=width,
            neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
        )
    if isinstance(pair, IntegerLaplacePair):
        return _from_profiles(*_integer_laplace(pair), width)
    if isinstance(pair, MixedPair):
        low, high = mixed_range(pair, _TAIL)
        return _from_profiles(mixed_profiles(pair), (low, high), width)
    assert isinstance(pair, FewPointsPair)  # noqa: S101  has_losses says which pairs come here
    return _from_profiles(*_few_points(pair), width)


def _from_profiles(profiles: Profiles, ends: tuple[float, float], width: float) -> Any:
    """Discretise a pair whose first direction's losses lie in `ends`, the second's in their negatives."""
    import numpy as np
    from dp_accounting.pld import pld_pmf, privacy_loss_distribution

    low, high = math.floor(ends[0] / width) - 1, math.ceil(ends[1] / width) + 1
    forward = profiles[0](np.arange(low, high + 1) * width)
    reverse = profiles[1](np.arange(-high, -low + 1) * width)
    dots = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap
    return privacy_loss_distribution.PrivacyLossDistribution(
        dots(width, low, high, np.clip(forward, 0.0, 1.0)),
        dots(width, -high, -low, np.clip(reverse, 0.0, 1.0)),
    )


def _few_points(pair: FewPointsPair) -> tuple[Profiles, tuple[float, float]]:
    import numpy as np

    def profile(upper: tuple[float, ...], lower: tuple[float, ...]) -> Callable[[Any], Any]:
        return lambda losses: sum(
            np.maximum(p - np.exp(losses) * q, 0.0) for p, q in zip(upper, lower, strict=True)
        )

    losses = [math.log(p / q) for p, q in zip(pair.upper, pair.lower, strict=True)]
    both = profile(pair.upper, pair.lower), profile(pair.lower, pair.upper)
    return both, (min(losses), max(losses))


def _integer_laplace(pair: IntegerLaplacePair) -> tuple[Profiles, tuple[float, float]]:
    import numpy as np

    scale, shift, rate = pair.scale, pair.shift, pair.rate
    epsilon = shift / scale
    normaliser = math.log1p(math.exp(-1 / scale))

    def moved(losses: Any) -> Any:
        """H(P || Q) = H(Q || P): moved noise has more than e^loss of the other's mass from some k on."""
        inside = np.clip(losses, -epsilon, epsilon)
        k = np.floor((shift + scale * inside) / 2) + 1
        beyond = np.where(  # P[moved noise >= k]; k <= shift but at the upper end
            k <= shift,
            1 - np.exp(np.minimum(k - shift - 1, 0) / scale - normaliser),
            np.exp(-np.maximum(k - shift, 0) / scale - normaliser),
        )
        less = beyond - np.exp(inside - k / scale - normaliser)
        return np.where(losses >= epsilon, 0.0, np.where(losses < -epsilon, -np.expm1(losses), less))

    def sampled(losses: Any) -> Any:  # H(rate P + (1 - rate) Q || Q)
        inner = 1 + np.expm1(losses) / rate
        some = inner > 0
        return np.where(some, rate * moved(np.log(np.where(some, inner, 1.0))), -np.expm1(losses))

    def unsampled(losses: Any) -> Any:  # H(Q || rate P + (1 - rate) Q)
        outer = 1 - np.exp(losses) * (1 - rate)
        some = outer > 0
        kept = np.where(some, outer, 1.0)
        return np.where(some, kept * moved(losses + math.log(rate) - np.log(kept)), 0.0)

    ends = math.log1p(rate * math.expm1(-epsilon)), math.log1p(rate * math.expm1(epsilon))
    return (sampled, unsampled), ends
