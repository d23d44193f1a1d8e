"""The worst pair of distributions behind an event: what it comes to for somebody who tells neighbours apart.

Every event is dominated by one pair on the real line (or on a few points), scaled so that noise has standard
deviation or scale 1 a unit; `losses` and `moments` know pairs, not events. That a pair dominates is proved in
docs/proofs/integer-gaussian.md and docs/proofs/dominating-pairs.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.errors import InputError
from cloister.privacy.accounting.events import Event, Relation
from cloister.privacy.accounting.mechanisms import (
    Gaussian,
    IntegerGaussian,
    IntegerLaplace,
    Laplace,
    Mechanism,
    MixedGaussian,
    PureDP,
    RandomisedResponse,
)
from cloister.privacy.accounting.remainder import real_sigma
from cloister.privacy.accounting.samplers import FixedSize, Poisson, Sampler

__all__ = [
    "CappedPair",
    "FewPointsPair",
    "FixedSizePair",
    "GaussianPair",
    "IntegerLaplacePair",
    "LaplacePair",
    "MixedPair",
    "Pair",
    "pair_of",
    "pairs_of",
]


@dataclass(frozen=True)
class GaussianPair:
    """(1 - rate) N(0, noise^2) + rate N(1, noise^2) against N(0, noise^2)."""

    noise: float
    rate: float


@dataclass(frozen=True)
class CappedPair:
    """`GaussianPair` of a Poisson sample of `size` that is cut to `cap` at random where it is larger."""

    noise: float
    rate: float
    size: int
    cap: int


@dataclass(frozen=True)
class MixedPair:
    """Sum over j of Binomial(sites, rate)(j) N(j, noise^2), against N(0, noise^2)."""

    noise: float
    rate: float
    sites: int


@dataclass(frozen=True)
class FixedSizePair:
    """Gaussian noise on a batch that is the fraction `rate` of all, without replacement; under
    replace-one."""

    noise: float
    rate: float


@dataclass(frozen=True)
class LaplacePair:
    """Laplace noise of scale `scale` moved by 1 in the sampled case, against not moved."""

    scale: float
    rate: float


@dataclass(frozen=True)
class IntegerLaplacePair:
    """Discrete Laplace noise of scale `scale` moved by `shift` in the sampled case, against not moved."""

    scale: float
    shift: int
    rate: float


@dataclass(frozen=True)
class FewPointsPair:
    """Two distributions on the same few points, each with mass everywhere."""

    upper: tuple[float, ...]
    lower: tuple[float, ...]


Pair = (
    GaussianPair | CappedPair | MixedPair | FixedSizePair | LaplacePair | IntegerLaplacePair | FewPointsPair
)


def pairs_of(events: Sequence[Event]) -> dict[Pair, int]:
    """Return how often each pair occurs in `events`.

    Raises:
        InputError: there are no events, or they do not all have one relation.
    """
    if not events:
        raise InputError("there are no events to account for", fix="Describe what is done as events")
    if len({event.relation for event in events}) > 1:
        raise InputError(
            "events under two relations have no common epsilon",
            where="events",
            fix="State all of them under zero-out, or all under replace-one",
        )
    counts: dict[Pair, int] = {}
    for event in events:
        pair = pair_of(event)
        counts[pair] = counts.get(pair, 0) + event.count
    return counts


def pair_of(event: Event) -> Pair:
    """Return the pair that dominates one run of `event`."""
    mechanism, sampler = event.mechanism, event.sampler
    rate = sampler.rate if isinstance(sampler, Poisson) else 1.0
    if isinstance(mechanism, MixedGaussian):
        noise = real_sigma(mechanism.variance) / mechanism.sensitivity
        if rate == 1.0:
            return GaussianPair(noise / mechanism.sites, 1.0)
        return MixedPair(noise, rate, mechanism.sites) if mechanism.sites > 1 else GaussianPair(noise, rate)
    if isinstance(mechanism, Gaussian):
        return _gaussian(mechanism.sigma / mechanism.sensitivity, sampler)
    if isinstance(mechanism, IntegerGaussian):
        return _gaussian(real_sigma(mechanism.variance) / mechanism.sensitivity, sampler)
    if isinstance(mechanism, Laplace):
        return LaplacePair(mechanism.scale / mechanism.sensitivity, rate)
    if isinstance(mechanism, IntegerLaplace):
        return IntegerLaplacePair(mechanism.scale, math.floor(mechanism.sensitivity), rate)
    return _few_points(mechanism, event.relation)


def _gaussian(noise: float, sampler: Sampler) -> Pair:
    if isinstance(sampler, FixedSize):
        if sampler.batch == sampler.size:
            return GaussianPair(noise, 1.0)
        return FixedSizePair(noise, sampler.batch / sampler.size)
    if isinstance(sampler, Poisson):
        if sampler.cap is not None and sampler.size is not None and sampler.cap < sampler.size:
            return CappedPair(noise, sampler.rate, sampler.size, sampler.cap)
        return GaussianPair(noise, sampler.rate)
    return GaussianPair(noise, 1.0)


def _few_points(mechanism: Mechanism, relation: Relation) -> FewPointsPair:
    if isinstance(mechanism, PureDP):
        # any pair of a pure mechanism is a function of this one (Kairouz, Oh, Viswanath 2015)
        often = 1 / (1 + math.exp(-mechanism.epsilon))
        rarely = 1 / (1 + math.exp(mechanism.epsilon))
        return FewPointsPair((often, rarely), (rarely, often))
    assert isinstance(mechanism, RandomisedResponse)  # noqa: S101  every other mechanism is handled above
    others = mechanism.categories - 1
    truth = 1 / (1 + others * math.exp(-mechanism.epsilon))
    lie = 1 / (math.exp(mechanism.epsilon) + others)  # one particular other answer
    if relation == "zero-out":
        one = 1 / mechanism.categories
        return FewPointsPair((truth, others * lie), (one, others * one))
    if others == 1:
        return FewPointsPair((truth, lie), (lie, truth))
    return FewPointsPair((truth, lie, (others - 1) * lie), (lie, truth, (others - 1) * lie))
