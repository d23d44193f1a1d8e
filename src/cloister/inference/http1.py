"""uvicorn's HTTP/1.1, for servers that anybody may connect to.

uvicorn waits without end for the head of a request: on a new connection, and once a first byte of a further
one has come. A few thousand connections that say nothing would keep everybody else out. Here a head that is
not whole within `HEAD_SECONDS` ends its connection.

What it does not do: bound bodies and answers; those are the applications' own.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final

__all__ = ["HEAD_SECONDS", "protocol"]

HEAD_SECONDS: Final = 20.0
"""How long the head of a request may take."""


@cache
def protocol(seconds: float = HEAD_SECONDS) -> type[asyncio.Protocol]:
    """Return the class that a `uvicorn.Config` takes as `http`. Raises ImportError without uvicorn."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Begin to wait for a head, or stop where it is whole."""
            if self.conn.their_state is not h11.IDLE:
                self._unwatch()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.abort)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Impatient
