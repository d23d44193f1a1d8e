"""An engine on loopback behind a walled worker that can open no socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.inference.service.engines import EngineDouble, engine
from tests.inference.service.real import Running, running

from cloister.errors import InputError, StorageError
from cloister.inference.exchange import EXCHANGE_PATH, Asking, RequestHead
from cloister.inference.service import Address, LoopbackEngine
from cloister.inference.service.connections import Connections, Connector


@pytest.fixture(scope="module", params=["tcp", "unix"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, EngineDouble]]:
    path = tmp_path_factory.mktemp("e") / "engine.sock" if request.param == "unix" else None
    with engine(path) as (double, address):
        source = LoopbackEngine(Address.parse(address), ("big",), accelerators=2)
        with running(source) as here:
            yield here, double


def chat(text: str) -> dict[str, Any]:
    return {"model": "big", "messages": [{"role": "user", "content": text}], "stream": True}


def test_a_stream_comes_through(served: tuple[Running, EngineDouble]) -> None:
    here, double = served
    head, *pieces = here.stream("/v1/chat/completions", chat("one two three"))
    assert head.status == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    text = b"".join(pieces).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert [word for word in ("one", "two", "three") if word in text] == ["one", "two", "three"]
    path, headers, body = double.came[-1]
    assert path == "/v1/chat/completions"
    assert b"authorization" not in headers
    assert json.loads(body)["messages"][0]["content"] == "one two three"


def test_whoever_goes_away_ends_the_engines_work(served: tuple[Running, EngineDouble]) -> None:
    here, double = served
    before = double.gone
    pieces = here.stream("/v1/chat/completions", chat("forever"))
    for _ in range(3):
        next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert until(lambda: double.gone > before)
    assert until(lambda: here.service.stats()["open"] == 0)


@pytest.mark.slow
def test_a_hundred_streams_at_once(served: tuple[Running, EngineDouble]) -> None:
    here, _ = served
    keys = here.keys()

    async def one(client: httpx2.AsyncClient, number: int) -> str:
        words = " ".join(f"w{number}-{each}" for each in range(20))
        body = json.dumps(chat(words)).encode()
        asking = Asking(keys, RequestHead("POST", "/v1/chat/completions"), body)
        got = b""
        async with client.stream("POST", EXCHANGE_PATH, content=asking.request) as answer:
            assert answer.status_code == 200
            async for part in answer.aiter_raw():
                got += b"".join(event for event in asking.feed(part) if isinstance(event, bytes))
        asking.finish()
        events = [line.removeprefix("data: ") for line in got.decode().split("\n\n") if line]
        assert events.pop() == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"]["content"] for event in events]
        return "right" if words == "".join(deltas).strip() else "wrong"

    async def main() -> None:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=here.url, timeout=60, trust_env=False, limits=limits
        ) as client:
            assert await asyncio.gather(*(one(client, number) for number in range(100))) == ["right"] * 100

    asyncio.run(main())
    assert here.service.stats()["open"] == 0


def test_what_the_keys_say_of_it(served: tuple[Running, EngineDouble]) -> None:
    keys = served[0].keys()
    assert (keys.model, keys.model_digest, keys.accelerators) == ("big", "0" * 64, 2)


def test_an_engine_that_does_not_run_is_an_error_in_the_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with running(LoopbackEngine(Address.parse(address))) as here:
            status, body = here.ask("/v1/chat/completions", chat("x"))
    assert status >= 500
    assert "error" in json.loads(body)


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1 8000"),
        ("http://localhost:8000/v1", "127.0.0.1 8000"),
        ("http://[::1]:8000/", "::1 8000"),
        ("http://127.0.0.1", "127.0.0.1 80"),
        ("unix:/run/engine.sock", "/run/engine.sock"),
        ("unix:///run/engine.sock", "/run/engine.sock"),
    ],
)
def test_addresses(text: str, peer: str) -> None:
    assert Address.parse(text).peer == peer


@pytest.mark.parametrize(
    "text",
    [
        "http://models.example:8000",
        "http://127.0.0.2:8000",
        "http://10.0.0.1",
        "http://0.0.0.0:8000",
        "https://127.0.0.1:8000",
        "http://127.0.0.1:8000/v2",
        "http://127.0.0.1:8000/v1?x=1",
        "http://user@127.0.0.1:8000",
        "http://127.0.0.1:99999",
        "http://[::ffff:127.0.0.1]:8000",
        "http://127.0.0.1.models.example",
        "127.0.0.1:8000",
        "unix:engine.sock",
        "unix:",
        "unix:/" + "a" * 200,
        "",
    ],
)
def test_no_other_address_is_one(text: str) -> None:
    with pytest.raises(InputError):
        Address.parse(text)


@contextlib.contextmanager
def handed(address: Address, peer: str | None = None) -> Iterator[Connections]:
    ours, theirs = socket.socketpair()
    connector = Connector(ours, address)
    try:
        yield Connections(theirs, peer or address.peer)
    finally:
        connector.close()
        theirs.close()


def test_a_connected_socket_is_handed_over_and_no_copy_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = Address("127.0.0.1", listening.getsockname()[1])
        with handed(address) as connections:
            made = connections.connect()
            other, _ = listening.accept()
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            made.sendall(b"x")
            made.close()
            other.settimeout(10)
            assert (other.recv(2), other.recv(2)) == (b"x", b"")  # closed: nobody else holds it
            other.close()


def test_what_is_handed_over_must_lead_to_the_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = Address("127.0.0.1", listening.getsockname()[1])
        with (
            handed(address, "127.0.0.1 1") as connections,
            pytest.raises(StorageError, match="no connection"),
        ):
            connections.connect()


@pytest.mark.parametrize("given", ["file", "pair", "nothing", "unconnected"])
def test_nothing_but_a_connection_is_used(given: str, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()

    def front() -> None:
        ours.recv(1)
        with contextlib.ExitStack() as stack:
            if given == "file":
                what: Any = stack.enter_context((tmp_path / "x").open("wb"))
            elif given == "pair":
                what, other = socket.socketpair()
                stack.enter_context(what)
                stack.enter_context(other)
            else:
                what = stack.enter_context(socket.socket())
            if given == "nothing":
                ours.sendall(b"s")
            else:
                socket.send_fds(ours, [b"s"], [what.fileno()])

    thread = threading.Thread(target=front)
    thread.start()
    try:
        with pytest.raises(StorageError):
            Connections(theirs, "127.0.0.1 8000").connect()
    finally:
        thread.join(10)
        ours.close()
        theirs.close()


def test_a_front_that_is_gone_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(StorageError):
        Connections(theirs, "127.0.0.1 8000").connect()
    theirs.close()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
