"""Epsilon of events that were fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.privacy.accounting.events import Event

__all__ = ["delta_charged", "epsilon"]


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Return the epsilon of `events` together at `delta`."""
    raise NotImplementedError


def delta_charged(events: Sequence[Event], epsilon: float) -> float:
    """Return what integers and their samplers take of delta at `epsilon`."""
    raise NotImplementedError
