"""A service on a real socket, in this process: H1's key ring and an application, without a worker or walls.

`Sabotage` says what goes wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
from tests.enclave.doubles import AppraiserDouble, AttesterDouble
from tests.inference.openai.engine import ScriptedEngine

from cloister.errors import ProtocolError
from cloister.inference.application import Application, Request
from cloister.inference.client import AsyncPrivateClient, Proxy
from cloister.inference.client.asgi import (
    BodyTooLong,
    ClientGone,
    Incoming,
    Receive,
    Scope,
    Send,
)
from cloister.inference.client.sealedanswers import SealedAnswers
from cloister.inference.client.verify import Verifier
from cloister.inference.exchange import (
    EXCHANGE_PATH,
    KEYS_PATH,
    REQUEST_PREFIX,
    KeyRing,
    Published,
    keys_report_data,
)
from cloister.inference.openai import OpenAIApp, SealingApp
from cloister.inference.webserver import listen

DIGEST = "ab" * 32
POLICY = "cd" * 32
TOKEN = "clst-" + "t" * 43
MAX_BODY = 1 << 20


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Sabotage:
    """What goes wrong; nothing at first.

    Attributes:
        published: alters what the service shows: (document, nonce) -> document.
        plain: answers every exchange with these: status, headers, body.
        alter: alters the answer's bytes, piece by piece; None as a piece cuts the connection.
        refuse: reasons with which the next requests are refused.
        keys_status: of the answer to those who ask for keys.
    """

    published: Callable[[Published, bytes], Published] = lambda document, nonce: document
    plain: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
    alter: Callable[[int, bytes], bytes | None] = lambda number, piece: piece
    refuse: list[tuple[int, str]] = field(default_factory=list)
    keys_status: int = 200


class ServiceDouble:
    """The ASGI application of a service.

    Attributes:
        asked: requests as the application got them.
        outside: (method, path, headers) of all that came over the wire.
        wire: bytes of every body that came or went.
    """

    def __init__(self, app: Application, *, accelerators: int = 0, lifetime: float = 3600) -> None:
        self.app = app
        self.ring = KeyRing(
            "scripted", DIGEST, accelerators, lifetime=lifetime, overlap=600, max_body=MAX_BODY
        )
        self.attester = AttesterDouble()
        self.sabotage = Sabotage()
        self.asked: list[Request] = []
        self.credentials: list[str] = []
        self.outside: list[tuple[str, str, dict[bytes, bytes]]] = []
        self.wire = bytearray()
        self.cancelled = 0
        self.running = 0

    def rotate(self) -> None:
        """Lose all keys, as a restart does."""
        self.ring = KeyRing("scripted", DIGEST, lifetime=3600, overlap=600, max_body=MAX_BODY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.outside.append((scope["method"], scope["path"], dict(scope["headers"])))
        if scope["path"] == KEYS_PATH:
            await self._keys(scope, send)
        elif scope["path"] == EXCHANGE_PATH and scope["method"] == "POST":
            incoming = Incoming(receive, 64 << 20)
            with contextlib.suppress(ClientGone, BodyTooLong):
                body = await incoming.body()
                self.wire += body
                self.running += 1
                before = len(self.asked)
                try:
                    await incoming.while_there(self._exchange(body, send))
                finally:
                    self.running -= 1
                    self.cancelled += len(self.asked) - before - self._ended
        else:
            await _send(send, 403, b'{"error": {"message": "no plaintext"}}')

    _ended = 0

    async def _keys(self, scope: Scope, send: Send) -> None:
        nonce = bytes.fromhex(scope["query_string"].decode().removeprefix("nonce="))
        keys = self.ring.current(now())
        evidence = self.attester.attest(keys_report_data(nonce, keys))
        document = self.sabotage.published(Published(keys.to_bytes(), evidence.to_json()), nonce)
        await _send(send, self.sabotage.keys_status, document.to_json())

    async def _exchange(self, body: bytes, send: Send) -> None:
        sabotage = self.sabotage
        if sabotage.plain is not None:
            status, headers, content = sabotage.plain
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
            return
        if sabotage.refuse:
            status, reason = sabotage.refuse.pop(0)
            await _send(send, status, b'{"refused": "%s"}' % reason.encode())
            return
        try:
            answering = self.ring.open(body[:REQUEST_PREFIX], now())
            answering.feed(body[REQUEST_PREFIX:])
            head, content = answering.request()
        except ProtocolError as error:
            reason = getattr(error, "reason", "request")
            status = {"stale-key": 409, "too-large": 413}.get(reason, 400)
            await _send(send, status, b'{"refused": "%s"}' % reason.encode())
            return
        request = Request(head.method, head.path, head.headers, content, "somebody")
        self.asked.append(request)
        self.credentials.append(head.credential)
        reply = await self.app(request)
        number = 0

        async def out(piece: bytes) -> None:
            nonlocal number
            changed = sabotage.alter(number, piece)
            number += 1
            if changed is None:
                raise _CutError
            self.wire += changed
            await send({"type": "http.response.body", "body": changed, "more_body": True})

        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            if isinstance(reply.body, bytes):
                await out(answering.head(reply.status, reply.headers, False))
                await out(answering.body(reply.body))
            else:
                await out(answering.head(reply.status, reply.headers, True))
                try:
                    async for piece in reply.body:
                        await out(answering.body(piece))
                finally:
                    await reply.body.aclose()  # type: ignore[attr-defined]
            await out(answering.end(now()))
        except _CutError:
            return
        await send({"type": "http.response.body", "body": b""})


class _CutError(Exception):
    pass


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an ASGI application from a thread; yields its address."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, log_level="critical", access_log=False
    )
    server = uvicorn.Server(config)

    async def work() -> None:
        try:
            await server.serve(sockets=[listening])
        finally:
            if hasattr(app, "aclose"):
                await app.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()


@dataclass
class Proxied:
    """A proxy that serves: its address, and itself."""

    address: str
    proxy: Proxy


@contextlib.contextmanager
def proxied(url: str, *, answers: SealedAnswers | None = None, **changes: Any) -> Iterator[Proxied]:
    """Run a proxy before the service at `url`, in a thread. Raises what its start raises."""
    listening = listen("127.0.0.1", 0)
    started: Future[tuple[Proxy, uvicorn.Server]] = Future()

    async def work() -> None:
        client = AsyncPrivateClient(url, changes.pop("policy", None) or verifier(), **changes)
        try:
            async with Proxy(client, answers=answers) as proxy:
                config = uvicorn.Config(
                    proxy, http="h11", ws="none", lifespan="off", log_config=None, log_level="critical"
                )
                server = uvicorn.Server(config)
                started.set_result((proxy, server))
                await server.serve(sockets=[listening])
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
    thread.start()
    try:
        proxy, server = started.result(10)
        try:
            yield Proxied(f"http://127.0.0.1:{listening.getsockname()[1]}", proxy)
        finally:
            server.should_exit = server.force_exit = True
    finally:
        thread.join(10)
        listening.close()


def scripted(*script: str | Exception) -> tuple[ScriptedEngine, ServiceDouble]:
    """A service whose model answers from a script."""
    engine = ScriptedEngine(*script)
    return engine, ServiceDouble(SealingApp(OpenAIApp(engine)))


def verifier(**changes: Any) -> Verifier:
    """A client's judgement of the double's evidence."""
    return Verifier(changes.pop("appraise", AppraiserDouble()), policy_digest=POLICY, **changes)


def eventually(done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until something is so, at most `seconds`."""
    end = now() + timedelta(seconds=seconds)
    while not done():
        if now() > end:
            return False
        threading.Event().wait(0.01)
    return True


def run(work: Any) -> Any:
    """Run a coroutine, for at most half a minute."""
    return asyncio.run(asyncio.wait_for(work, 30))
