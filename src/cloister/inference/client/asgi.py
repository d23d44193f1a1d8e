"""What the proxy and the relay share of ASGI: bodies, whole answers, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final

__all__ = [
    "SLOWEST",
    "Application",
    "BodyTooLong",
    "ClientGone",
    "Incoming",
    "Receive",
    "Scope",
    "Send",
    "TooSlow",
    "headers_of",
    "send_whole",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SLOWEST: Final = 16 << 10
"""Bytes a second."""


class ClientGone(Exception):
    """Whoever asked has closed the connection: nobody waits for an answer."""


class BodyTooLong(Exception):
    """A request's body exceeds the limit."""


class TooSlow(Exception):
    """A request's body does not come on, or hardly."""


class Incoming:
    """A request as it comes, and the end of its connection.

    Args:
        receive: of ASGI; nobody else may call it.
        limit: bytes of the body.
        patience: seconds that are waited for it, beside the time that its bytes may take at `SLOWEST`; None
            for any time.
    """

    def __init__(self, receive: Receive, limit: int, *, patience: float | None = None) -> None:
        self._receive, self._limit, self._patience = receive, limit, patience
        self._read = asyncio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body. Raises ClientGone, BodyTooLong, TooSlow."""
        left, waited, loop = self._limit, 0.0, asyncio.get_running_loop()
        while True:
            began = loop.time()
            allowed = None
            if self._patience is not None:
                allowed = self._patience + (self._limit - left) / SLOWEST - waited
            try:
                async with asyncio.timeout(allowed):
                    message = await self._receive()
            except TimeoutError:
                raise TooSlow from None
            waited += loop.time() - began
            if message["type"] == "http.disconnect":
                raise ClientGone
            data: bytes = message.get("body", b"")
            left -= len(data)
            if left < 0:
                raise BodyTooLong
            if data:
                yield data
            if not message.get("more_body", False):
                self._read.set()
                return

    async def body(self) -> bytes:
        """Return the whole body. Raises as `stream`."""
        return b"".join([data async for data in self.stream()])

    async def while_there(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end, or cancel it where the client goes away after its request."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():  # this very call is cancelled
                raise

    async def _gone(self) -> None:
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return headers by lower-case name; of two of one name, what cannot be mistaken for either alone."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found[name] = found[name] + b", " + value if name in found else value
    return found


async def send_whole(
    send: Send, status: int, content: bytes, kind: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send one whole answer of the media type `kind`; nothing may keep it."""
    lines = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": content})
