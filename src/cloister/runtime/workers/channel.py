"""A link over one end of a pair of sockets: messages of any size, in order, signed and encrypted.

Datagrams of `runtime.link` go through the socket with their length before them, four bytes, big-endian. The
socket loses nothing, so what the link repeats is rare; what it gives is that only the peer's identity is
heard, and that nothing readable lies in the socket's buffers.

Invariants:
- nobody waits for ever with something to read or to write: both directions move in one loop;
- what was received is acknowledged before it is handed out, so a peer that then computes for an hour leaves
  nothing to repeat;
- what is waiting is bounded: one datagram being read, the link's window being written, and one payload of at
  most the size that `receive` was told;
- a payload that was sent is not changed until the next one came.

No thread, no signal. Whoever closes the socket from another thread ends a `receive` there.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from cloister.crypto import Buffer
from cloister.errors import ProtocolError
from cloister.runtime.bodies import Body
from cloister.runtime.link import MAX_SMALL, Link

__all__ = ["SMALL", "Channel", "Gone", "recv_clear", "send_clear"]

SMALL: Final = MAX_SMALL
"""Bytes of a payload that always may come."""

_LENGTH: Final = 4
_MAX_DATAGRAM: Final = (1 << 20) + 4096
_COPIED: Final = 1 << 14  # smaller datagrams are copied once, to go out in one piece
_SOCKET_BYTES: Final = 1 << 20
_ENDED: Final = "the other process has ended"


class Gone(ProtocolError):
    """The other end closed the socket: its process has ended."""


class Channel:
    """One end.

    Args:
        link: this end's link.
        sock: a connected stream socket; made non-blocking.
        clock: seconds, monotonic.
    """

    def __init__(self, link: Link, sock: socket.socket, *, clock: Callable[[], float] = time.monotonic):
        self._link, self._socket, self._clock = link, sock, clock
        self._head = b""  # of a datagram's length, as far as it came
        self._body: memoryview | None = None  # of a datagram, what has not come
        self._datagram = bytearray()
        self._written: list[memoryview] = []
        self._came: list[Buffer] = []
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # it is a little slower with what there is
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)

    def open(self, timeout: float) -> None:
        """Open a session, as the initiator. Raises Gone, ProtocolError where there is none in time."""
        self._link.open(self._clock())
        until = self._clock() + timeout
        while not self._link.ready:
            if self._clock() >= until:
                raise ProtocolError(f"no session with the worker within {timeout:g} seconds")
            self._move(until)
        self.flush()

    def send(self, payload: Buffer | Body) -> None:
        """Queue a payload; it travels while this end receives."""
        self._link.send(payload)

    def receive(self, most: int = SMALL) -> Buffer:
        """Return the next payload.

        Args:
            most: bytes it may have.

        Raises:
            Gone: the other process has ended.
            ProtocolError: it announced more, or broke the link's rules.
            IntegrityError: something does not verify.
        """
        while not self._came:
            if self._link.incoming and not self._link.granted:
                if self._link.incoming > most:
                    raise ProtocolError(f"announced a message of {self._link.incoming} bytes, over the limit")
                self._link.grant()
            self._move(math.inf)
        if len(self._came[0]) > most:
            raise ProtocolError(f"sent a message of {len(self._came[0])} bytes, over the limit")
        if not self._link.outgoing:  # else what is on its way acknowledges, too
            self._link.nudge(self._clock())
            self.flush()
        return self._came.pop(0)

    def quiet(self) -> None:
        """Return if the peer has said nothing that was not received. Raises ProtocolError if it has, Gone."""
        self._take()
        if self._came:
            raise ProtocolError("said more than it was asked")

    def flush(self) -> None:
        """Return when everything that may be sent by now has been written. Raises as `receive`."""
        while self._next():
            self._move(math.inf)

    def close(self) -> None:
        """Close the socket and forget the keys."""
        self._link.close()
        self._socket.close()

    def _move(self, until: float) -> None:
        """Write what can be written and read what came, or wait for either, at most until a timer is due."""
        wants = self._next()
        if self._readable(min(self._link.wake_at(), until), or_writable=wants):
            self._take()
        if wants:
            self._write()

    def _readable(self, until: float, *, or_writable: bool) -> bool:
        """Wait until the socket can be read, or written; return whether it can be read."""
        milliseconds = None if until == math.inf else math.ceil(max(until - self._clock(), 0.0) * 1000)
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if or_writable else 0))
            found = poll.poll(milliseconds)
        except (OSError, ValueError):
            raise Gone(_ENDED) from None
        return any(event & ~select.POLLOUT for _, event in found)

    def _next(self) -> bool:
        """Have the next datagram ready to be written; False where there is none."""
        if not self._written:
            datagram = self._link.poll(self._clock())
            if datagram is None:
                return False
            length = len(datagram).to_bytes(_LENGTH, "big")
            small = len(datagram) < _COPIED
            parts = [length + datagram] if small else [length, datagram]
            self._written = [memoryview(part) for part in parts]
        return True

    def _write(self) -> None:
        """Write as much as goes."""
        try:
            while self._next():
                rest = self._written[0]
                rest = rest[self._socket.send(rest) :]
                self._written[:1] = [rest] if rest else []
        except BlockingIOError:
            return
        except OSError:
            raise Gone(_ENDED) from None

    def _take(self) -> None:
        """Read what is there; give the link each datagram that is whole."""
        try:
            while not self._came:
                if self._body is None:
                    self._begin()
                if self._body:
                    self._body = self._body[self._got(self._socket.recv_into(self._body)) :]
                if self._body is not None and not self._body:
                    self._body = None
                    self._came += self._link.receive(self._datagram, self._clock()).payloads
        except BlockingIOError:
            return
        except OSError:
            raise Gone(_ENDED) from None

    def _begin(self) -> None:
        """Read the length of a datagram, and make room for it."""
        part = self._socket.recv(_LENGTH - len(self._head))
        self._got(len(part))
        self._head += part
        if len(self._head) < _LENGTH:
            raise BlockingIOError
        length, self._head = int.from_bytes(self._head, "big"), b""
        if length > _MAX_DATAGRAM:
            raise ProtocolError("announced a datagram above the size limit")
        self._datagram = bytearray(length)
        self._body = memoryview(self._datagram)

    @staticmethod
    def _got(count: int) -> int:
        if not count:
            raise Gone(_ENDED)
        return count


def send_clear(sock: socket.socket, data: bytes) -> None:
    """Write what comes before there is a session: a length and bytes. Raises Gone."""
    try:
        sock.sendall(len(data).to_bytes(_LENGTH, "big") + data)
    except OSError:
        raise Gone(_ENDED) from None


def recv_clear(sock: socket.socket, most: int, timeout: float | None) -> bytes:
    """Read what comes before there is a session.

    Args:
        sock: blocking.
        most: bytes it may have.
        timeout: seconds; None waits for ever.

    Raises:
        Gone: the other process has ended.
        ProtocolError: it is longer, or did not come in time.
    """
    sock.settimeout(timeout)
    try:
        length = int.from_bytes(_exactly(sock, _LENGTH), "big")
        if length > most:
            raise ProtocolError(f"announced {length} bytes before there was a session, over the limit")
        return _exactly(sock, length)
    except TimeoutError:
        raise ProtocolError(f"said nothing for {timeout:g} seconds") from None
    except OSError:
        raise Gone(_ENDED) from None


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise Gone(_ENDED)
        data += part
    return data
