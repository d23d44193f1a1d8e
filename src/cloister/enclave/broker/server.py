"""Serves a broker on a Unix socket: connections, frames, limits, time. What is said is `broker`'s business.

Limits: so many connections at once, of which another user of the machine has a quarter at most; a frame as
long as the conversation takes at that point; a frame that has begun must be whole within seconds; a
connection that says nothing is closed after minutes. A client that breaks one is closed, and the others go
on: messages are handled one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloister.enclave.broker.broker import Broker, Conversation
from cloister.enclave.broker.link import socket_name
from cloister.enclave.broker.messages import encode, refused
from cloister.errors import InputError, StorageError

__all__ = ["BrokerServer"]

_CONNECTIONS: Final = 64
_EACH_OTHER_USER: Final = _CONNECTIONS // 4
_FRAME_SECONDS: Final = 20.0
_IDLE_SECONDS: Final = 900.0


class BrokerServer:
    """A broker at a socket.

    Args:
        broker: what is served.
        path: the socket; one that nobody serves any more is replaced.
        shared: whether other users of this machine may connect. Keys are safe from them either way.
        clock: says what time it is.
        frame_seconds: how long a frame may take once it has begun.
        say: tells whoever runs it what went wrong with a connection.
    """

    def __init__(
        self,
        broker: Broker,
        path: Path,
        *,
        shared: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        frame_seconds: float = _FRAME_SECONDS,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._path = path
        self._shared = shared
        self._clock = clock
        self._frame_seconds = frame_seconds
        self._say = say
        self._open: dict[asyncio.Task[None], int] = {}  # each connection's user

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled.

        Args:
            ready: called once clients may connect.

        Raises:
            StorageError: the socket cannot be made, or another process serves it; or, later, a count or an
                entry could not be written: then nothing is released until it is opened anew.
        """
        listener = _listen(self._path, shared=self._shared)
        loop = asyncio.get_running_loop()
        mine = self._path.stat().st_ino
        loop.add_reader(listener, self._accept, listener)
        self._ended = loop.create_future()
        try:
            ready()
            await self._ended
        finally:
            loop.remove_reader(listener)
            listener.close()
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == mine:
                    self._path.unlink()

    def _accept(self, listener: socket.socket) -> None:
        try:
            link, _ = listener.accept()
        except OSError:
            return
        user = _user_of(link)
        theirs = sum(each == user for each in self._open.values())
        if len(self._open) >= _CONNECTIONS or (user != os.geteuid() and theirs >= _EACH_OTHER_USER):
            link.close()
            return
        link.setblocking(False)
        task = asyncio.ensure_future(self._talk(link, self._broker.converse()))
        self._open[task] = user

        def ended(task: asyncio.Task[None]) -> None:
            self._open.pop(task, None)
            link.close()
            problem = None if task.cancelled() else task.exception()
            if problem is not None:  # its client was told nothing, and the others go on
                self._say(f"A connection was closed by an unexpected error ({type(problem).__name__}).")

        task.add_done_callback(ended)

    async def _talk(self, link: socket.socket, conversation: Conversation) -> None:
        """Answer one client until it goes, takes too long, or breaks the protocol."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            while not conversation.ended:
                async with asyncio.timeout(_IDLE_SECONDS):
                    first = await _exactly(link, 1)
                async with asyncio.timeout(self._frame_seconds):
                    length = int.from_bytes(first + await _exactly(link, 3), "big")
                    if length > conversation.limit:
                        error = InputError(
                            "a message to the key broker is too long", fix="Send what it asked for"
                        )
                        await loop.sock_sendall(link, _frame(encode(refused(error))))
                        return
                    message = await _exactly(link, length)
                answer = conversation.handle(message, self._clock())
                try:
                    async with asyncio.timeout(self._frame_seconds):
                        await loop.sock_sendall(link, _frame(answer))
                finally:
                    self._end_if_broken()

    def _end_if_broken(self) -> None:
        if self._broker.book.broken and not self._ended.done():
            self._ended.set_exception(
                StorageError(
                    "the key broker could not write, and has stopped",
                    where=str(self._broker.book.store.path),
                    fix="Free space, then start it again; what it had counted stays counted",
                )
            )


async def _exactly(link: socket.socket, count: int) -> bytes:
    """Return so many bytes. Raises EOFError where the client has gone."""
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < count:
        piece = await loop.sock_recv(link, min(count - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _user_of(link: socket.socket) -> int:
    """Return the user at the other end (SO_PEERCRED: process, user, group)."""
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return int(struct.unpack("iII", credentials)[1])


def _frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def _listen(path: Path, *, shared: bool) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        before = os.umask(0o177)
        try:
            with socket_name(path) as name:
                listener.bind(name)
        finally:
            os.umask(before)
        if shared:
            path.chmod(0o666)
        listener.listen(2 * _CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StorageError(
            f"cannot serve the socket: {error.strerror}", where=str(path), fix="Choose another --socket"
        ) from None
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that nobody serves. Raises StorageError where somebody does, or it is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StorageError(
            "something else has the socket's name", where=str(path), fix="Choose another --socket"
        )
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_name(path) as name:
            probe.connect(name)
    except OSError:
        path.unlink(missing_ok=True)
        return
    finally:
        probe.close()
    raise StorageError("another process serves this socket", where=str(path), fix="End it, or choose another")
