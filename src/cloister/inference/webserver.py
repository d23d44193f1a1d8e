"""One way to serve an ASGI application: service, proxy and relay do it alike.

    listening = listen(host, port)
    server = web_server(app, tls=tls)                       a `uvicorn.Server`
    await until_told(server, listening)                     until SIGINT or SIGTERM

No log of requests, no header that names the server, no second process. uvicorn itself waits without end for
the head of a request: on a new connection, and once a first byte of a further one has come. A few thousand
connections that say nothing would keep everybody else out; here a head that is not whole within
`HEAD_SECONDS` ends its connection (`protocol`). Bodies and answers are the applications' own to bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from cloister.errors import InputError, StorageError

__all__ = ["HEAD_SECONDS", "Tls", "check_tls", "listen", "protocol", "until_told", "web_server"]

Tls = tuple[Path, Path]
"""A certificate chain and its key, both PEM."""
HEAD_SECONDS: Final = 20.0
"""How long the head of a request may take."""
_IDLE_SECONDS: Final = 75
"""Longer than clients keep an idle connection, so that none is closed while a request is on its way."""
_BACKLOG: Final = 1024


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises StorageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # asyncio sets this on sockets of its own making alone; without it a small frame waits for an answer
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise StorageError(
            f"the port cannot be had: {(getattr(error, 'strerror', None) or str(error)).partition(' (')[0]}",
            where=f"{host}:{port}",
            fix="Choose another one with --port",
        ) from error


def check_tls(tls: Tls) -> None:
    """Check that a certificate chain and its key can be used, before anything is loaded.

    Raises:
        InputError: they cannot.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls)
    except (OSError, ssl.SSLError) as error:
        raise _no_certificate(error, tls) from error


def web_server(
    app: Callable[..., Awaitable[None]],
    *,
    tls: Tls | None = None,
    lifespan: bool = False,
    grace: int = 3,
    connections: int | None = None,
) -> Any:
    """Return a `uvicorn.Server` that leaves signals to its caller.

    Args:
        app: an ASGI application.
        tls: None for HTTP.
        lifespan: whether the application is told of the server's start and end.
        grace: seconds that requests in progress get at the end.
        connections: at most so many at once; None for as many as come.

    Raises:
        InputError: uvicorn is missing, or the certificate cannot be used.
    """
    try:
        import uvicorn
    except ImportError:
        raise InputError("a server needs the package uvicorn", fix="Install cloister[serve]") from None

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        http=protocol(),
        ws="none",
        loop="asyncio",
        lifespan="on" if lifespan else "off",
        access_log=False,
        log_config=None,
        log_level="critical",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        limit_concurrency=connections,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=grace,
        ssl_certfile=None if tls is None else str(tls[0]),
        ssl_keyfile=None if tls is None else str(tls[1]),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise _no_certificate(error, tls) from error
    return Server(config)


async def until_told(
    server: Any, listening: socket.socket, *, meanwhile: Callable[[Callable[[], None]], object] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends requests in progress, too. In the main thread.

    Args:
        server: of `web_server`.
        listening: as `listen` made it; closed at the end.
        meanwhile: is given what ends the server, before it serves.
    """

    def stop() -> None:
        server.force_exit = server.should_exit  # asked twice: at once
        server.should_exit = True

    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        if meanwhile is not None:
            meanwhile(stop)
        await server.serve(sockets=[listening])
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        listening.close()


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


def _no_certificate(error: OSError, tls: Tls | None) -> InputError:
    return InputError(
        f"the certificate cannot be used: {error.strerror or type(error).__name__}",
        where="" if tls is None else " and ".join(map(str, tls)),
        fix="Give a PEM chain and its key",
    )
