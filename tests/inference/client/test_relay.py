"""The relay: forwards two paths to one service, and nothing about who asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from tests.inference.client.doubles import (
    TOKEN,
    ServiceDouble,
    eventually,
    proxied,
    running,
    scripted,
    verifier,
)
from tests.inference.openai.engine import ScriptedEngine, chat_body

from cloister.errors import InputError
from cloister.inference.client import PrivateClient, Relay
from cloister.inference.exchange import EXCHANGE_PATH, KEYS_PATH

World = tuple[ScriptedEngine, ServiceDouble, str, str]


@pytest.fixture
def world() -> Iterator[World]:
    engine, service = scripted("Hello there")
    with running(service) as url, running(Relay(url)) as relay:
        yield engine, service, url, relay


def test_a_client_asks_through_it(world: World) -> None:
    _, service, url, relay = world
    with PrivateClient("http://service.example", verifier(), relay=relay, token=TOKEN) as client:
        answer = client.post("/v1/chat/completions", json=chat_body())
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
        with client.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
            assert len(list(response.iter_bytes())) > 1
        service.rotate()
        assert client.get("/v1/models").status_code == 200
    with proxied(url, relay=relay) as proxy:
        with openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="x") as client:
            assert client.chat.completions.create(**chat_body()).choices[0].message.content == "Hello there"
        assert httpx2.get(proxy.address).json()["relay"] == relay


def test_it_says_nothing_about_the_client(world: World) -> None:
    _, service, _, relay = world
    headers = {
        "x-forwarded-for": "203.0.113.7",
        "forwarded": "for=203.0.113.7",
        "cookie": "who=canary",
        "user-agent": "canary",
        "authorization": "Bearer canary",
        "content-type": "text/canary",
    }
    httpx2.get(f"{relay}{KEYS_PATH}?nonce={'00' * 32}", headers=headers)
    httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"x" * 100, headers=headers)
    httpx2.post(f"{relay}{EXCHANGE_PATH}", content=iter([b"x" * 100]), headers=headers)
    assert len(service.outside) == 3
    for _, _, seen in service.outside:
        assert set(seen) <= {b"host", b"content-type", b"content-length", b"transfer-encoding"}
        assert b"canary" not in b"".join(seen.values())
        assert b"203.0.113.7" not in b"".join(seen.values())


def test_it_forwards_nothing_else(world: World) -> None:
    _, service, _, relay = world
    nonce = "00" * 32
    for method, target in (
        ("GET", "/"),
        ("GET", EXCHANGE_PATH),
        ("POST", KEYS_PATH),
        ("POST", f"{KEYS_PATH}?nonce={nonce}"),
        ("GET", KEYS_PATH),
        ("GET", f"{KEYS_PATH}?nonce={nonce}&more=1"),
        ("GET", f"{KEYS_PATH}?nonce={'AB' * 32}"),
        ("GET", f"{KEYS_PATH}?nonce={nonce[:-2]}"),
        ("POST", "/v1/chat/completions"),
        ("POST", f"{EXCHANGE_PATH}/more"),
    ):
        answer = httpx2.request(method, relay + target, content=b"{}" if method == "POST" else None)
        assert (answer.status_code, answer.json()) == (404, {"refused": "request"}), target
    for line in ("GET http://169.254.169.254/latest", f"GET /x/..{KEYS_PATH}?nonce={nonce}", "CONNECT a:443"):
        with socket.create_connection(("127.0.0.1", int(relay.rpartition(":")[2])), 5) as raw:
            raw.sendall(f"{line} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".encode())
            assert b" 404 " in raw.recv(1000).split(b"\r\n")[0]
    assert service.outside == []


def test_refusals_pass_and_other_answers_do_not(world: World) -> None:
    _, service, _, relay = world
    refused = httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"no request")
    assert (refused.status_code, refused.json()) == (400, {"refused": "request"})
    service.sabotage.plain = (
        302,
        [(b"location", b"http://evil.example/"), (b"content-type", b"text/html")],
        b"go",
    )
    moved = httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"x")
    assert (moved.status_code, "location" in moved.headers) == (502, False)
    service.sabotage.plain = (200, [(b"content-type", b"application/json"), (b"set-cookie", b"a=b")], b"{}")
    answer = httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"x")
    assert answer.status_code == 200
    assert set(answer.headers) <= {
        "content-type",
        "cache-control",
        "content-length",
        "date",
        "server",
        "transfer-encoding",
    }


def test_bounds() -> None:
    _, service = scripted()
    with running(service) as url, running(Relay(url, streams=1)) as relay:
        port = int(relay.rpartition(":")[2])
        head = f"POST {EXCHANGE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port), 5) as slow:
            slow.sendall(head)
            time.sleep(0.2)
            busy = httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"x")
            assert (busy.status_code, busy.json()) == (503, {"refused": "busy"})
        assert eventually(lambda: httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"x").status_code == 400)
        large = {"content-length": str(1 << 40)}
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            lines = "".join(f"{name}: {value}\r\n" for name, value in large.items())
            raw.sendall(f"POST {EXCHANGE_PATH} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
            assert b" 413 " in raw.recv(1000).split(b"\r\n")[0]
        assert (
            httpx2.post(f"{relay}{EXCHANGE_PATH}", content=iter([b"x" * (1 << 20)] * 40)).status_code == 413
        )


def test_a_service_that_is_not_there() -> None:
    with running(Relay("http://127.0.0.1:9")) as relay:
        gone = httpx2.post(f"{relay}{EXCHANGE_PATH}", content=b"x")
        assert (gone.status_code, gone.json()) == (503, {"refused": "busy"})
        client = PrivateClient("http://service.example", verifier(), relay=relay)
        with client, pytest.raises(httpx2.ConnectError):
            client.get("/v1/models")
    with pytest.raises(InputError):
        Relay("http://service.example/path")


def test_a_client_that_goes_away_cancels_through_it(world: World) -> None:
    engine, service, _, relay = world
    engine.script = ("x" * 900,)
    engine.broken = lambda made: time.sleep(0.005)
    with PrivateClient("http://service.example", verifier(), relay=relay) as client:
        with client.stream(
            "POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=900)
        ) as response:
            next(response.iter_bytes())
        assert eventually(lambda: engine.running == 0 and service.running == 0)
    assert engine.made < 900


def test_many_through_one(world: World) -> None:
    _, _, _, relay = world
    with PrivateClient("http://s.example", verifier(), relay=relay) as client, ThreadPoolExecutor(16) as pool:
        found = pool.map(
            lambda _: client.post("/v1/chat/completions", json=chat_body()).status_code, range(64)
        )
        assert set(found) == {200}


@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_who_hardly_sends_holds_no_place(byte_by_byte: bool) -> None:
    """Two places, taken by two clients that begin and do not go on."""
    _, service = scripted("Hello there")
    with running(service) as url, running(Relay(url, streams=2, patience=0.5)) as relay:
        port = int(relay.rpartition(":")[2])
        head = f"POST {EXCHANGE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode()
        with (
            socket.create_connection(("127.0.0.1", port), 5) as one,
            socket.create_connection(("127.0.0.1", port), 5) as two,
        ):
            for each in (one, two):
                each.sendall(head + b"x")

            def served() -> bool:
                if byte_by_byte:
                    with contextlib.suppress(OSError):
                        one.sendall(b"x")
                        two.sendall(b"x")
                return httpx2.get(f"{relay}{KEYS_PATH}?nonce={'00' * 32}").status_code == 200

            assert eventually(served)


def test_who_reads_nothing_holds_no_place() -> None:
    async def main() -> None:
        relay = Relay("http://service", inner=httpx2.MockTransport(answer), patience=0.2)
        scope = {"type": "http", "method": "POST", "path": EXCHANGE_PATH, "headers": [], "query_string": b""}
        asked = [{"type": "http.request", "body": b"x"}]

        async def receive() -> dict[str, Any]:
            return asked.pop() if asked else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: Any) -> None:
            await asyncio.Event().wait()

        await asyncio.wait_for(relay(scope, receive, send), 10)

    def answer(request: httpx2.Request) -> httpx2.Response:
        kind = {"content-type": "application/octet-stream"}
        return httpx2.Response(200, headers=kind, content=bytes(100))

    asyncio.run(main())
