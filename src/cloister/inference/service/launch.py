"""A service: its walled worker, started and kept, and the application that a server calls.

    service = Service(TableModel(artifact), attester=attester, clients=None)
    ready = service.start()
    ...  serve `service.app` (ASGI) ...
    service.close()

`start`, in this order:

1. the worker's process is started, with the pipe, and where it needs one a way to be handed sockets;
2. it meets its service, imports and puts up its walls, before it is told what to serve;
3. where its memory may be swapped out, that is a refusal: prompts would come to lie on a disk;
4. it is told what to serve; what keys it may need are lent to it, over their session, and nothing else is;
5. it says what answers now, and from then on only the pipe is used.

The service is outside the worker: it sees what the front sees, ciphertext, and holds no key of the exchange.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from cloister.crypto import Identity, PublicIdentity
from cloister.enclave.broker import Attests
from cloister.enclave.sandbox import Child, spawn
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused, ProtocolError
from cloister.inference.service.boot import PROTOCOL, Boot, Ready, decode_said, error_of
from cloister.inference.service.connections import Connector
from cloister.inference.service.credentials import Client
from cloister.inference.service.front import Front
from cloister.inference.service.limits import Limits
from cloister.inference.service.source import LoopbackEngine, SealedFolder, Source
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.messages import (
    MAX_BROKERED,
    BrokerAsk,
    Confined,
    EvidenceWanted,
    Failed,
    Key,
    KeyWanted,
    Meet,
    Question,
    encode,
)
from cloister.runtime.workers.session import Lends

__all__ = ["MODULE", "Process", "Service", "Start", "start_worker"]

MODULE: Final = "cloister.inference.service.process"
_SWAPS: Final = Path("/proc/swaps")
_MAX_SAID: Final = MAX_BROKERED + (64 << 10)
_MAX_IDENTITY: Final = 16 << 10
_START_SECONDS: Final = 120.0
_WHY_SECONDS: Final = 5.0
_LAST_LINE: Final = 300
_SOCKET_BYTES: Final = 1 << 20
_DAY: Final = 86_400.0


class Process(Protocol):
    """A worker's process; `enclave.sandbox.Child` is one.

    Attributes:
        socket: this end of the channel.
        pid: of what guards it.
    """

    socket: socket.socket
    pid: int

    def wait(self, timeout: float | None = None) -> int | None:
        """Return how it ended."""

    def last_words(self) -> str:
        """Return the end of what it printed before its walls stood."""

    def close(self) -> None:
        """End it."""


Start = Callable[[Sequence[socket.socket]], Process]
"""Starts a process that runs `process.serve`, with further sockets."""


def start_worker(extra: Sequence[socket.socket]) -> Child:
    """Start the walled worker's process, with further sockets."""
    return spawn(MODULE, extra=extra)


