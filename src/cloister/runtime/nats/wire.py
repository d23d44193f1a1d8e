"""The byte stream under the client library: TLS from the first byte, and reads as large as what has arrived.

The library begins in the clear and upgrades, in a way that leaves its reader without flow control and makes
Python complain when the connection ends; it also reads at most 32 KiB at a time. This stream is encrypted
when `connect` returns, so its `connect_tls` has nothing left to do. Only `runtime.nats.transport` imports
this module: it needs the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Final

from nats.aio.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import ParseResult

__all__ = ["TlsWire"]

_READ: Final = 1 << 20
_LARGE: Final = 64 << 10
_FAREWELL: Final = 1.0  # seconds for the end of TLS, which a dead peer does not answer


class TlsWire(Transport):
    """One connection; made anew for the next.

    Args:
        context: TLS settings of this party.
        on_end: called when nothing more will be read.
    """

    def __init__(self, context: ssl.SSLContext, on_end: Callable[[], None]) -> None:
        self._context, self._on_end = context, on_end
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._heard = 0.0
        self._queued = 0

    def silence(self, now: float) -> float:
        """Return for how many seconds, by the loop's clock, nothing was read and nothing written went out."""
        queued = 0 if self._writer is None else self._writer.transport.get_write_buffer_size()
        if queued < self._queued:
            self._heard = now
        self._queued = queued
        return now - self._heard

    def abort(self) -> None:
        """Drop the connection and what is queued; the other end may be out of reach."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect and shake hands; the server's certificate must be for the host in `uri`."""
        async with asyncio.timeout(connect_timeout):
            self._reader, self._writer = await asyncio.open_connection(
                uri.hostname,
                uri.port,
                ssl=self._context,
                server_hostname=uri.hostname,
                ssl_shutdown_timeout=_FAREWELL,
                limit=_READ,
            )
        self._heard = asyncio.get_running_loop().time()

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Nothing is left to do."""

    def write(self, payload: bytes) -> None:
        """Queue bytes; of a connection that has ended they are lost."""
        writer = self._open()[1]
        if not writer.is_closing():
            writer.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Queue several pieces; large ones are not joined, which would copy them."""
        writer = self._open()[1]
        if writer.is_closing():
            return
        small: list[bytes] = []
        for piece in payload:
            if len(piece) < _LARGE:
                small.append(piece)
                continue
            writer.writelines(small)
            writer.write(piece)
            small = []
        if small:
            writer.writelines(small)

    async def read(self, buffer_size: int) -> bytes:
        """Return what has arrived, at most 1 MiB."""
        data = b""
        try:
            data = await self._open()[0].read(_READ)
        finally:
            if not data:
                self._on_end()
        self._heard = asyncio.get_running_loop().time()
        return data

    async def readline(self) -> bytes:
        """Return the next line."""
        return await self._open()[0].readline()

    async def drain(self) -> None:
        """Wait while too much is queued. That the connection ended is found by reading: the library, told
        here, would stop half-way through closing."""
        with contextlib.suppress(OSError, ssl.SSLError):
            await self._open()[1].drain()

    async def taken(self) -> None:
        """Wait while too much is queued. Raises OSError where the connection ended."""
        await self._open()[1].drain()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        if self._writer is not None:
            with contextlib.suppress(OSError, ssl.SSLError):  # it is gone, which is what was wanted
                await self._writer.wait_closed()

    def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()

    def at_eof(self) -> bool:
        """Return whether nothing more will arrive."""
        return self._reader is None or self._reader.at_eof()

    def __bool__(self) -> bool:
        # the library makes a stream of its own where this is false
        return True

    def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            raise ConnectionError("not connected")
        return self._reader, self._writer
