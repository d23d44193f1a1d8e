"""The privacy curve of events, and of the same events with more or less noise: what guesses are held against.

delta(epsilon) of the composed privacy loss distribution, with all that the accountant charges beside it; or,
where events have none, epsilon at many deltas. Both are upper bounds, so the curve is a lower bound on what
an adversary misses, and a test against it errs on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from cloister.errors import InputError
from cloister.privacy.accounting import (
    Event,
    Gaussian,
    IntegerGaussian,
    MixedGaussian,
    delta_charged,
    epsilon,
)
from cloister.privacy.accounting.accountant import NoFiniteEpsilon
from cloister.privacy.accounting.losses import compose_losses, has_losses
from cloister.privacy.accounting.pairs import GaussianPair, Pair, pairs_of
from cloister.privacy.accounting.remainder import real_sigma
from cloister.privacy.auditing.tradeoff import PrivacyCurve

__all__ = ["curve_of", "distance_of", "scaled"]

_ROUNDING: Final = 1e-11  # of delta: more than the composition's rounding, and nothing to a test
_EPSILONS: Final = (0.0, *(2.0 ** (k / 2) for k in range(-8, 11)))  # to 32
_DELTAS: Final = tuple(10.0 ** (-k / 2) for k in range(1, 17))


def scaled(events: Sequence[Event], factor: float) -> tuple[Event, ...]:
    """Return the events with `factor` times their sensitivity: as if noise were so much smaller.

    Integers become the real Gaussian that they are accounted for as; what they cost beside it does not scale.

    Raises:
        InputError: a mechanism without noise of its own scale.
    """
    return tuple(_scaled(event, factor) for event in events)


def curve_of(events: Sequence[Event]) -> PrivacyCurve:
    """Return the trade-off function that `events` together allow at least."""
    return _curve(tuple(events))


def distance_of(events: Sequence[Event]) -> float:
    """Return the total variation distance that `events` together allow at most: delta at epsilon 0."""
    return min(delta for at, delta in curve_of(events).pairs if at == 0.0)


def _losses(events: tuple[Event, ...]) -> Callable[[float], float] | None:
    """Return delta at epsilon, all charges counted; None where events have no loss distribution."""
    pairs = pairs_of(events)
    # unsampled Gaussians together are one Gaussian, whose curve is known in closed form
    precisions = [_precision(pair) * count for pair, count in pairs.items()]
    if all(precisions):
        mu = math.sqrt(math.fsum(precisions))
        return lambda at: min(1.0, _gaussian_delta(mu, at) + delta_charged(events, at))
    if not has_losses(pairs):
        return None
    losses = compose_losses(pairs)
    return lambda at: min(
        1.0, float(losses.get_delta_for_epsilon(at)) + _ROUNDING + delta_charged(events, at)
    )


def _precision(pair: Pair) -> float:
    """Return 1 / noise^2 of unsampled Gaussian noise, 0 for everything else."""
    return 1.0 / pair.noise**2 if isinstance(pair, GaussianPair) and pair.rate == 1.0 else 0.0


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) of N(0, 1) against N(mu, 1) (Balle and Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr, ndtr

    upper, lower = mu / 2.0 - epsilon / mu, -mu / 2.0 - epsilon / mu
    return max(0.0, float(ndtr(upper) - math.exp(epsilon + float(log_ndtr(lower)))))


@lru_cache(maxsize=256)
def _curve(events: tuple[Event, ...]) -> PrivacyCurve:
    delta_at = _losses(events)
    if delta_at is not None:
        return PrivacyCurve((at, delta_at(at)) for at in _EPSILONS)
    found = [(0.0, 1.0)]
    for delta in _DELTAS:
        try:
            found.append((epsilon(events, delta), delta))
        except NoFiniteEpsilon:
            continue
    return PrivacyCurve(found)


def _scaled(event: Event, factor: float) -> Event:
    mechanism = event.mechanism
    if not isinstance(mechanism, Gaussian | IntegerGaussian | MixedGaussian):
        raise InputError("only Gaussian noise can be scaled here", fix="Audit it by epsilon and delta alone")
    sensitivity = mechanism.sensitivity * factor
    if isinstance(mechanism, IntegerGaussian):
        real = Gaussian(sigma=real_sigma(mechanism.variance), sensitivity=sensitivity)
        return msgspec.structs.replace(event, mechanism=real)
    if isinstance(mechanism, MixedGaussian):
        mechanism = msgspec.structs.replace(mechanism, coordinates=1, distance=0.0)
    return msgspec.structs.replace(
        event, mechanism=msgspec.structs.replace(mechanism, sensitivity=sensitivity)
    )
