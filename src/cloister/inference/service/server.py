"""A service and its server.

run(service, listening)                     until SIGINT, SIGTERM, or the worker is gone
with serving(service) as url: ...           in a thread, on a free port: for tests, benchmarks and demos
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import ProtocolError, StorageError
from cloister.inference.webserver import Tls, listen, until_told, web_server

if TYPE_CHECKING:
    from cloister.inference.service.launch import Service

__all__ = ["run", "serving"]

_GRACE_SECONDS: Final = 5
_CONNECTIONS: Final = 4096
_START_SECONDS: Final = 30.0


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

    def watch(stop: Callable[[], None]) -> None:
        def gone() -> None:
            lost.set()
            stop()

        service.when_lost(gone)

    _many_files()
    gc.collect()
    gc.freeze()  # what is here now stays: no request waits while it is looked through
    try:
        asyncio.run(until_told(server, listening, meanwhile=watch))
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
    return web_server(service.app, tls=tls, lifespan=True, grace=_GRACE_SECONDS, connections=_CONNECTIONS)


def _many_files() -> None:
    """Allow as many open sockets as this user may have: each client takes one."""
    with contextlib.suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _wait(condition: Callable[[], bool]) -> None:
    tick, left = threading.Event(), _START_SECONDS
    while not condition():
        if left <= 0:
            raise StorageError("the server did not start in time")
        tick.wait(0.01)
        left -= 0.01
