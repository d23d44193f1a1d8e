"""Connections that say nothing, or never finish saying it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from cloister.inference.webserver import protocol

SECONDS = 0.4


async def app(scope: Any, receive: Any, send: Any) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


def talked(talk: Talk) -> bytes:
    async def main() -> bytes:
        config = uvicorn.Config(
            app, http=protocol(SECONDS), lifespan="off", log_config=None, log_level="critical"
        )
        config.load()
        server = await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(config, uvicorn.server.ServerState(), {}),  # type: ignore[call-arg,misc]
            "127.0.0.1",
            0,
        )
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            try:
                return await asyncio.wait_for(talk(reader, writer), 20)
            finally:
                writer.close()

    return asyncio.run(main())


async def rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_a_connection_that_says_nothing_is_closed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        return await rest(reader)

    assert talked(talk) == b""


def test_a_head_that_comes_byte_by_byte_is_not_waited_for() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        ended = asyncio.ensure_future(rest(reader))
        while not ended.done():
            writer.write(b"P")
            await asyncio.sleep(SECONDS / 8)
        return ended.result()

    assert talked(talk) == b""


def test_nor_is_a_second_head() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        first = await reader.readuntil(b"ok")
        writer.write(b"GET / HT")
        return first[:12] + await rest(reader)

    assert talked(talk) == b"HTTP/1.1 200"


def test_a_body_may_take_longer_than_a_head() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\na")
        await asyncio.sleep(2 * SECONDS)
        writer.write(b"b")
        return (await reader.readuntil(b"ok"))[:12]

    assert talked(talk) == b"HTTP/1.1 200"
