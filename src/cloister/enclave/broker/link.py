"""How messages reach a broker: over a Unix socket, or, in the broker's own process, over nothing.

A frame is 4 bytes of length, then the message.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloister.enclave.broker.broker import Broker
from cloister.enclave.broker.messages import MAX_SMALL
from cloister.errors import StorageError

__all__ = ["Direct", "SocketLink", "socket_name"]

_PATIENCE: Final = 30.0
_LONGEST_NAME: Final = 100


class SocketLink:
    """A connection to the broker that serves a Unix socket; for one thread.

    Args:
        path: the socket.
        patience: seconds to wait for an answer.

    Raises:
        StorageError: nobody serves it.
    """

    def __init__(self, path: Path, *, patience: float = _PATIENCE) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience)
        try:
            with socket_name(path) as name:
                self._socket.connect(name)
        except OSError as error:
            self._socket.close()
            raise self._silent(error.strerror or type(error).__name__) from None

    def exchange(self, message: bytes, /) -> bytes:
        """Send a message; return its answer. Raises StorageError where none comes."""
        try:
            self._socket.sendall(len(message).to_bytes(4, "big") + message)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise self._silent("it took too long") from None
            # it may have said why before it closed
        try:
            length = int.from_bytes(self._exactly(4), "big")
            if length > 2 * MAX_SMALL:
                raise self._silent("it answered at too great length")
            return self._exactly(length)
        except OSError as error:
            raise self._silent(error.strerror or "it took too long") from None

    def alive(self) -> bool:
        """Tell whether the broker has kept the connection; one that waits for nothing has nothing to read."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return not waiting.poll(0)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket.recv(min(count - len(data), 1 << 16))
            if not piece:
                raise self._silent("it closed the connection")
            data += piece
        return bytes(data)

    def _silent(self, why: str) -> StorageError:
        return StorageError(
            f"the key broker does not answer: {why}",
            where=str(self._path),
            fix="Start it with `cloister enclave broker serve`, or check the address",
        )


class Direct:
    """A connection to a broker in this process.

    Args:
        broker: open.
        clock: says what time it is.
    """

    def __init__(self, broker: Broker, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._conversation = broker.converse()
        self._clock = clock

    def exchange(self, message: bytes, /) -> bytes:
        """Return the broker's answer."""
        return self._conversation.handle(message, self._clock())

    def alive(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


@contextlib.contextmanager
def socket_name(path: Path) -> Iterator[str]:
    """Yield a name for a socket's path in few enough bytes for the system, which takes 107."""
    absolute = path.absolute()
    if len(os.fsencode(absolute)) < _LONGEST_NAME:
        yield str(absolute)
        return
    descriptor = os.open(absolute.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{absolute.name}"
    finally:
        os.close(descriptor)
