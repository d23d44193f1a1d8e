"""Serves a broker on a Unix socket: connections, frames, limits, time. What is said is `broker`'s business.

Limits: so many connections at once; a frame as long as the conversation takes at that point; a frame that has
begun must be whole within seconds; a connection that says nothing is closed after minutes. A client that
breaks one is closed, and the others go on: messages are handled one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
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
    """

    def __init__(
        self,
        broker: Broker,
        path: Path,
        *,
        shared: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        frame_seconds: float = _FRAME_SECONDS,
    ) -> None:
        self._broker = broker
        self._path = path
        self._shared = shared
        self._clock = clock
        self._frame_seconds = frame_seconds
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled.

        Args:
            ready: called once clients may connect.

        Raises:
            StorageError: the socket cannot be made, or another process serves it.
        """
        listener = _listen(self._path, shared=self._shared)
        mine = listener.getsockname() and os.stat(self._path).st_ino  # noqa: PTH116
        server = await asyncio.start_unix_server(self._connected, sock=listener, limit=1 << 16)
        try:
            async with server:
                ready()
                await asyncio.Future()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == mine:
                    self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio runs this in one
        self._tasks.add(task)
        self._count += 1
        try:
            if self._count <= _CONNECTIONS:
                await self._talk(reader, writer, self._broker.converse())
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client has gone, or takes too long
        finally:
            self._count -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, conversation: Conversation
    ) -> None:
        while not conversation.ended:
            first = await asyncio.wait_for(reader.readexactly(1), _IDLE_SECONDS)
            async with asyncio.timeout(self._frame_seconds):
                length = int.from_bytes(first + await reader.readexactly(3), "big")
                if length > conversation.limit:
                    error = InputError(
                        "a message to the key broker is too long", fix="Send what was asked for"
                    )
                    await self._send(writer, encode(refused(error)))
                    return
                message = await reader.readexactly(length)
            answer = conversation.handle(message, self._clock())
            async with asyncio.timeout(self._frame_seconds):
                await self._send(writer, answer)

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, answer: bytes) -> None:
        writer.write(len(answer).to_bytes(4, "big") + answer)
        await writer.drain()


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
        listener.listen(_CONNECTIONS)
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
