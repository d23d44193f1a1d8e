"""Noise from epsilon, and rounds from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloister.privacy.accounting.events import Event

__all__ = ["calibrate_noise", "rounds_within"]


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    make_events: Callable[[float], Sequence[Event]],
    *,
    least: float = 0.05,
    most: float = 1e6,
) -> float:
    """Return the smallest noise in [least, most] whose events stay within `target_epsilon`."""
    raise NotImplementedError


def rounds_within(
    target_epsilon: float, delta: float, make_events: Callable[[int], Sequence[Event]], most: int
) -> int:
    """Return the largest number of rounds up to `most` within `target_epsilon`; 0 where one is too many."""
    raise NotImplementedError
