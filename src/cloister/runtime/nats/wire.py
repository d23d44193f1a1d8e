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
    from urllib.parse import ParseResult

__all__ = ["TlsWire"]

_READ: Final = 1 << 20
_LARGE: Final = 64 << 10


class TlsWire(Transport):
    """One connection; made anew for the next.

    Args:
        context: TLS settings of this party.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect and shake hands; the server's certificate must be for the host in `uri`."""
        async with asyncio.timeout(connect_timeout):
            self._reader, self._writer = await asyncio.open_connection(
                uri.hostname, uri.port, ssl=self._context, server_hostname=uri.hostname, limit=_READ
            )

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Nothing is left to do."""

    def write(self, payload: bytes) -> None:
        """Queue bytes."""
        self._open()[1].write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Queue several pieces; large ones are not joined, which would copy them."""
        writer = self._open()[1]
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
        return await self._open()[0].read(_READ)

    async def readline(self) -> bytes:
        """Return the next line."""
        return await self._open()[0].readline()

    async def drain(self) -> None:
        """Wait while too much is queued."""
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
