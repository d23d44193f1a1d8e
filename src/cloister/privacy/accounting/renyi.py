"""The Renyi cost of events at one integer order."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.privacy.accounting.cost import Cost
from cloister.privacy.accounting.events import Event

__all__ = ["renyi"]


def renyi(events: Sequence[Event], order: int) -> Cost:
    """Return the cost of `events` together at an integer `order`."""
    raise NotImplementedError
