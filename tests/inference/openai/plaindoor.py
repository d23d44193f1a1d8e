"""An application served over plain HTTP, for tests alone: the product serves through the exchange only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from cloister.inference.application import Application, Request


def plain_door(application: Application) -> Any:
    """Return the ASGI application that hands requests on in the clear; a client that goes cancels."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _live(application, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        path = scope["raw_path"].decode("latin-1")
        request = Request(scope["method"], path, headers, body, headers.get("x-test-client", ""))
        tasks = {
            asyncio.ensure_future(_answer(application, request, send)),
            asyncio.ensure_future(_gone(receive)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            if not task.cancelled():
                task.result()

    return serve


async def _live(application: Application, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    ended = application.aclose()
    if hasattr(ended, "__await__"):
        await ended
    await send({"type": "lifespan.shutdown.complete"})


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(application: Application, request: Request, send: Any) -> None:
    reply = await application(request)
    headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if not isinstance(reply.body, bytes):
        try:
            async for piece in reply.body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            await reply.body.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.body", "body": reply.body})


@contextlib.contextmanager
def serve_plain(application: Application) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; yield the base URL, without /v1. Closes the application."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        config = uvicorn.Config(
            plain_door(application), lifespan="on", log_level="critical", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
