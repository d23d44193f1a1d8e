"""Prometheus metrics of one party, served over HTTP for as long as it runs.

There is no authentication and nothing secret: names of peers and of the owner's populations, counts and
seconds. It listens on the loopback address unless another one is given. Labels are names that the caller
knows beforehand, never text that a peer sends: everybody else is counted as `other`.

Counters begin at zero with the process, as Prometheus expects.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIServer

from cloister.errors import InputError
from cloister.runtime.events import (
    Burnt,
    Connected,
    Ended,
    EpochEnded,
    Event,
    LeaseLost,
    LeaseTaken,
    Lost,
    Refused,
    Resumed,
    RosterAgreed,
    RoundDone,
    SetupDone,
    Spent,
    Stalled,
    Started,
    Stopped,
    Traffic,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Metrics", "address"]

OTHER: Final = "other"
_POPULATIONS: Final = 100
_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


def address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[IPV6]:PORT`, or `:PORT` for the loopback address.

    Raises:
        InputError: it is none.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InputError("metrics need an address", where=text[:80], fix="Write 127.0.0.1:9464, or :9464")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


class Metrics:
    """Counts events and serves the figures; a `Watcher`.

    Args:
        study: the study's name, and
        party: this party's; both are labels of `cloister_study_info`.
        peers: whose names may be labels.
        listen: host and port to serve on; port 0 for any free one, None to serve nothing.

    Raises:
        InputError: prometheus-client is not installed, or the address cannot be listened on.
    """

    def __init__(
        self, *, study: str, party: str, peers: Iterable[str], listen: tuple[str, int] | None = None
    ) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError:
            raise InputError(
                "metrics need prometheus-client", fix="Install it with: pip install 'cloister[observe]'"
            ) from None
        self._peers = frozenset(peers)
        self._present: set[str] = set()
        self._carried: dict[tuple[str, str], int] = {}
        self._populations: set[str] = set()
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=True)
        self._declare()
        self._info.labels(study=study, party=party).set(1)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port: int | None = None
        if listen is not None:
            self._serve(*listen)

    def _declare(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        own = self.registry
        self._info = Gauge(
            "cloister_study_info", "1; the labels say whose.", ["study", "party"], registry=own
        )
        self._rounds = Counter("cloister_rounds", "Rounds whose sum is known.", registry=own)
        self._burnt = Counter("cloister_attempts_burnt", "Attempts that could not finish.", registry=own)
        self._stalled = Counter("cloister_stalls", "Deadlines that passed with sites missing.", registry=own)
        self._refused = Counter("cloister_refused", "Messages that were refused.", registry=own)
        self._lost = Counter("cloister_peers_lost", "Times that a peer fell silent.", registry=own)
        self._resumed = Counter("cloister_resumed", "Times that this party went on.", registry=own)
        self._epochs = Counter("cloister_epochs_ended", "Epochs that ended before the study.", registry=own)
        self._seconds = Histogram(
            "cloister_round_seconds", "From start to sum.", buckets=_SECONDS, registry=own
        )
        self._bytes = Counter(
            "cloister_bytes", "Bytes by peer, repetitions included.", ["peer", "direction"], registry=own
        )
        self._sites = Gauge("cloister_sites_present", "Peers with an open session.", registry=own)
        self._members = Gauge("cloister_members", "Sites on the epoch's roster.", registry=own)
        self._survivors = Gauge("cloister_survivors", "Sites in the last round's sum.", registry=own)
        self._planned = Gauge("cloister_rounds_planned", "Rounds the plan asks for.", registry=own)
        self._round = Gauge("cloister_rounds_finished", "Rounds of the study so far.", registry=own)
        self._epoch = Gauge("cloister_epoch", "Number of the epoch.", registry=own)
        self._term = Gauge("cloister_lease_term", "Newest term this process held the lease in.", registry=own)
        self._held = Gauge("cloister_lease_held", "1 while this process is the hub.", registry=own)
        self._spent = Gauge(
            "cloister_ledger_spent", "Share of the budget, 0 to 1.", ["population"], registry=own
        )
        self._epsilon = Gauge(
            "cloister_ledger_epsilon", "Epsilon spent so far.", ["population"], registry=own
        )
        self._last = Gauge(
            "cloister_last_round_timestamp_seconds", "When a round was last done.", registry=own
        )
        self._state = Gauge("cloister_study_state", "0 runs, 1 ended, 2 stopped early.", registry=own)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Started():
                self._planned.set(event.rounds)
                self._state.set(0)
            case Connected() | Lost():
                self._peer(event)
            case RosterAgreed():
                self._members.set(len(event.members))
                self._epoch.set(event.epoch)
            case SetupDone():
                self._epoch.set(event.epoch)
            case RoundDone():
                self._round_done(event)
            case Refused():
                self._refused.inc()
            case Stalled():
                self._stalled.inc()
            case Burnt():
                self._burnt.inc()
            case EpochEnded():
                self._epochs.inc()
            case Resumed():
                self._resumed.inc()
                self._round.set(event.round)
                self._epoch.set(event.epoch)
            case LeaseTaken():
                self._term.set(event.term)
                self._held.set(1)
            case LeaseLost():
                self._held.set(0)
            case Traffic():
                self._traffic("sent", event.sent)
                self._traffic("received", event.received)
            case Spent():
                self._ledger(event)
            case Ended():
                self._state.set(1)
            case Stopped():
                self._state.set(2)

    def close(self) -> None:
        """Serve no longer."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()

    def _round_done(self, event: RoundDone) -> None:
        self._rounds.inc()
        self._seconds.observe(event.seconds)
        self._survivors.set(len(event.survivors))
        self._round.set(event.round + 1)
        self._epoch.set(event.epoch)
        self._last.set_to_current_time()

    def _peer(self, event: Connected | Lost) -> None:
        if event.peer not in self._peers:
            return
        if isinstance(event, Connected):
            self._present.add(event.peer)
        else:
            self._lost.inc()
            self._present.discard(event.peer)
        self._sites.set(len(self._present))

    def _traffic(self, direction: str, totals: dict[str, int]) -> None:
        known: dict[str, int] = {}
        for peer, total in totals.items():
            label = peer if peer in self._peers else OTHER
            known[label] = known.get(label, 0) + total
        for label, total in known.items():
            before = self._carried.get((label, direction), 0)
            self._carried[label, direction] = total
            # a total below the last one has begun anew
            self._bytes.labels(peer=label, direction=direction).inc(
                total - before if total >= before else total
            )

    def _ledger(self, event: Spent) -> None:
        if event.population not in self._populations and len(self._populations) >= _POPULATIONS:
            return
        self._populations.add(event.population)
        self._spent.labels(population=event.population).set(event.share)
        self._epsilon.labels(population=event.population).set(event.epsilon)

    def _serve(self, host: str, port: int) -> None:
        from prometheus_client import start_http_server

        try:
            server, self._thread = start_http_server(port, host, self.registry)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such address"
            raise InputError(
                f"cannot serve metrics: {reason}", where=f"{host}:{port}", fix="Choose another address"
            ) from error
        self._server = server
        self.port = server.server_port
