"""Where a party's events go: to its log, to its metrics, to its traces, whichever it asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cloister.runtime.events import Event
from cloister.runtime.observe.log import EventLog
from cloister.runtime.observe.metrics import Metrics, address
from cloister.runtime.observe.traces import Traces, collector

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

    @classmethod
    def of(
        cls,
        logs: Path,
        *,
        study: str,
        party: str,
        peers: Iterable[str] = (),
        public: bool = False,
        metrics: str | None = None,
        otlp: str | None = None,
    ) -> Self:
        """Return what a hub's or a site's service watches itself with.

        Args:
            logs: the home's folder of logs.
            study: the study's name.
            party: this party's name.
            peers: the parties it speaks to, as the plan names them; only they become labels of metrics.
            public: the plan declares its rows public, so that measures of the model may be told.
            metrics: HOST:PORT to serve Prometheus metrics on, or None.
            otlp: URL of a collector of traces, or None.

        Raises:
            InputError: an address does not fit, or a package is missing.
            StorageError: the log cannot be written.
        """
        listen = None if metrics is None else address(metrics)
        url = None if otlp is None else collector(otlp)
        with ExitStack() as opened:
            watchers: list[Watcher] = [EventLog(logs, study=study, party=party, public=public)]
            opened.callback(watchers[0].close)
            if listen is not None:
                watchers.append(Metrics(study=study, party=party, peers=peers, listen=listen))
                opened.callback(watchers[-1].close)
            if url is not None:
                watchers.append(Traces(url, study=study, party=party))
            opened.pop_all()
        return cls(watchers)

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
