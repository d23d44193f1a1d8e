"""Where a party's events go: to its log, to its metrics, to its traces, whichever it asked for."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from cloister.runtime.events import Event

__all__ = ["Observer", "Watcher"]


class Watcher(Protocol):
    """Takes events as they happen. It never raises because of what it watches, or of where it writes."""

    def __call__(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Write what is outstanding and let go; a second call does nothing."""


class Observer:
    """Hands every event to every watcher, in order; an `OnEvent`, and a context that closes them.

    Called from one thread. Nothing it is given changes what runs.

    Args:
        watchers: such as `EventLog`, `Metrics`, `Traces`; none is well.
    """

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = tuple(watchers)

    def __call__(self, event: Event) -> None:
        """Hand an event on."""
        for watcher in self._watchers:
            watcher(event)

    def close(self) -> None:
        """Close every watcher, the last one first."""
        watchers, self._watchers = self._watchers, ()
        for watcher in reversed(watchers):
            watcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
