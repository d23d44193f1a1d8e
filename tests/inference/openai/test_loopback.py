"""Requests passed to a server in another process, over sockets that are handed over."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.inference.openai.engine import body_of, get, post
from tests.inference.openai.plaindoor import serve_plain

from cloister.errors import ProtocolError, StorageError
from cloister.inference.application import Request
from cloister.inference.openai import LoopbackApp, SealingApp

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[3]


class FakeConnections:
    """Hands over sockets as a service does, and counts them."""

    def __init__(self, port: int) -> None:
        self.port, self.given = port, 0
        self.fails = False
        self.wait: threading.Event | None = None
        self.last: socket.socket | None = None
        self._busy = threading.Lock()

    def connect(self) -> socket.socket:
        assert self._busy.acquire(blocking=False), "asked for two at a time"
        try:
            if self.wait is not None:
                assert self.wait.wait(20)
            if self.fails:
                raise StorageError("nobody listens")
            self.given += 1
            self.last = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            return self.last
        finally:
            self._busy.release()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, "-m", "tests.inference.openai.shaped"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def connections(port: int) -> FakeConnections:
    return FakeConnections(port)


def seen(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen", timeout=5) as reply:
        value: dict[str, int] = json.load(reply)
        return value


def asking(word: str, client: str = "", model: str = "org/tiny", **headers: str) -> Request:
    body = {"model": model, "messages": [{"role": "user", "content": word}], "cache_salt": "mine"}
    request = post(CHAT, body, **headers)
    return Request(request.method, request.path, request.headers, request.body, client)


def within(
    connections: FakeConnections, run: Callable[[LoopbackApp], Coroutine[Any, Any, Any]], *names: str
) -> Any:
    async def whole() -> Any:
        app = LoopbackApp(connections.connect, names)
        try:
            return await run(app)
        finally:
            await app.aclose()

    return asyncio.run(asyncio.wait_for(whole(), 30))


def ask(
    connections: FakeConnections, *requests: Request, names: tuple[str, ...] = ()
) -> list[tuple[int, Any]]:
    async def run(app: LoopbackApp) -> list[tuple[int, Any]]:
        answers = []
        for request in requests:
            reply = await app(request)
            answers.append((reply.status, json.loads(await body_of(reply))))
        return answers

    result: list[tuple[int, Any]] = within(connections, run, *names)
    return result


def test_the_server_learns_path_and_body_and_no_more(connections: FakeConnections) -> None:
    request = asking("headers", "ann", authorization="Bearer SECRET", cookie="SECRET", **{"x-ann": "SECRET"})
    ((status, answer),) = ask(connections, request)
    assert status == 200
    assert {name for name, _ in answer["headers"]} == {
        "host",
        "accept",
        "accept-encoding",
        "content-type",
        "content-length",
    }
    assert "SECRET" not in json.dumps(answer)
    assert "ann" not in json.dumps(answer)
    assert answer["fields"]["messages"] == [{"role": "user", "content": "headers"}]


def test_each_client_has_a_salt_of_its_own(connections: FakeConnections) -> None:
    requests = [asking("headers", client) for client in ("ann", "ann", "ben", "", "")]
    salts = [answer["fields"]["cache_salt"] for _, answer in ask(connections, *requests)]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4
    assert "mine" not in salts


def test_nothing_kept_for_others_is_used_again(connections: FakeConnections) -> None:
    """Some servers know no salt, and take this instead."""
    ((_, answer),) = ask(connections, asking("headers", "ann", cache_prompt="true"))
    assert answer["fields"]["cache_prompt"] is False


DANGEROUS: dict[str, object] = {
    "request_id": "chatcmpl-of-somebody-else",
    "rid": "x",
    "id_slot": 0,
    "session_params": {"id": "ben"},
    "kv_transfer_params": {"remote_host": "10.0.0.1"},
    "bootstrap_host": "10.0.0.1",
    "chat_template": "{% for x in range(10**9) %}{% endfor %}",
    "chat_template_kwargs": {"chat_template": "{{ x }}"},
    "logits_processors": ["os.system"],
    "prompt_embeds": "gASV",
    "lora_path": "/etc",
    "priority": -100,
    "vllm_xargs": {},
    "mm_processor_kwargs": {},
    "return_hidden_states": True,
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_no_field_reaches_the_server_that_is_about_more_than_this_answer(
    connections: FakeConnections, name: str
) -> None:
    body = {"model": "org/tiny", "messages": [{"role": "user", "content": "headers"}], name: DANGEROUS[name]}
    ((status, answer),) = ask(connections, post(CHAT, body))
    assert (status, answer["error"]["param"]) == (400, name)
    assert connections.given == 0


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": " data:image/png;base64,AA=="},
        {"type": "video_url", "video_url": {"url": "https://inside.example/x"}},
        {"type": "text", "text": "x", "image_url": {"url": "https://inside.example/x"}},
        {"type": "image_embeds", "image_embeds": "gASV"},
        {"image_url": "https://inside.example/x"},
        "text",
    ],
)
def test_the_server_fetches_nothing_for_a_client(connections: FakeConnections, part: object) -> None:
    body = {"model": "org/tiny", "messages": [{"role": "user", "content": [part]}]}
    ((status, answer),) = ask(connections, post(CHAT, body))
    assert (status, answer["error"]["param"].startswith("messages[0].content[0]")) == (400, True)
    assert connections.given == 0


def test_what_is_about_this_answer_goes_on(connections: FakeConnections) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    sound = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    text = {"type": "text", "text": "what is this?"}
    fields = {
        "model": "org/tiny",
        "messages": [
            {"role": "user", "content": "headers"},
            {"role": "user", "content": [text, picture, sound]},
        ],
        "min_p": 0.1,
        "seed": 7,
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "json_object"},
    }
    ((status, answer),) = ask(connections, post(CHAT, fields | {"user": "ann", "metadata": {"a": "b"}}))
    assert status == 200
    assert fields.items() <= answer["fields"].items()
    assert answer["fields"].keys() - fields.keys() == {"cache_salt", "cache_prompt"}


def test_one_event_is_one_piece_however_the_server_writes(connections: FakeConnections) -> None:
    """Pieces have one size outside; of several events in one, the sum of their lengths would show."""

    async def run(app: LoopbackApp) -> list[bytes]:
        reply = await app(asking("lumps"))
        assert not isinstance(reply.body, bytes)
        return [piece async for piece in reply.body]

    pieces = within(connections, run)
    assert len(pieces) == 6
    assert all(piece.endswith(b"\n\n") and piece.count(b"\n\n") == 1 for piece in pieces)
    assert (len(set(pieces[:5])), pieces[5]) == (1, b"data: [DONE]\n\n")


def test_the_servers_headers_stay_with_it(connections: FakeConnections) -> None:
    async def run(app: LoopbackApp) -> None:
        reply = await app(asking("headers"))
        assert dict(reply.headers) == {"content-type": "application/json"}
        assert isinstance(reply.body, bytes)

    within(connections, run)


def test_a_stream_comes_as_it_comes_and_the_connection_is_used_again(connections: FakeConnections) -> None:
    async def run(app: LoopbackApp) -> None:
        for _ in range(3):
            reply = await app(asking("stream"))
            assert reply.headers["content-type"] == "text/event-stream"
            assert not isinstance(reply.body, bytes)
            body = await body_of(reply)
            assert body.count(b"data: {") == 4
            assert body.endswith(b"data: [DONE]\n\n")

    within(connections, run)
    assert connections.given == 1


def test_many_at_once(connections: FakeConnections) -> None:
    async def run(app: LoopbackApp) -> None:
        async def one(word: str) -> int:
            return len(await body_of(await app(asking(word))))

        lengths = await asyncio.gather(*[one(word) for word in ("stream", "large") * 10])
        assert set(lengths[1::2]) == {1_000_012}
        assert len(set(lengths[::2])) == 1

    within(connections, run)


@pytest.mark.parametrize("taken", [0, 1])
def test_whoever_stops_reading_stops_the_server(connections: FakeConnections, taken: int) -> None:
    async def run(app: LoopbackApp) -> None:
        left = seen(connections.port)["left"]
        reply = await app(asking("slow"))
        stream: Any = reply.body
        for _ in range(taken):
            await anext(stream)
        await stream.aclose()
        for _ in range(500):
            if seen(connections.port)["left"] > left:
                break
            await asyncio.sleep(0.01)
        assert seen(connections.port) | {"clients": 0} == {"running": 0, "left": left + 1, "clients": 0}

    within(connections, run)


def test_cancelling_while_reading_closes_the_connection(connections: FakeConnections) -> None:
    async def run(app: LoopbackApp) -> None:
        left = seen(connections.port)["left"]
        reply = await app(asking("slow"))
        task = asyncio.ensure_future(body_of(reply))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(500):
            if seen(connections.port)["left"] > left:
                break
            await asyncio.sleep(0.01)
        assert seen(connections.port)["left"] == left + 1
        assert (await app(asking("large"))).status == 200

    within(connections, run)


def test_closing_the_application_ends_what_is_open(connections: FakeConnections) -> None:
    async def run(app: LoopbackApp) -> None:
        reply = await app(asking("slow"))
        task = asyncio.ensure_future(body_of(reply))
        await asyncio.sleep(0.05)
        await app.aclose()
        with pytest.raises(ProtocolError):
            await task

    within(connections, run)


def test_an_answer_that_breaks_off_raises(connections: FakeConnections) -> None:
    async def run(app: LoopbackApp) -> None:
        reply = await app(asking("break"))
        with pytest.raises(ProtocolError, match="broke off"):
            await body_of(reply)

    within(connections, run)


@pytest.mark.parametrize(
    ("word", "status", "code"), [("redirect", 500, "engine_failed"), ("refuse", 422, None)]
)
def test_what_the_server_refuses(
    connections: FakeConnections, word: str, status: int, code: str | None
) -> None:
    ((got, answer),) = ask(connections, asking(word))
    assert (got, answer["error"]["code"]) == (status, code)


def test_a_server_that_fails(connections: FakeConnections) -> None:
    ((got, answer),) = ask(connections, asking("mute"))  # which says so in plain text
    assert (got, answer["error"]["code"]) == (500, "engine_failed")


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 banana\r\n\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf"],
)
def test_a_server_that_speaks_something_else(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)

    async def run(app: LoopbackApp) -> tuple[int, Any]:
        reply = await app(asking("x"))
        return reply.status, json.loads(await body_of(reply))

    async def whole() -> tuple[int, Any]:
        app = LoopbackApp(lambda: ours)
        try:
            return await run(app)
        finally:
            await app.aclose()

    with theirs:
        status, answer = asyncio.run(asyncio.wait_for(whole(), 20))
    assert (status, answer["error"]["code"]) == (500, "engine_failed")
    assert ours.fileno() == -1


def test_no_server(connections: FakeConnections) -> None:
    connections.fails = True
    ((status, answer),) = ask(connections, asking("x"))
    assert (status, answer["error"]["code"]) == (503, "engine_unreachable")


def test_a_socket_that_comes_too_late_is_closed(connections: FakeConnections) -> None:
    connections.wait = threading.Event()

    async def run(app: LoopbackApp) -> None:
        task = asyncio.ensure_future(app(asking("x")))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert connections.wait is not None
        connections.wait.set()
        for _ in range(500):
            if connections.last is not None and connections.last.fileno() == -1:
                break
            await asyncio.sleep(0.01)
        assert connections.last is not None
        assert connections.last.fileno() == -1

    within(connections, run)


@pytest.mark.parametrize(
    "request_",
    [
        post("/v1/load_lora_adapter", {}),
        post("/v1/chat/completions/../load_lora_adapter", {}),
        post("/sleep", {}),
        post("/v1/responses", {}),
        get("/metrics"),
        get("/seen"),
        get("/v1/chat/completions"),
        Request("DELETE", "/v1/models/x", {}, b""),
        post(CHAT, b"[]"),
        post(CHAT, b"{"),
    ],
)
def test_nothing_else_reaches_the_server(connections: FakeConnections, request_: Request) -> None:
    ((status, answer),) = ask(connections, request_)
    assert status in (400, 404, 405)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert connections.given == 0


def test_models(connections: FakeConnections) -> None:
    listed, one, none = ask(
        connections, get("/v1/models"), get("/v1/models/org%2Ftiny"), get("/v1/models/other")
    )
    assert listed[1]["data"] == [{"id": "org/tiny", "object": "model"}]
    assert one == (200, {"id": "org/tiny", "object": "model"})
    assert (none[0], none[1]["error"]["code"]) == (404, "model_not_found")


def test_only_named_models_are_asked_for(connections: FakeConnections) -> None:
    answers = ask(
        connections,
        get("/v1/models"),
        asking("headers", model="org/tiny"),
        asking("headers", model="other"),
        post(CHAT, {"messages": [{"role": "user", "content": "headers"}]}),
        names=("org/tiny",),
    )
    assert [status for status, _ in answers] == [200, 200, 404, 404]
    assert [each["id"] for each in answers[0][1]["data"]] == ["org/tiny"]


def test_the_official_client_through_it(connections: FakeConnections) -> None:
    openai = pytest.importorskip("openai")
    app = SealingApp(LoopbackApp(connections.connect))
    with (
        serve_plain(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="SECRET", max_retries=0, timeout=20) as client,
    ):
        stream = client.chat.completions.create(
            model="org/tiny", messages=[{"role": "user", "content": "stream"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "xxxx"


def test_nothing_is_imported_once_it_stands(port: int) -> None:
    """Behind the walls of a worker no file of a library may be in reach."""
    code = f"""
import asyncio, encodings.idna, json, socket, stringprep, sys
from cloister.inference.application import Request
from cloister.inference.openai import LoopbackApp, SealingApp
app = SealingApp(LoopbackApp(lambda: socket.create_connection(("127.0.0.1", {port}))))
before = set(sys.modules)
async def main():
    body = {{"model": "m", "messages": [{{"role": "user", "content": "stream"}}]}}
    for word in ("stream", "large"):
        body["messages"][0]["content"] = word
        reply = await app(Request("POST", "/v1/chat/completions", {{}}, json.dumps(body).encode()))
        if not isinstance(reply.body, bytes):
            async for _ in reply.body:
                pass
    await app.aclose()
asyncio.run(main())
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
