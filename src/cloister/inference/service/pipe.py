"""The pipe between a front and its worker: many streams over one pair of sockets.

    frame = u32 length of the payload | u8 kind | u32 stream | payload              all big-endian

    front -> worker                                    worker -> front
    OPEN     a stream begins                           DATA     bytes of the answer
    DATA     bytes of the request                      END      of an answer that is whole
    EOF      of the request                            REFUSED  one byte, see `REASONS`: before an answer
    CANCEL   the client is gone                        CANCEL   an answer that cannot be ended well
    CREDIT   u32: so many bytes went out               KEYSET   the answer to KEYS
    KEYS     which keys are in force?

A stream is one request and its answer. `Splitter` cuts what comes into frames and does no I/O; `Pipe` moves
bytes on an event loop, by recv and send alone: other calls the worker's filter refuses.

Invariants:
- a frame longer than `MAX_PAYLOAD` or of no known kind ends the pipe: the other end is broken;
- of an answer at most `WINDOW` bytes are under way; the worker waits for credit, and only for that
  stream's, so a client that does not read delays nobody else;
- nothing is waited for here: `send` keeps what the socket does not take, and `drained` says when it has.

What travels is ciphertext, lengths and reasons. Who may open a stream is for both ends to bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from cloister.crypto import Buffer
from cloister.errors import ProtocolError

__all__ = [
    "CHUNK",
    "MAX_PAYLOAD",
    "MAX_STREAMS",
    "REASONS",
    "WINDOW",
    "Kind",
    "Pipe",
    "Splitter",
    "frame",
]

MAX_PAYLOAD: Final = 1 << 20
"""Bytes of one frame's payload."""
CHUNK: Final = 1 << 17
"""Bytes of an answer that go into one frame."""
WINDOW: Final = 1 << 19
"""Bytes of one answer that may be under way."""
MAX_STREAMS: Final = 256
"""Streams at once, unless told otherwise."""
REASONS: Final = ("request", "stale-key", "busy", "too-large")
"""Why a request was refused, by the byte that says so."""

_HEAD: Final = struct.Struct(">IBI")
_READ: Final = 1 << 18
_HIGH: Final = 1 << 20


class Kind(enum.IntEnum):
    """What a frame is."""

    OPEN = 1
    DATA = 2
    EOF = 3
    CANCEL = 4
    CREDIT = 5
    KEYS = 6
    END = 7
    REFUSED = 8
    KEYSET = 9


_KINDS: Final = dict(enumerate((None, *Kind)))


def frame(kind: Kind, stream: int, payload: Buffer = b"") -> bytes:
    """Return the bytes of a frame."""
    return b"".join((_HEAD.pack(len(payload), kind, stream), payload))


class Splitter:
    """Cuts a stream of bytes, in whatever pieces it comes, into frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: Buffer) -> Iterator[tuple[Kind, int, bytes]]:
        """Yield kind, stream and payload of each frame that is whole.

        Raises:
            ProtocolError: what came is no frame.
        """
        if self._rest:
            self._rest += data
            data, self._rest = self._rest, bytearray()
        with memoryview(data) as view:
            at, end = 0, len(view)
            while end - at >= _HEAD.size:
                length, number, stream = _HEAD.unpack_from(view, at)
                kind = _KINDS.get(number)
                if kind is None or length > MAX_PAYLOAD:
                    raise ProtocolError("the other end of the pipe said what nobody understands")
                after = at + _HEAD.size + length
                if after > end:
                    break
                yield kind, stream, bytes(view[at + _HEAD.size : after])
                at = after
            self._rest += view[at:]


class Pipe:
    """One end, on an event loop.

    Args:
        sock: connected; made non-blocking, closed by `close`.
        on_frame: called with kind, stream and payload of each frame.
        on_lost: called once, when the other end is gone or broken.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[Kind, int, bytes], None],
        on_lost: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._socket, self._on_frame, self._on_lost = sock, on_frame, on_lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._splitter, self._buffer = Splitter(), bytearray(_READ)
        self._left: list[memoryview] = []
        self._backlog = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.lost = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read, on this loop. All other calls belong on it, too."""
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._readable)

    def send(self, data: bytes) -> None:
        """Send whole frames. What the socket does not take now goes later."""
        if self.lost or not data:
            return
        rest = memoryview(data)
        if not self._left:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._end()
                return
        if rest:
            if not self._left and self._loop is not None:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            self._left.append(rest)
            self._backlog += len(rest)

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that nobody should add to it: wait for `drained`."""
        return self._backlog > _HIGH

    async def drained(self) -> None:
        """Return when less waits to be written than makes the pipe `full`, or it is lost."""
        while self.full and not self.lost and self._loop is not None:
            waiting = self._loop.create_future()
            self._waiting.append(waiting)
            await waiting

    def close(self) -> None:
        """Close the socket; `on_lost` is not called any more."""
        self._on_lost = _nothing
        self._end()

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._buffer)
            if not count:
                self._end()
                return
            for kind, stream, payload in self._splitter.feed(memoryview(self._buffer)[:count]):
                self._on_frame(kind, stream, payload)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError):
            self._end()

    def _writable(self) -> None:
        try:
            while self._left:
                count = self._socket.send(self._left[0])
                self._backlog -= count
                self._left[0] = self._left[0][count:]
                if not self._left[0]:
                    del self._left[0]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._end()
            return
        if not self._left and self._loop is not None:
            self._loop.remove_writer(self._socket.fileno())
        if not self.full:
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def _end(self) -> None:
        if self.lost:
            return
        self.lost = True
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(OSError, ValueError):
                self._loop.remove_reader(self._socket.fileno())
                self._loop.remove_writer(self._socket.fileno())
            self._wake()
        self._socket.close()
        self._left.clear()
        self._backlog = 0
        self._on_lost()


def _nothing() -> None:
    return None
