"""An OpenAI-shaped server in a process of its own; what it does is asked for by the first message.

    headers   the answer is what it was sent, headers and fields      slow     streams until the client goes
    break     ends within a stream                                    mute     fails, in plain text
    redirect  leads elsewhere                                         large    a whole answer of 1 MB
    lumps     streams events cut and joined anyhow

GET /seen tells how many slow streams run, how many were left, and how many connections were made.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import uvicorn

SEEN = {"running": 0, "left": 0}
CLIENTS: set[Any] = set()


async def app(scope: Any, receive: Any, send: Any) -> None:
    CLIENTS.add(tuple(scope["client"] or ()))
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)

    async def answer(value: object, status: int = 200, **headers: str) -> None:
        data = json.dumps(value).encode()
        told = {"content-type": "application/json", "x-internal": "host-7", "set-cookie": "a=b", **headers}
        pairs = [(name.encode(), text.encode()) for name, text in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": data})

    path = scope["path"]
    if path == "/seen":
        return await answer(SEEN | {"clients": len(CLIENTS)})
    if path == "/v1/models":
        return await answer({"object": "list", "data": [{"id": "org/tiny", "object": "model"}]})
    if scope["method"] != "POST":
        return await answer({"error": "what?"}, 404)
    fields = json.loads(body)
    word = fields["messages"][0]["content"] if "messages" in fields else ""
    if word == "headers":
        return await answer(
            {"headers": [[n.decode(), v.decode()] for n, v in scope["headers"]], "fields": fields}
        )
    if word == "redirect":
        return await answer({}, 307, location="http://127.0.0.1:1/")
    if word == "refuse":
        return await answer({"error": {"message": "no", "type": "x", "param": None, "code": None}}, 422)
    if word == "large":
        return await answer({"text": "x" * 1_000_000})
    if word == "mute":
        raise RuntimeError
    event = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": event})
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    await send({"type": "http.response.body", "body": piece, "more_body": True})
    if word == "lumps":
        for cut in (piece[:7], piece[7:] + piece + piece[:-1], b"\n" + piece):
            await send({"type": "http.response.body", "body": cut, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        return None
    if word == "break":
        raise RuntimeError
    if word == "slow":
        SEEN["running"] += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        SEEN["running"] -= 1
        SEEN["left"] += 1
        return None
    for _ in range(3):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    return None


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)  # noqa: T201
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        server.run(sockets=[listening])
