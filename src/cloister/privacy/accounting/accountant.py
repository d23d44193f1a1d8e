"""What events come to: epsilon at a delta for a plan fixed beforehand, a Renyi cost for a ledger's filter.

Gaussian noise on everyone has a closed form (Balle and Wang 2018). Otherwise, where every event has a privacy
loss distribution, epsilon comes from their composition, with dp_accounting's pessimistic estimates. It comes
from Renyi divergences at many orders where one has none (sampling without replacement), where delta is so
small that the rounding of Fourier transforms would show, and where epsilon is so large that nobody counts its
digits. Epsilons are never added.

What is charged to delta first, before epsilon is computed from the rest:

- what integers cost beyond real noise: (1 + e^epsilon) times `remainder.total_distance`. It depends on
  epsilon, so an epsilon that covers its own charge is sought;
- the rounding of the transforms, 2e-16 a run: several times what composing Gaussians is off by (it is checked
  against their closed form in the tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache

from cloister.errors import InputError
from cloister.privacy.accounting.cost import MOST_EPSILON, MOST_ORDER, Cost
from cloister.privacy.accounting.events import Event
from cloister.privacy.accounting.losses import compose_losses, has_losses, unsampled_noise
from cloister.privacy.accounting.moments import log_moment
from cloister.privacy.accounting.pairs import GaussianPair, Pair, pairs_of
from cloister.privacy.accounting.ranges import check_whole
from cloister.privacy.accounting.remainder import total_distance

__all__ = ["delta_charged", "epsilon", "least_epsilon", "renyi"]

NoFiniteEpsilon = InputError  # what `epsilon` raises; searches call `least_epsilon` and meet infinity

_TRANSFORM_ROUNDING = 2e-16  # of delta, a run
_ORDERS = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 65),
    *(80, 96, 128, 192, 256, 512, 1024),
)


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Return an epsilon at which `events` together are (epsilon, delta)-private.

    Args:
        events: all under one relation; what each run does may depend on the results before it, what the
            events say may not.
        delta: in (0, 1).

    Raises:
        InputError: delta is out of range, there are no events, they have two relations, or no epsilon is
            finite at this delta: there is too little noise, or the integers' own charge exceeds delta.
    """
    found = least_epsilon(events, delta)
    if not math.isfinite(found):
        raise InputError(
            "these events have no finite epsilon at this delta",
            where="events",
            fix="Add noise, take fewer steps, or raise delta",
        )
    return found


def least_epsilon(events: Sequence[Event], delta: float) -> float:
    """Return `epsilon`, or infinity where that would refuse for want of a finite one; for searches."""
    if not 0.0 < delta < 1.0:
        raise InputError("delta is not between 0 and 1", fix="Take a delta well below 1 / (number of units)")
    return _epsilon(tuple(events), float(delta))


def delta_charged(events: Sequence[Event], epsilon: float) -> float:
    """Return what integers and their samplers take of delta at `epsilon`.

    Args:
        events: as for `epsilon`.
        epsilon: at least 0.

    Raises:
        InputError: epsilon is negative or not finite.
    """
    if not 0.0 <= epsilon < math.inf:
        raise InputError(
            "epsilon is not a finite number of at least 0", fix="Take the epsilon of these events"
        )
    return _charge(total_distance(events), epsilon)


def renyi(events: Sequence[Event], order: int) -> Cost:
    """Return the cost of `events` together at an integer `order`.

    The divergence is that of the real mechanism whose rounding the integers nearly are; `delta` pays for
    "nearly" and for the samplers, in every cap of epsilon up to `MOST_EPSILON`. Both add over events, and
    over studies and queries chosen with the results before them in view (docs/proofs/integer-gaussian.md).

    Args:
        events: all under one relation.
        order: 2 to 4096.

    Raises:
        InputError: the order is out of range, the events have two relations, or their divergence at this
            order is not finite.
    """
    check_whole(order, 2, MOST_ORDER, "a Renyi order")
    rdp = math.fsum(count * log_moment(pair, order) / (order - 1) for pair, count in pairs_of(events).items())
    if not math.isfinite(rdp):
        raise InputError(
            "these events have no finite Renyi divergence at this order",
            where="events",
            fix="Add noise, or take a lower order",
        )
    return Cost(rdp, _charge(total_distance(events), MOST_EPSILON), order)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    pairs = pairs_of(events)
    distance = total_distance(events)
    at = cache(_account(pairs, delta))
    found = 0.0
    while True:
        left = delta - _charge(distance, found)
        needed = at(left) if left > 0 else math.inf
        if not math.isfinite(needed):
            return math.inf
        if needed <= found:
            return found
        # a little further than needed, so that the charge at the new epsilon is covered too
        found = needed * (1 + 1e-7) if distance > 0 else needed


def _charge(distance: float, epsilon: float) -> float:
    if distance == 0.0:
        return 0.0
    return (1 + math.exp(epsilon)) * distance if epsilon < 700 else math.inf


def _account(pairs: Mapping[Pair, int], delta: float) -> Callable[[float], float]:
    """Return the best account of `pairs` for deltas up to `delta`: a function from delta to epsilon."""
    if not has_losses(pairs):
        return _from_moments(pairs)
    if all(isinstance(pair, GaussianPair) and pair.rate == 1.0 for pair in pairs):
        return _from_closed_form(unsampled_noise(pairs) or math.inf)
    rounding = _TRANSFORM_ROUNDING * (sum(pairs.values()) + len(pairs))
    return _from_losses(pairs, rounding) if rounding < delta / 10 else _from_moments(pairs)


def _from_closed_form(noise: float) -> Callable[[float], float]:
    def epsilon_at(delta: float) -> float:
        from dp_accounting import get_epsilon_gaussian

        # its differences of logarithms vanish beyond 1e15; less noise is the safe side
        found = float(get_epsilon_gaussian(min(noise, 1e12), delta, tol=1e-12))
        return found + 2e-12 if found > 0 else 0.0

    return epsilon_at


def _from_losses(pairs: Mapping[Pair, int], rounding: float) -> Callable[[float], float]:
    losses = compose_losses(pairs)

    def epsilon_at(delta: float) -> float:
        return float(losses.get_epsilon_for_delta(delta - rounding)) if delta > rounding else math.inf

    return epsilon_at


def _from_moments(pairs: Mapping[Pair, int]) -> Callable[[float], float]:
    """Canonne, Kamath, Steinke 2020, proposition 12, at the best of many orders."""

    def moment(order: float) -> float:
        # (order - 1) D is convex in the order and 0 at 1, so between integers the chord bounds it
        low, part = math.floor(order), order - math.floor(order)
        return math.fsum(
            count * ((1 - part) * _moment(pair, low) + (part * _moment(pair, low + 1) if part else 0.0))
            for pair, count in pairs.items()
        )

    moments = [(order, moment(order)) for order in _ORDERS]

    def epsilon_at(delta: float) -> float:
        least: float = min(
            (total - math.log(delta * order)) / (order - 1) + math.log1p(-1 / order)
            for order, total in moments
        )
        return max(0.0, float(least))

    return epsilon_at


def _moment(pair: Pair, order: int) -> float:
    return log_moment(pair, order) if order > 1 else 0.0
