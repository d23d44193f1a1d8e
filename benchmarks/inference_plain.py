"""The same engines without protection: an HTTP server in front of an `Application`, in one process.

    python -m benchmarks.inference_plain language DIR THREADS | table FILE

It is what private serving is compared with, and for nothing else: prompts and answers cross it in the clear,
and whoever can connect may ask. Prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cloister.inference.application import Application, Request


class PlainDoor:
    """An ASGI application around an `Application`."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reply = await self._application(Request(scope["method"], scope["path"], headers, body))
        sent = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        whole = reply.body if isinstance(reply.body, bytes) else None
        if whole is not None:
            sent.append((b"content-length", str(len(whole)).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": sent})
        if whole is not None:
            await send({"type": "http.response.body", "body": whole})
            return
        pieces: AsyncIterator[bytes] = reply.body  # type: ignore[assignment]
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def application(arguments: list[str], scratch: Path) -> Application:
    """Return what the arguments ask for."""
    if arguments[0] == "language":
        from cloister.inference.language.load import load_engine
        from cloister.inference.openai import OpenAIApp
        from cloister.learning.modelfiles.files import PlainFolder

        files = PlainFolder(Path(arguments[1]))
        engine = load_engine(
            files, name="model", kv_tokens=16_384, threads=int(arguments[2]), scratch=scratch
        )
        return OpenAIApp(engine)
    from cloister.inference import Predictor, load_model
    from cloister.inference.openai import TableApp

    return TableApp(Predictor.of(load_model(Path(arguments[1]))), "model")


async def serve(app: Any) -> None:
    """Print a free port, and serve an ASGI application there until standard input ends."""
    import uvicorn

    config = uvicorn.Config(
        app,
        port=0,
        http="h11",
        access_log=False,
        log_level="error",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await task


def main() -> None:
    """Load and serve."""
    with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as scratch:
        asyncio.run(serve(PlainDoor(application(sys.argv[1:], Path(scratch)))))


if __name__ == "__main__":
    main()
