"""The front's side of the pipe: streams by number, their answers as they come, and what was counted.

Invariants:
- at most so many streams are open as the limits say, and a number is not used again while the worker may
  still speak of it: numbers only grow, and wrap after four thousand million;
- of an answer no more is kept here than its window; what the client took is given back as credit;
- when the worker is gone every stream ends, and none begins.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from cloister.errors import StorageError
from cloister.inference.service.limits import Limits
from cloister.inference.service.pipe import MAX_PAYLOAD, REASONS, WINDOW, Kind, Pipe, frame

__all__ = ["Stream", "Streams"]

_NUMBERS: Final = 1 << 32


class Stream:
    """One request, seen from outside.

    Attributes:
        reason: why it was refused; None while it was not.
        done: nothing more comes: the answer is whole, or cut.
        since: from when on the client is waited for, on the loop's clock; None where it is not.
        task: that serves it.
        gone: whether its client is gone, or did not move for too long.
        begun: whether the client was given the beginning of an answer.
        due: bytes of the answer that came and were not given back as credit.
    """

    __slots__ = (
        "_owed",
        "_parts",
        "_wake",
        "begun",
        "done",
        "due",
        "gone",
        "number",
        "reason",
        "since",
        "task",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.reason: str | None = None
        self.done = False
        self.since: float | None = None
        self.gone, self.begun, self.due = False, False, 0
        self.task: asyncio.Task[object] | None = None
        self._parts: list[bytes] = []
        self._owed = 0
        self._wake: asyncio.Future[None] | None = None

    @property
    def moved(self) -> bool:
        """Whether there is anything to act on."""
        return bool(self._parts) or self.done or self.reason is not None

    async def wait(self) -> None:
        """Return when there is something to act on."""
        while not self.moved:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def take(self) -> bytes:
        """Return what came since the last call."""
        if len(self._parts) == 1:
            return self._parts.pop()
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def gave(self, count: int) -> bytes:
        """Note that so many bytes went to the client; return the frame that says so, or nothing yet."""
        self._owed += count
        if self._owed < WINDOW // 2 or self.done:
            return b""
        owed, self._owed = self._owed, 0
        self.due -= owed
        return frame(Kind.CREDIT, self.number, owed.to_bytes(4, "big"))

    def came(self, part: bytes) -> None:
        """Take bytes of the answer."""
        self._parts.append(part)
        self.due += len(part)
        self.wake()

    def wake(self) -> None:
        """Let `wait` look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Streams:
    """All streams of one front.

    Args:
        limits: how many there may be.

    Attributes:
        counts: what happened, by name.
        pipe: set by whoever makes it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._last = limits, 0
        self._open: dict[int, Stream] = {}
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self.counts: Counter[str] = Counter()
        self.pipe: Pipe | None = None

    def open(self) -> Stream | None:
        """Return a new stream; None where there is no room, or no worker. The worker is not told yet."""
        if len(self._open) >= self._limits.streams or self.pipe is None or self.pipe.lost:
            return None
        stream = Stream(self._next())
        self._open[stream.number] = stream
        return stream

    def send(self, stream: Stream, body: bytes, *, first: bool, last: bool) -> None:
        """Send bytes of a request, with its beginning and its end where these are it."""
        parts = [frame(Kind.OPEN, stream.number)] if first else []
        view = memoryview(body)
        parts += [
            frame(Kind.DATA, stream.number, view[at : at + MAX_PAYLOAD])
            for at in range(0, len(view), MAX_PAYLOAD)
        ]
        if last:
            parts.append(frame(Kind.EOF, stream.number))
        if self.pipe is not None:
            self.pipe.send(b"".join(parts))

    def close(self, stream: Stream) -> None:
        """Forget a stream; where it is not over, the worker is told that its client is gone."""
        self._open.pop(stream.number, None)
        if not stream.done and stream.reason is None and self.pipe is not None:
            self.counts["cancelled"] += 1
            self.pipe.send(frame(Kind.CANCEL, stream.number))

    async def key_set(self) -> bytes:
        """Return the key set in force. Raises StorageError where there is no worker, or too many ask."""
        if self.pipe is None or self.pipe.lost or len(self._asked) >= self._limits.streams:
            raise StorageError("no keys can be had now")
        number = self._next()
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.pipe.send(frame(Kind.KEYS, number))
            found: bytes = await asked
            return found
        finally:
            del self._asked[number]

    def on_frame(self, kind: Kind, number: int, payload: bytes) -> None:
        """Take a frame of the worker's."""
        if kind is Kind.KEYSET:
            asked = self._asked.get(number)
            if asked is not None and not asked.done():
                asked.set_result(payload)
            return
        stream = self._open.get(number)
        if stream is None or stream.done:
            return
        if kind is Kind.DATA and stream.due + len(payload) <= WINDOW:
            stream.came(payload)
            return
        if kind is Kind.REFUSED:
            code = payload[0] if payload else 0
            stream.reason = REASONS[code] if code < len(REASONS) else REASONS[0]
        else:  # of DATA: more than it had credit for
            stream.done = True
            self.counts["answered" if kind is Kind.END else "cut"] += 1
        stream.wake()

    def on_lost(self) -> None:
        """End everything: the worker is gone."""
        for stream in self._open.values():
            stream.reason = stream.reason or "busy"
            stream.done = True
            stream.wake()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(StorageError("the worker is gone"))

    def end_stalled(self, now: float) -> None:
        """Cancel what serves clients who neither sent nor read for too long."""
        for stream in list(self._open.values()):
            if stream.since is not None and now - stream.since > self._limits.stall_seconds:
                stream.gone = True
                self.counts["stalled"] += 1
                if stream.task is not None:
                    stream.task.cancel()

    @property
    def busy(self) -> int:
        """Streams that are open."""
        return len(self._open)

    def _next(self) -> int:
        self._last = (self._last + 1) % _NUMBERS
        return self._last
