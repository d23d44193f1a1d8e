"""Noise from epsilon, and rounds from both. Epsilon from noise is `epsilon` itself.

What is returned has been evaluated: its epsilon is at most the target, whatever the search assumed on its
way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cloister.errors import InputError
from cloister.privacy.accounting.accountant import least_epsilon
from cloister.privacy.accounting.events import Event
from cloister.privacy.accounting.ranges import check_between, check_whole

__all__ = ["calibrate_noise", "rounds_within"]

_TOLERANCE = 1e-4


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    make_events: Callable[[float], Sequence[Event]],
    *,
    least: float = 0.05,
    most: float = 1e6,
) -> float:
    """Return the smallest noise in [least, most] whose events stay within `target_epsilon`, to 1e-4 of
    itself.

    Args:
        target_epsilon: above 0.
        delta: in (0, 1).
        make_events: from a noise (in whatever unit: a multiplier, a scale) to all events of the plan; more
            noise may not cost more. It is called about ten times, and may refuse a noise that it cannot use.
        least: returned where even so little noise suffices.
        most: more is not tried.

    Raises:
        InputError: the target or delta is out of range, or `most` does not suffice.
    """
    check_between(target_epsilon, 0.0, math.inf, "the target epsilon")

    def cost(noise: float) -> float:
        return least_epsilon(make_events(noise), delta)

    low = high = min(max(8.0, least), most)  # much noise is quick to account for, little is not
    at_low = at_high = cost(low)
    while at_high > target_epsilon:
        if high >= most:
            raise InputError(
                "no noise that was allowed is enough for this epsilon",
                fix="Raise epsilon or delta, take fewer rounds, or sample less",
            )
        low, at_low = high, at_high
        high = min(high * 2, most)
        at_high = cost(high)
    while at_low <= target_epsilon:
        if low <= least:
            return low
        high, at_high = low, at_low
        low = max(low / 2, least)
        at_low = cost(low)
    raised = False
    while high > low * (1 + _TOLERANCE):
        guess = _between(low, at_low, high, at_high, target_epsilon)
        # from alternating sides, so that a good guess closes the interval in two calls
        noise = guess * (1 - 0.4 * _TOLERANCE if raised else 1 + 0.4 * _TOLERANCE)
        inner = (high / low) ** 0.01
        noise = min(max(noise, low * inner), high / inner)
        at_noise = cost(noise)
        raised = at_noise <= target_epsilon
        if raised:
            high, at_high = noise, at_noise
        else:
            low, at_low = noise, at_noise
    return high


def rounds_within(
    target_epsilon: float, delta: float, make_events: Callable[[int], Sequence[Event]], most: int
) -> int:
    """Return the largest number of rounds up to `most` within `target_epsilon`; 0 where even one is too many.

    Args:
        target_epsilon: above 0.
        delta: in (0, 1).
        make_events: from a number of rounds, 1 to `most`, to all events of the plan; more rounds may not cost
            less.
        most: at least 1.

    Raises:
        InputError: the target, delta or `most` is out of range.
    """
    check_between(target_epsilon, 0.0, math.inf, "the target epsilon")
    check_whole(most, 1, 2**40, "the most rounds")

    def cost(rounds: int) -> float:
        return least_epsilon(make_events(rounds), delta)

    low, at_low = 1, cost(1)
    if at_low > target_epsilon:
        return 0
    high, at_high = most, cost(most)
    if at_high <= target_epsilon:
        return most
    while high > low + 1:
        guess = math.floor(_between(low, at_low, high, at_high, target_epsilon))
        # the guess, or one more where the guess is known to fit; never so near an end that nothing is gained
        margin = (high - low) // 100
        rounds = min(max(guess, low + 1 + margin), high - 1 - margin)
        at_rounds = cost(rounds)
        if at_rounds <= target_epsilon:
            low, at_low = rounds, at_rounds
        else:
            high, at_high = rounds, at_rounds
    return low


def _between(low: float, at_low: float, high: float, at_high: float, target: float) -> float:
    """Guess where the target is met: a straight line in logarithms, else the geometric mean."""
    ends = (at_low, at_high, target)
    if not all(0 < end < math.inf for end in ends) or at_low == at_high:
        return math.sqrt(low * high)
    part = math.log(target / at_low) / math.log(at_high / at_low)
    return float(low * (high / low) ** min(max(part, 0.0), 1.0))
