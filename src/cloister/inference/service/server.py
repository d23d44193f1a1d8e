"""A service behind uvicorn: without a log of requests, headers of its own, or a second process.

run(service, listening)                     until SIGINT, SIGTERM, or the worker is gone
with serving(service) as url: ...           in a thread, on a free port: for tests, benchmarks and demos
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import InputError, ProtocolError, StorageError
from cloister.inference.http1 import protocol

if TYPE_CHECKING:
    from cloister.inference.service.launch import Service

__all__ = ["Tls", "check_tls", "listen", "run", "serving"]

Tls = tuple[Path, Path]
"""A certificate chain and its key, both PEM."""

_GRACE_SECONDS: Final = 5
_IDLE_SECONDS: Final = 75
_CONNECTIONS: Final = 4096
_START_SECONDS: Final = 30.0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises StorageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
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
    """Check that a certificate chain and its key can be used, before a model is loaded.

    Raises:
        InputError: they cannot.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls)
    except (OSError, ssl.SSLError) as error:
        raise _no_certificate(error, tls) from error


def run(service: Service, listening: socket.socket, *, tls: Tls | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress get five seconds. In the main thread.

    Args:
        service: started; closed by whoever made it.
        listening: closed at the end.
        tls: None for HTTP, as behind a proxy that ends TLS; the exchange is encrypted either way.

    Raises:
        ProtocolError: the worker is gone.
        InputError: uvicorn is missing, or the certificate cannot be used.
    """
    server, lost = _server(service, tls), threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = _stopper(server)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)

        def gone() -> None:
            lost.set()
            stop()

        service.when_lost(gone)
        await server.serve(sockets=[listening])

    _many_files()
    gc.collect()
    gc.freeze()  # what is here now stays: no request waits while it is looked through
    try:
        asyncio.run(main())
    finally:
        gc.unfreeze()
        listening.close()
    if lost.is_set():
        why = service.why()
        raise ProtocolError(
            f"the worker is gone{f' ({why})' if why else ''}",
            fix="See whether the machine ran out of memory; start again",
        )


@contextlib.contextmanager
def serving(
    service: Service, *, host: str = "127.0.0.1", port: int = 0, tls: Tls | None = None
) -> Iterator[str]:
    """Serve in a thread of this process while the block runs; yield the URL.

    Args:
        service: started; closed by whoever made it.
        host: to listen at.
        port: to listen at; 0 takes a free one.
        tls: as of `run`.
    """
    server, listening = _server(service, tls), listen(host, port)
    bound = listening.getsockname()[1]
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listening])), name="cloister-serve", daemon=True
    )
    thread.start()
    try:
        _wait(lambda: bool(server.started) or not thread.is_alive())
        yield f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        server.should_exit = True
        thread.join(_GRACE_SECONDS + _START_SECONDS)
        listening.close()


def _server(service: Service, tls: Tls | None) -> Any:
    try:
        import uvicorn
    except ImportError:
        raise InputError("a service needs uvicorn", fix="Install cloister[serve]") from None

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are the caller's

    config = uvicorn.Config(
        service.app,
        http=protocol(),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="critical",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=1024,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=None if tls is None else str(tls[0]),
        ssl_keyfile=None if tls is None else str(tls[1]),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise _no_certificate(error, tls) from error
    return Server(config)


def _no_certificate(error: OSError, tls: Tls | None) -> InputError:
    return InputError(
        f"the certificate cannot be used: {error.strerror or type(error).__name__}",
        where="" if tls is None else " and ".join(map(str, tls)),
        fix="Give a PEM chain and its key",
    )


def _many_files() -> None:
    """Allow as many open sockets as this user may have: each client takes one."""
    with contextlib.suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _stopper(server: Any) -> Callable[[], None]:
    def stop() -> None:
        server.force_exit = server.should_exit  # asked twice: at once
        server.should_exit = True

    return stop


def _wait(condition: Callable[[], bool]) -> None:
    tick, left = threading.Event(), _START_SECONDS
    while not condition():
        if left <= 0:
            raise StorageError("the server did not start in time")
        tick.wait(0.01)
        left -= 0.01
