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

import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from cloister.enclave.broker import Attests
from cloister.enclave.sandbox import Child, spawn
from cloister.errors import InputError, PolicyRefused
from cloister.inference.service.boot import Boot, Ready
from cloister.inference.service.connections import Connector
from cloister.inference.service.credentials import Client
from cloister.inference.service.front import Front
from cloister.inference.service.limits import Limits
from cloister.inference.service.source import LoopbackEngine, SealedFolder, Source
from cloister.inference.service.talk import (
    SWAPS,
    Process,
    booted,
    machine_swaps,
    prepared,
)
from cloister.runtime.workers.launch import how_it_ended

__all__ = ["MODULE", "Service", "Start", "start_worker"]

MODULE: Final = "cloister.inference.service.process"
_SOCKET_BYTES: Final = 1 << 20
_DAY: Final = 86_400.0


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

    Raises:
        InputError: the name is none.

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
        self._source: Source | None = source
        self._attester, self._limits = attester, limits or Limits()
        self._allow_swap, self._say, self._start = allow_swap, say, start
        self._on_lost: Callable[[], object] = lambda: None
        named = name or source.name
        if not (1 <= len(named) <= 128 and named.isascii() and named.isprintable()):
            raise InputError(
                "a model's name is 1 to 128 printable ASCII characters", fix="Give it with --name"
            )
        prepare = source.prepare()
        few = 1 if prepare.imports in ("table", "loopback") else len(os.sched_getaffinity(0))
        self._prepare = prepare
        self._boot = Boot(
            source.told(),
            named,
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
            self._source = None  # with it goes what lent a key: strangers are heard from now on
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
        return "" if self._process is None else how_it_ended(self._process)

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
        channel, self.walls = prepared(process, self._prepare)  # 2
        self._check_swap()  # 3
        lender = self._source.lender if isinstance(self._source, SealedFolder) else None
        return booted(process, channel, self._boot, lender)  # 4, 5

    def _check_swap(self) -> None:
        if self.walls.get("memory locked") or not machine_swaps(SWAPS):
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
