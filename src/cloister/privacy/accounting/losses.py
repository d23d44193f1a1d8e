"""Privacy loss distributions of pairs, composed with dp_accounting's pessimistic estimates.

Pairs are given to dp_accounting's connect-the-dots discretisation (Doroshenko et al. 2022) as profiles, see
`profiles`; capped pairs are its own.

The grid of losses is chosen from the events: 1e-4 wide, or finer where one run's loss is small against that,
so that the discretisation's own variance (about a sixth of the squared width a run) stays below 0.2 % of the
total; or coarser where epsilon is beyond 50.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cloister.privacy.accounting.moments import log_moment
from cloister.privacy.accounting.pairs import CappedPair, FixedSizePair, GaussianPair, Pair
from cloister.privacy.accounting.profiles import Profile, Profiles, profiles_of

__all__ = ["compose_losses", "has_losses", "unsampled_noise"]

_WIDTH = 1e-4
_FINEST = 2.0**-14
_MOST_RUNS = 5_000_000


def has_losses(pairs: Mapping[Pair, int]) -> bool:
    """Return whether all have a privacy loss distribution that is worth computing.

    Sampling without replacement has none; where losses reach hundreds, moments say as much; tens of millions
    of runs would take minutes.
    """
    if any(isinstance(pair, FixedSizePair) for pair in pairs):
        return False
    if sum(count for pair, count in pairs.items() if _precision(pair) == 0) > _MOST_RUNS:
        return False
    spreads = [(count, log_moment(pair, 2)) for pair, count in pairs.items()]
    return all(spread < 300 for _, spread in spreads) and sum(n * spread for n, spread in spreads) < 1e4


def compose_losses(pairs: Mapping[Pair, int]) -> Any:
    """Return dp_accounting's `PrivacyLossDistribution` of all `pairs` together, each as often as it says."""
    from dp_accounting.pld import privacy_loss_distribution

    width = _width(pairs)
    total = None
    if noise := unsampled_noise(pairs):
        total = privacy_loss_distribution.from_gaussian_mechanism(noise, value_discretization_interval=width)
    for pair, count in pairs.items():
        if _precision(pair) == 0:
            part = _one_run(pair, width).self_compose(count)
            total = part if total is None else total.compose(part)
    return total


def unsampled_noise(pairs: Mapping[Pair, int]) -> float | None:
    """Return the noise of one run that equals all runs of unsampled Gaussian noise; None without any."""
    precision = math.fsum(_precision(pair) * count for pair, count in pairs.items())
    return 1 / math.sqrt(precision) if precision > 0 else None


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

    if isinstance(pair, CappedPair):
        return library.from_truncated_subsampled_gaussian_mechanism(
            pair.size,
            pair.rate,
            pair.cap,
            pair.noise,
            value_discretization_interval=width,
            neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
        )
    return _from_profiles(profiles_of(pair), width)


def _from_profiles(profiles: Profiles, width: float) -> Any:
    import numpy as np
    from dp_accounting.pld import pld_pmf, privacy_loss_distribution

    def direction(profile: Profile, low: float, high: float) -> Any:
        first, last = math.floor(low / width) - 1, math.ceil(high / width) + 1
        deltas = np.clip(profile(np.arange(first, last + 1) * width), 0.0, 1.0)
        # dense, because composing a sparse one often computes its size to the power of the count
        return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
            width, first, last, deltas
        ).to_dense_pmf()

    return privacy_loss_distribution.PrivacyLossDistribution(
        direction(profiles.forward, *profiles.forward_ends),
        direction(profiles.reverse, *profiles.reverse_ends),
    )
