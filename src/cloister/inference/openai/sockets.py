"""Sockets that are handed over, as httpcore's network: this process opens none, and may not.

A worker behind its walls may read, write, shut and close a socket, and nothing else: no socket options, and
no transports of asyncio, which set them. So bytes go through `loop.sock_recv` and `loop.sock_sendall`.

This module is imported where httpcore2 is installed (cloister[serve]).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpcore2

from cloister.errors import CloisterError

__all__ = ["HandedOver"]

_T = TypeVar("_T")


class HandedOver(httpcore2.AsyncNetworkBackend):
    """Connects by asking for a socket that is connected already, whatever host a URL names.

    Args:
        connect: returns one; may block, and is called in a thread, one call at a time.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, "cloister-sockets")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Return the next socket. Raises ConnectError or ConnectTimeout."""
        asked = asyncio.get_running_loop().run_in_executor(self._thread, self._connect)
        try:
            found = await asyncio.wait_for(asyncio.shield(asked), timeout)
        except TimeoutError:
            asked.add_done_callback(_discard)
            raise httpcore2.ConnectTimeout("no socket was handed over in time") from None
        except asyncio.CancelledError:
            asked.add_done_callback(_discard)
            raise
        except (OSError, CloisterError):
            raise httpcore2.ConnectError("no socket was handed over") from None
        return _Stream(found)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """End the thread; who waits for a socket gets none."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _discard(asked: asyncio.Future[socket.socket]) -> None:
    """Close a socket that came after nobody waited for it any more."""
    if not asked.cancelled() and asked.exception() is None:
        asked.result().close()


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._busy = 0
        self._closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        received = asyncio.get_running_loop().sock_recv(self._socket, max_bytes)
        return await self._done(received, timeout, httpcore2.ReadTimeout, httpcore2.ReadError)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            sent = asyncio.get_running_loop().sock_sendall(self._socket, buffer)
            await self._done(sent, timeout, httpcore2.WriteTimeout, httpcore2.WriteError)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # who still reads or writes here wakes up, and closes it
        if not self._busy:
            self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        if self._closed:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    async def _done(
        self, step: Awaitable[_T], timeout: float | None, late: type[Exception], broken: type[Exception]
    ) -> _T:
        self._busy += 1
        try:
            return await asyncio.wait_for(step, timeout)
        except TimeoutError:
            raise late("the server takes too long") from None
        except OSError:
            raise broken("the connection broke") from None
        finally:
            self._busy -= 1
            if self._closed and not self._busy:
                self._socket.close()
