"""The door, in the worker: sealed requests in by the pipe, sealed answers out; plaintext on this side alone.

Of each stream, in this order:

1. there is room for it, or it is refused as "busy";
2. its first bytes open under a key in force, and were never seen before; what follows opens, frame by frame,
   and is kept only where its credential is a client's: strangers take no room;
3. at its end the request is whole; else it is refused, in the one word for everything that does not open;
4. it was a client's, or the answer, sealed like any other, is the one 401;
   and other clients' places are not taken by this one, or it is told 429;
5. the application answers; the answer goes out in frames as its pieces come, each as soon as it is there.

A refusal before step 4 is one byte on the pipe, in the clear. Whatever happens later is said inside an
answer. An answer that breaks off has no final frame, which its client notices. What an error says stays
here: the pipe, the front and the logs see none of it.

A client that is gone (CANCEL) has its work cancelled. A front that breaks the pipe's rules harms itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from cloister.crypto import HoldsSecret
from cloister.inference.application import Application, Reply, Request
from cloister.inference.exchange import REQUEST_PREFIX, Answering, KeyRing, Refused, RequestHead, StaleKey
from cloister.inference.openai.errors import Refusal
from cloister.inference.service.credentials import Register
from cloister.inference.service.limits import Limits
from cloister.inference.service.pipe import CHUNK, REASONS, WINDOW, Kind, Pipe, frame

__all__ = ["Door"]

_TICK_SECONDS: Final = 15.0
_UNAUTHORISED: Final = Refusal(
    "This service does not know you. Ask whoever runs it for a token.", status=401, code="invalid_api_key"
)
_TOO_MANY: Final = Refusal(
    "This client has too many requests open. Try again when some are answered.",
    status=429,
    code="rate_limit_exceeded",
    headers={"retry-after": "1"},
)
_FAILED: Final = Refusal("The request could not be answered.", status=500, code="internal_error")


def _now() -> datetime:
    return datetime.now(UTC)


class _Stream(HoldsSecret):
    """One request and its answer."""

    __slots__ = (
        "answering",
        "client",
        "credit",
        "held",
        "judged",
        "more",
        "number",
        "size",
        "task",
    )

    def __init__(self, number: int) -> None:
        self.number, self.size, self.credit = number, 0, WINDOW
        self.held: bytearray | None = bytearray()
        self.answering: Answering | None = None
        self.task: asyncio.Task[None] | None = None
        self.more: asyncio.Event | None = None  # credit came
        self.client: str | None = None  # whose it is, once that was judged; None: a stranger's
        self.judged = False


class Door(HoldsSecret):
    """Serves one application under one ring of keys.

    Args:
        ring: the keys.
        application: answers.
        register: knows who may ask.
        limits: what is taken at once.
        clock: UTC.
    """

    def __init__(
        self,
        ring: KeyRing,
        application: Application,
        register: Register,
        limits: Limits,
        *,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._ring, self._application, self._register = ring, application, register
        self._limits, self._clock = limits, clock
        self._streams: dict[int, _Stream] = {}
        self._held = 0
        self._answered: Counter[str] = Counter()  # requests of each client that are answered now
        self._share = limits.share or max(limits.streams // 2, 1)
        self._pipe: Pipe | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, pipe: Pipe, loop: asyncio.AbstractEventLoop) -> None:
        """Serve on this loop; `pipe` calls `on_frame`."""
        self._pipe, self._loop = pipe, loop
        pipe.attach(loop)
        self._tick()

    async def close(self) -> None:
        """Cancel what is open, close the application and destroy the keys."""
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        for number in list(self._streams):
            self._forget(number)
        await asyncio.gather(*tasks, return_exceptions=True)
        closing = self._application.aclose()
        if isinstance(closing, Awaitable):
            await closing
        self._ring.close()

    def on_frame(self, kind: Kind, number: int, payload: bytes) -> None:
        """Take a frame. One of a stream that is over, or was refused, is dropped."""
        if kind is Kind.OPEN:
            self._open(number)
            return
        if kind is Kind.KEYS:
            self._send(frame(Kind.KEYSET, number, self._ring.current(self._clock()).to_bytes()))
            return
        stream = self._streams.get(number)
        if stream is None:
            return
        try:
            if kind is Kind.DATA:
                self._data(stream, payload)
            elif kind is Kind.EOF:
                self._whole(stream)
            elif kind is Kind.CREDIT:
                stream.credit = min(stream.credit + int.from_bytes(payload[:4], "big"), WINDOW)
                if stream.more is not None:
                    stream.more.set()
            else:
                self._forget(number)
        except (Refused, StaleKey) as refusal:
            self._refuse(number, refusal.reason)
        except Exception:  # noqa: BLE001  # a fault of ours, of which nobody outside is to learn which
            self._refuse(number, "request")

    def _open(self, number: int) -> None:
        if number in self._streams or len(self._streams) >= self._limits.streams:
            self._refuse(number, "busy")  # 1
            return
        self._streams[number] = _Stream(number)

    def _data(self, stream: _Stream, payload: bytes) -> None:
        if not stream.judged or stream.client is not None:
            stream.size += len(payload)
            self._held += len(payload)
        if self._held > self._limits.held:
            self._refuse(stream.number, "busy")  # 1
            return
        if stream.answering is not None:
            stream.answering.feed(payload)  # 2
        elif stream.held is not None:
            stream.held += payload
            if len(stream.held) >= REQUEST_PREFIX:
                held, stream.held = bytes(stream.held), None
                stream.answering = self._ring.open(held[:REQUEST_PREFIX], self._clock())  # 2
                stream.answering.feed(held[REQUEST_PREFIX:])
        self._judge(stream)

    def _judge(self, stream: _Stream) -> None:
        """Look at the credential as soon as it has come; of a stranger's request nothing more is kept."""
        answering = stream.answering
        if stream.judged or answering is None or answering.asked is None:
            return
        stream.judged, stream.client = True, self._register.name_of(answering.asked.credential)
        if stream.client is None:
            answering.drop()
            self._held -= stream.size
            stream.size = 0

    def _whole(self, stream: _Stream) -> None:
        if stream.answering is None:
            self._refuse(stream.number, "request")  # 3
        elif stream.task is None and self._loop is not None:
            head, body = stream.answering.request()  # 3
            stream.task = self._loop.create_task(self._answer(stream, stream.answering, head, body))

    async def _answer(self, stream: _Stream, answering: Answering, head: RequestHead, body: bytes) -> None:
        self._answered[stream.client or ""] += 1
        try:
            reply = await self._reply(stream.client, head, body)
            if isinstance(reply.body, bytes):
                data = answering.head(reply.status, reply.headers, streamed=False)
                data += answering.body(reply.body) + answering.end(self._clock())
                await self._out(stream, data, last=True)
                return
            async with _closing(reply.body) as pieces:
                await self._out(stream, answering.head(reply.status, reply.headers, streamed=True))
                async for piece in pieces:
                    if piece:
                        await self._out(stream, answering.body(piece))
            await self._out(stream, answering.end(self._clock()), last=True)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001  # whatever it is, its text stays here: it may hold what was asked
            self._send(frame(Kind.CANCEL, stream.number))
        finally:
            self._answered[stream.client or ""] -= 1
            self._forget(stream.number, stream)

    async def _reply(self, client: str | None, head: RequestHead, body: bytes) -> Reply:
        if client is None:
            return _UNAUTHORISED.reply()  # 4
        if client and self._register.several and self._answered[client] > self._share:
            return _TOO_MANY.reply()
        try:
            return await self._application(Request(head.method, head.path, head.headers, body, client))  # 5
        except Exception:  # noqa: BLE001  # an application does not raise; if it does, its words are private
            return _FAILED.reply()

    async def _out(self, stream: _Stream, data: bytes, *, last: bool = False) -> None:
        """Send bytes of an answer as far as there is credit; wait for more."""
        at, end = 0, len(data)
        while at < end:
            count = min(end - at, stream.credit, CHUNK)
            if count == 0:
                stream.more = asyncio.Event()
                await stream.more.wait()
                stream.more = None
                continue
            part = frame(Kind.DATA, stream.number, memoryview(data)[at : at + count])
            at += count
            stream.credit -= count
            if last and at == end:
                part += frame(Kind.END, stream.number)
            self._send(part)

    def _send(self, data: bytes) -> None:
        if self._pipe is not None:
            self._pipe.send(data)

    def _refuse(self, number: int, reason: str) -> None:
        self._forget(number)
        self._send(frame(Kind.REFUSED, number, bytes([REASONS.index(reason)])))

    def _forget(self, number: int, only: _Stream | None = None) -> None:
        stream = self._streams.get(number)
        if stream is None or (only is not None and stream is not only):
            return
        del self._streams[number]
        self._held -= stream.size
        if stream.task is not None and only is None:
            stream.task.cancel()

    def _tick(self) -> None:
        """Rotate keys, and destroy old ones, in time, also where nobody asks."""
        if self._loop is not None and self._pipe is not None and not self._pipe.lost:
            self._ring.current(self._clock())
            self._loop.call_later(_TICK_SECONDS, self._tick)


@contextlib.asynccontextmanager
async def _closing(body: AsyncIterator[bytes]) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """Close an iterator at the end, whatever ends it, and whether or not its first piece was asked for."""
    try:
        yield body
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
