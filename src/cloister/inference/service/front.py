"""The front: an ASGI application that takes sealed requests, and sees ciphertext, sizes and times.

    GET  /.well-known/cloister/keys?nonce=       the worker's key set, and evidence that carries the nonce
    POST /.well-known/cloister/exchange          a sealed request to the worker; its answer, as it comes
    GET  /                                       where these two are
    anything else                                403, unread: there is no path that takes plaintext

It runs in the process that a server calls, outside the worker, and is raw ASGI: it is on every request's
way. A request that fits one read of the server, with an answer that comes whole, costs no further task:
whether its client is still there is only looked at once an answer takes long, or streams.

Refusals before an answer begins are one word (see `exchange.refusals`). An answer that the worker cannot end
well ends here without its final frame, which its client notices. Nothing is logged; `counts` only count.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from cloister.enclave.broker import Attests
from cloister.errors import CloisterError, InputError
from cloister.inference.exchange import EXCHANGE_PATH, KEYS_PATH
from cloister.inference.service.limits import Limits
from cloister.inference.service.pipe import Pipe
from cloister.inference.service.responses import (
    CLOSE,
    FRESH,
    JSON,
    NO_PLAINTEXT,
    ROOT,
    SEALED,
    Send,
    length,
    refuse,
    start,
    whole,
)
from cloister.inference.service.streams import Stream, Streams
from cloister.inference.service.vouching import Vouching

__all__ = ["Front", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_PATIENCE: Final = 0.05
"""Seconds for which an answer is waited for before anybody asks whether its client is still there."""
_NONCE: Final = re.compile(rb"nonce=([0-9a-f]{64})", re.ASCII)


class _GoneError(Exception):
    """The client is gone."""


class Front:
    """The application.

    Args:
        sock: the front's end of the pipe to the worker.
        attester: makes evidence of this machine.
        limits: what is taken at once.
        say: tells the operator a line.
        on_lost: called once, on the loop, when the worker is gone.

    Raises (on a call):
        InputError: it is served by a second event loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        attester: Attests,
        limits: Limits,
        *,
        say: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._limits, self._on_lost = limits, on_lost
        self._streams = Streams(limits)
        self._pipe = Pipe(sock, self._streams.on_frame, self._lost)
        self._vouching = Vouching(attester, limits.attestations, say)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's own start and end."""
        if self._loop is None:
            self._attach()
        elif self._loop is not asyncio.get_running_loop():
            raise InputError("a service was given to a second event loop", fix="Start another service")
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)

    def stats(self) -> dict[str, int]:
        """Return what was counted: requests by how they ended, and those that are open."""
        return {**self._streams.counts, "open": self._streams.busy}

    def close(self) -> None:
        """Close the pipe; every request that is open ends. From another thread than the loop's, too."""
        self._vouching.close()
        loop = self._loop
        if loop is not None and not loop.is_closed() and loop.is_running():
            loop.call_soon_threadsafe(self._end)
        else:
            self._pipe.close()

    def _attach(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams.pipe = self._pipe
        self._pipe.attach(self._loop)
        self._sweeping()

    def _sweeping(self) -> None:
        if self._loop is not None:
            self._streams.end_stalled(self._loop.time())
            self._sweep = self._loop.call_later(min(self._limits.stall_seconds / 4, 5.0), self._sweeping)

    def _lost(self) -> None:
        self._streams.on_lost()
        self._on_lost()

    def _end(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._pipe.close()
        self._streams.on_lost()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == EXCHANGE_PATH and method == "POST":
            await self._exchange(scope, receive, send)
        elif path == KEYS_PATH and method == "GET":
            await self._keys(scope, receive, send)
        elif path == "/" and method == "GET":
            await whole(send, 200, ROOT, JSON)
        else:
            self._streams.counts["plaintext"] += 1
            await whole(send, 403, NO_PLAINTEXT, JSON, CLOSE)

    # --- keys

    async def _keys(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _NONCE.fullmatch(scope["query_string"])
        if found is None:
            await self._refuse(send, "request")
            return
        work = asyncio.ensure_future(self._published(bytes.fromhex(found[1].decode())))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                self._streams.counts["attested"] += 1
                await whole(send, 200, work.result(), JSON, FRESH)
        except CloisterError:
            await self._refuse(send, "busy")
        finally:
            work.cancel()
            gone.cancel()

    async def _published(self, nonce: bytes) -> bytes:
        return await self._vouching.publish(nonce, await self._streams.key_set())

    # --- exchange

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _declared(scope) > self._limits.sealed_body:
            await self._refuse(send, "too-large", CLOSE)
            return
        stream = self._streams.open()
        if stream is None:
            await self._refuse(send, "busy", CLOSE)
            return
        stream.task = asyncio.current_task()
        try:
            await self._upload(stream, receive)
            await self._answer(stream, receive, send)
        except _GoneError:
            pass
        except asyncio.CancelledError:
            if not stream.gone:
                raise
            if not stream.begun:
                await self._refuse(send, "request", CLOSE)
        finally:
            self._streams.close(stream)

    async def _upload(self, stream: Stream, receive: Receive) -> None:
        """Pass the request on, all of it, unless it was refused meanwhile: then read on, for its client to
        read why."""
        assert self._loop is not None  # noqa: S101  # a request is served by a loop
        total, first, more, began = 0, True, True, self._loop.time()
        while more:
            # behind the time that its bytes may take, a client stands still however often it sends one
            stream.since = min(self._loop.time(), began + total / self._limits.slowest)
            message = await receive()
            stream.since = None
            if message["type"] == "http.disconnect":
                raise _GoneError
            body, more = message.get("body", b""), message.get("more_body", False)
            total += len(body)
            if total > self._limits.sealed_body:
                self._streams.close(stream)
                stream.reason = "too-large"
                return
            if stream.reason is None:
                self._streams.send(stream, body, first=first, last=not more)
                first = False
                if self._pipe.full:
                    full = self._loop.time()
                    await self._pipe.drained()
                    began += self._loop.time() - full

    async def _answer(self, stream: Stream, receive: Receive, send: Send) -> None:
        assert self._loop is not None  # noqa: S101  # as above
        watching: list[asyncio.Task[None]] = []
        timer = self._loop.call_later(_PATIENCE, self._watch, stream, receive, watching)
        try:
            while True:
                await stream.wait()
                if stream.gone:
                    raise _GoneError
                if stream.reason is not None and not stream.begun:
                    await self._refuse(send, stream.reason, CLOSE)
                    return
                data, done = stream.take(), stream.done
                stream.since = self._loop.time()
                if not stream.begun:
                    stream.begun = True
                    await start(send, 200, [*SEALED, length(data)] if done else SEALED)
                await send({"type": "http.response.body", "body": data, "more_body": not done})
                stream.since = None
                if done:
                    return
                self._pipe.send(stream.gave(len(data)))
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()

    def _watch(self, stream: Stream, receive: Receive, watching: list[asyncio.Task[None]]) -> None:
        async def watch() -> None:
            await _gone(receive)
            stream.gone = True
            self._streams.close(stream)
            stream.done = True
            stream.wake()

        if self._loop is not None:
            watching.append(self._loop.create_task(watch()))

    async def _refuse(self, send: Send, reason: str, *headers: tuple[bytes, bytes]) -> None:
        self._streams.counts[reason] += 1
        await refuse(send, reason, *headers)


async def _gone(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
