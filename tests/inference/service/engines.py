"""An OpenAI-shaped server on loopback, for what passes requests through. Importable, not collected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class EngineDouble:
    """Answers chats with the words of the question, one event each; notes what came and who went.

    Attributes:
        came: path, headers and body of every request.
        gone: how many clients went away before the end.
    """

    came: list[tuple[str, dict[bytes, bytes], bytes]] = field(default_factory=list)
    gone: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.came.append((scope["path"], dict(scope["headers"]), body))
        asked = json.loads(body or b"{}")
        if not asked.get("stream"):
            await self._start(send, b"application/json")
            await send(
                {"type": "http.response.body", "body": json.dumps({"object": "list", "data": []}).encode()}
            )
            return
        await self._start(send, b"text/event-stream")
        words = asked["messages"][-1]["content"].split()
        for word in words if words[0] != "forever" else iter(lambda: "again", ""):
            if word == "again":
                waiting = asyncio.ensure_future(receive())
                done, _ = await asyncio.wait((waiting,), timeout=0.01)
                waiting.cancel()
                if done:
                    self.gone += 1
                    return
            event = {"choices": [{"index": 0, "delta": {"content": word + " "}}]}
            data = f"data: {json.dumps(event)}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    @staticmethod
    async def _start(send: Any, kind: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})


@contextlib.contextmanager
def engine(path: Path | None = None) -> Iterator[tuple[EngineDouble, str]]:
    """Serve a double on a free port, or on a Unix socket; yield it with its address."""
    import uvicorn

    double = EngineDouble()
    if path is None:
        listening = socket.create_server(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    else:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        address = f"unix:{path}"
    config = uvicorn.Config(
        double, http="h11", ws="none", lifespan="off", log_config=None, log_level="critical"
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield double, address
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
