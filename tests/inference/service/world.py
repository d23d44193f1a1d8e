"""A service without walls: front and door on one loop, a pair of sockets between them, any application.

Importable, not collected. `Asker` is a client that has verified nothing: it takes the key set as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
from tests.enclave.doubles import AttesterDouble

from cloister.inference.application import Reply, Request
from cloister.inference.exchange import (
    EXCHANGE_PATH,
    KEYS_PATH,
    Asking,
    KeyRing,
    KeySet,
    Published,
    RequestHead,
    ResponseHead,
)
from cloister.inference.service.credentials import Client, Register
from cloister.inference.service.door import Door
from cloister.inference.service.front import Front
from cloister.inference.service.limits import Limits
from cloister.inference.service.pipe import Pipe

NONCE = bytes(range(32))
TEXT = {"content-type": "text/plain"}


@dataclass
class EchoApp:
    """Answers with what it was asked, whole or in pieces; keeps what became of it.

    Attributes:
        asked: every request.
        closed: how many iterators were closed before their end.
        gate: awaited before each piece, where there is one.
    """

    asked: list[Request] = field(default_factory=list)
    closed: int = 0
    ended: int = 0
    gate: Callable[[], Awaitable[object]] | None = None
    shut: bool = False

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        if request.path == "/raise":
            raise RuntimeError("what was asked: " + request.body.decode())
        if request.path == "/break":
            return Reply(200, TEXT, self._pieces(request.body, breaks=True))
        if request.path == "/stream":
            return Reply(200, TEXT, self._pieces(request.body))
        if request.path == "/large":
            return Reply(200, TEXT, bytes(int(request.body)))
        if request.path == "/long":
            return Reply(200, TEXT, self._long(int(request.body)))
        if self.gate is not None:
            await self.gate()
        return Reply(200, TEXT | {"x-client": request.client}, b"echo " + request.body)

    async def _pieces(self, body: bytes, *, breaks: bool = False) -> AsyncIterator[bytes]:
        try:
            for word in body.split():
                if self.gate is not None:
                    await self.gate()
                yield word + b" "
            if breaks:
                raise RuntimeError("in the middle of " + body.decode())
            self.ended += 1
        finally:
            self.closed += 1

    async def _long(self, pieces: int) -> AsyncIterator[bytes]:
        try:
            for _ in range(pieces):
                yield bytes(1000)
                await asyncio.sleep(0)
            self.ended += 1
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        self.shut = True


@dataclass
class World:
    """One running service."""

    front: Front
    door: Door
    ring: KeyRing
    application: Any
    client: httpx2.AsyncClient
    lines: list[str]

    async def keys(self) -> KeySet:
        answer = await self.client.get(KEYS_PATH, params={"nonce": NONCE.hex()})
        return KeySet.from_bytes(Published.from_json(answer.raise_for_status().content).keys)


@contextlib.asynccontextmanager
async def world(
    application: Any = None,
    *,
    clients: Sequence[Client] | None = None,
    limits: Limits | None = None,
    attester: Any = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    lifetime: float = 3600.0,
) -> AsyncIterator[World]:
    """Yield a service, asked over ASGI in this very loop."""
    application = application or EchoApp()
    limits = limits or Limits()
    ours, theirs = socket.socketpair()
    ring = KeyRing("echo", "e" * 64, lifetime=lifetime, overlap=60, max_body=limits.body)
    door = Door(ring, application, Register(clients), limits, clock=clock)
    over = asyncio.Event()
    door.attach(Pipe(theirs, door.on_frame, over.set), asyncio.get_running_loop())
    lines: list[str] = []
    front = Front(ours, attester or AttesterDouble(), limits, say=lines.append, on_lost=lambda: None)
    transport = httpx2.ASGITransport(app=front)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        try:
            yield World(front, door, ring, application, client, lines)
        finally:
            front.close()
            await asyncio.wait_for(over.wait(), 10)
            await door.close()


def opened(asking: Asking, answer: bytes) -> tuple[ResponseHead, bytes]:
    """Return head and body of a whole answer, checked to its end."""
    events = asking.feed(answer)
    asking.finish()
    assert isinstance(events[0], ResponseHead)
    return events[0], b"".join(event for event in events[1:] if isinstance(event, bytes))


async def ask(
    world: World, path: str, body: bytes = b"", *, token: str = "", method: str = "POST"
) -> tuple[ResponseHead, bytes]:
    """Ask once, and check the answer to its end."""
    asking = Asking(await world.keys(), RequestHead(method, path, credential=token), body)
    answer = await world.client.post(EXCHANGE_PATH, content=asking.request)
    assert answer.status_code == 200, answer.content
    return opened(asking, answer.content)