class Service:
    """Serves one model privately.

    Args:
        source: what to serve.
        attester: makes evidence of this machine.
        clients: who may ask; None lets anybody.
        name: under which clients ask for it; the source's own without one.
        limits: what is taken at once.
        lifetime: seconds for which keys are offered.
        overlap: seconds for which they are taken after that.
        threads: that the worker computes with; None for one for tables, all processors for language.
        allow_swap: whether the worker's memory may be swapped out.
        say: tells the operator a line.
        start: starts the worker.

    Attributes:
        ready: what answers, once it was started.
        walls: those around the worker, by name, once it was started.
    """

    def __init__(
        self,
        source: Source,
        *,
        attester: Attests,
        clients: Sequence[Client] | None,
        name: str = "",
        limits: Limits | None = None,
        lifetime: float = _DAY,
        overlap: float = 3600.0,
        threads: int | None = None,
        allow_swap: bool = False,
        say: Callable[[str], None] = lambda line: None,
        start: Start = start_worker,
    ) -> None:
        self._source, self._attester, self._limits = source, attester, limits or Limits()
        self._allow_swap, self._say, self._start = allow_swap, say, start
        self._on_lost: Callable[[], object] = lambda: None
        prepare = source.prepare()
        few = 1 if prepare.imports in ("table", "loopback") else len(os.sched_getaffinity(0))
        self._prepare = prepare
        self._boot = Boot(
            source.told(),
            name or source.name,
            None if clients is None else list(clients),
            self._limits,
            lifetime,
            overlap,
            source.accelerators if isinstance(source, LoopbackEngine) else 0,
            threads or few,
        )
        self._front: Front | None = None
        self._process: Process | None = None
        self._connector: Connector | None = None
        self._closing = threading.Lock()
        self.ready: Ready | None = None
        self.walls: dict[str, bool | None] = {}

    @property
    def app(self) -> Front:
        """The ASGI application. Raises InputError before `start`."""
        if self._front is None:
            raise InputError("the service was not started", fix="Call start() first")
        return self._front

    @property
    def pid(self) -> int:
        """The process id of what guards the worker. Raises InputError before `start`."""
        if self._process is None:
            raise InputError("the service was not started", fix="Call start() first")
        return self._process.pid

    def stats(self) -> dict[str, int]:
        """Return counts of what happened; nothing else is known here."""
        return {} if self._front is None else self._front.stats()

    def start(self) -> Ready:
        """Start the worker and return what answers; blocks until the model is loaded.

        Raises:
            PolicyRefused: the machine lacks a wall, or would write the worker's memory to a disk.
            ProtocolError: the worker ended, or broke the protocol.
            CloisterError: what it ran into while it loaded.
        """
        if self._process is not None:
            raise InputError("a service is started once", fix="Make another one")
        ours, theirs = socket.socketpair()
        passed, handing = [theirs], None
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        if self._prepare.handed:
            handing, handed = socket.socketpair()
            passed.append(handed)
        try:
            process = self._process = self._start(passed)  # 1
        except BaseException:
            ours.close()
            raise
        finally:
            for end in passed:
                end.close()
        weakref.finalize(self, process.close)
        try:
            self.ready = self._started(process, handing)
        except BaseException:
            ours.close()
            self.close()
            raise
        self._front = Front(ours, self._attester, self._limits, say=self._say, on_lost=self._lost)
        return self.ready

    def when_lost(self, act: Callable[[], object]) -> None:
        """Have `act` called, on the server's loop, when the worker is gone and nobody closed the service."""
        self._on_lost = act

    def why(self) -> str:
        """Return in a few words how the worker ended; empty where that is not known."""
        code = self._process.wait(_WHY_SECONDS) if self._process is not None else None
        if code is None or code == 0:
            return ""
        if code > 0:
            return f"exit code {code}"
        if -code == signal.SIGSYS:
            return "killed for a system call that only an attack needs"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def close(self) -> None:
        """End the worker, and every request with it. May be called again, from any thread."""
        with self._closing:
            if self._front is not None:
                self._front.close()
            if self._connector is not None:
                self._connector.close()
                self._connector = None
            if self._process is not None:
                self._process.close()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lost(self) -> None:
        self._on_lost()

    def _started(self, process: Process, handing: socket.socket | None) -> Ready:
        if handing is not None and isinstance(self._source, LoopbackEngine):
            self._connector = Connector(handing, self._source.address)
        try:
            channel = _met(process.socket)  # 2
            channel.send(encode(self._prepare))
            confined = _said(channel)
        except Gone:
            raise _refusal(process) from None
        if not isinstance(confined, Confined):
            raise ProtocolError("the worker answered before its walls stood")
        self.walls = dict(confined.walls)
        self._check_swap()  # 3
        lender = self._source.lender if isinstance(self._source, SealedFolder) else None
        try:
            channel.send(encode(self._boot))  # 4
            ready = _answered(channel, lender)
        except Gone:
            why = self.why()
            raise ProtocolError(
                f"the worker ended before it was ready{f' ({why})' if why else ''}",
                fix="See whether the machine ran out of memory; start again",
            ) from None
        channel.flush()  # 5
        return ready

    def _check_swap(self) -> None:
        if self.walls.get("memory locked") or not _swaps():
            return
        if not self._allow_swap:
            raise PolicyRefused(
                "the worker's memory is not locked, and this machine swaps: prompts could come to lie on a "
                "disk",
                fix="Run `swapoff -a`, or let it lock memory (LimitMEMLOCK=infinity); or, if you accept "
                "that, --allow-swap",
            )
        self._say(
            "WARNING: this machine may write the worker's memory to its swap space: prompts, answers and "
            "keys could come to lie on a disk."
        )


def _met(sock: socket.socket) -> Channel:
    identity = Identity.generate("service")
    try:
        send_clear(sock, encode(Meet(identity.public.to_json(), PROTOCOL)))
        worker = PublicIdentity.from_json(recv_clear(sock, _MAX_IDENTITY, _START_SECONDS))
        channel = Channel(Link(identity, worker, PROTOCOL, initiator=True, auto_grant=False), sock)
        channel.open(_START_SECONDS)
    except (InputError, IntegrityError) as error:
        raise ProtocolError(f"no session with the worker: {error.what}") from error
    return channel


def _said(channel: Channel) -> Confined | KeyWanted | BrokerAsk | EvidenceWanted | Ready | Failed:
    try:
        return decode_said(channel.receive(_MAX_SAID))
    except IntegrityError as error:
        raise ProtocolError(f"what the worker says does not verify: {error.what}") from error


def _answered(channel: Channel, lender: Lends | None) -> Ready:
    while True:
        said = _said(channel)
        match said:
            case Ready():
                return said
            case Failed():
                raise error_of(said)
            case Confined():
                raise ProtocolError("the worker put its walls up twice")
        if lender is None or said.dataset != 0:
            raise ProtocolError("the worker asked for a key that nothing it was told needs")
        channel.send(encode(_lent(lender, said)))


def _lent(lender: Lends, said: KeyWanted | BrokerAsk | EvidenceWanted) -> Question:
    match said:
        case KeyWanted():
            return Key(lender.lend(said.wrapped))
        case BrokerAsk():
            return lender.carry(said)
        case EvidenceWanted():
            return lender.attest(said)


def _refusal(process: Process) -> CloisterError:
    """Return why a worker did not come up. Nothing but libraries was in it by then."""
    code, words = process.wait(_WHY_SECONDS), process.last_words()
    last = words.splitlines()[-1][:_LAST_LINE].rstrip(".") if words else "it said nothing"
    if code == PolicyRefused.exit_code:
        return PolicyRefused(
            f"no worker can be walled off on this machine: {last}",
            fix="See `cloister enclave setup --check`; nothing is served with less",
        )
    return ProtocolError(f"the worker's process did not come up: {last}")


def _swaps() -> bool:
    """Tell whether this machine has swap space; where that cannot be read, it may."""
    try:
        return len(_SWAPS.read_text().splitlines()) > 1
    except OSError:
        return True
