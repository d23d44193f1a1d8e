"""The Renyi cost of events at one integer order."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.privacy.accounting.cost import MOST_EPSILON, Cost
from cloister.privacy.accounting.events import Event

__all__ = ["renyi"]


def renyi(events: Sequence[Event], order: int, *, within: float = MOST_EPSILON) -> Cost:
    """Return the cost of `events` together at an integer `order`, for caps of at most epsilon `within`."""
    raise NotImplementedError
