"""PrivateClient and its twin: everything goes through the exchange, and what the application gets is right."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx2
import openai
import pytest
from tests.enclave.doubles import AppraiserDouble
from tests.inference.client.doubles import (
    DIGEST,
    MAX_BODY,
    POLICY,
    TOKEN,
    ServiceDouble,
    eventually,
    now,
    run,
    running,
    scripted,
    verifier,
)
from tests.inference.openai.engine import ScriptedEngine, chat_body

from cloister.enclave.policy import EnclavePolicy
from cloister.errors import InputError, PolicyRefused, VerificationError
from cloister.inference.application import Reply, Request
from cloister.inference.client import AsyncPrivateClient, ExchangeError, PrivateClient
from cloister.inference.client.privateclient import receipt_of, verifier_of

World = tuple[ScriptedEngine, ServiceDouble, str]


@pytest.fixture
def world() -> Iterator[World]:
    engine, service = scripted("Hello there")
    with running(service) as url:
        yield engine, service, url


def test_every_request_is_an_exchange_and_nothing_of_it_shows_outside(world: World) -> None:
    _, service, url = world
    with PrivateClient(url, verifier(), token=TOKEN) as client:
        assert client.verified is None
        assert client.get("/v1/models").json()["data"][0]["id"] == "scripted"
        headers = {"X-Secret": "canary-header", "Cookie": "a=b", "User-Agent": "canary-agent"}
        body = chat_body(messages=[{"role": "user", "content": "canary-prompt"}])
        answer = client.post("/v1/chat/completions?a=canary-query", json=body, headers=headers)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
        assert client.verified is not None
    assert [(method, path) for method, path, _ in service.outside] == [
        ("GET", "/.well-known/cloister/keys"),
        ("POST", "/.well-known/cloister/exchange"),
        ("POST", "/.well-known/cloister/exchange"),
    ]
    for _, _, seen in service.outside:
        assert set(seen) <= {b"host", b"content-type", b"content-length"}
    assert b"canary" not in service.wire
    assert b"Hello" not in service.wire
    assert service.asked[1].path == "/v1/chat/completions?a=canary-query"
    assert set(service.asked[1].headers) == {"accept", "content-type", "x-secret"}
    assert service.credentials == [TOKEN, TOKEN]


def test_the_receipt_is_there_at_the_end_and_not_before(world: World) -> None:
    _, _, url = world
    with PrivateClient(url, verifier()) as client:
        with client.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
            pieces = response.iter_bytes()
            assert next(pieces).startswith(b"data: ")
            assert receipt_of(response) is None
            rest = b"".join(pieces)
        assert rest.endswith(b"data: [DONE]\n\n")
        receipt = receipt_of(response)
        assert receipt is not None
        assert (receipt.model, receipt.model_digest, receipt.policy, receipt.status) == (
            "scripted",
            DIGEST,
            POLICY,
            200,
        )
        refused = client.get("/v1/nothing")
        assert refused.status_code == 404
        assert getattr(receipt_of(refused), "status", None) == 404
    assert receipt_of(httpx2.Response(200)) is None


def test_an_application_that_stops_at_done_has_a_complete_answer_and_keeps_the_connection(
    world: World,
) -> None:
    _, _, url = world
    with PrivateClient(url, verifier()) as client:
        for _ in range(2):
            with client.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        break
                assert receipt_of(response) is not None
        pool = client._transport._inner._pool  # type: ignore[attr-defined]
        assert len(pool.connections) == 1


def test_the_official_client_in_process(world: World) -> None:
    engine, service, url = world
    with PrivateClient(url, verifier()) as http:
        client = openai.OpenAI(base_url="http://private/v1", http_client=http, api_key="mine")
        body = chat_body()
        answer = client.chat.completions.create(**body)
        assert answer.choices[0].message.content == "Hello there"
        stream = client.chat.completions.create(stream=True, **body)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello there"
        assert [model.id for model in client.models.list()] == ["scripted"]
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.models.retrieve("other")
    assert set(service.credentials) == {"mine"}
    assert all(name.startswith("x-stainless") is False for each in service.asked for name in each.headers)
    assert engine.running == 0


def test_the_asynchronous_twin_and_a_hundred_streams(world: World) -> None:
    engine, _, url = world

    async def work() -> None:
        async with AsyncPrivateClient(url, verifier()) as http:
            client = openai.AsyncOpenAI(
                base_url="http://private/v1", http_client=http, api_key="x", max_retries=0
            )

            async def one() -> str:
                stream = await client.chat.completions.create(stream=True, **chat_body())
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            import asyncio

            assert set(await asyncio.gather(*[one() for _ in range(100)])) == {"Hello there"}
            assert http.verified is not None
            response = await http.get("/v1/models")
            assert receipt_of(response) is not None

    run(work())
    assert engine.running == 0
    assert len(engine.asked) == 100


def test_threads_share_one_client_and_one_verification(world: World) -> None:
    _, service, url = world
    with PrivateClient(url, verifier()) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.post("/v1/chat/completions", json=chat_body()), range(24)))
    assert {each.status_code for each in found} == {200}
    assert [path for _, path, _ in service.outside].count("/.well-known/cloister/keys") == 1


def test_keys_that_are_gone_are_asked_for_anew_and_the_request_is_sent_once_more(world: World) -> None:
    _, service, url = world
    with PrivateClient(url, verifier()) as client:
        assert client.get("/v1/models").status_code == 200
        before = client.verified
        service.rotate()
        assert client.get("/v1/models").status_code == 200
        assert client.verified is not before
        service.sabotage.refuse = [(409, "stale-key"), (409, "stale-key")]
        with pytest.raises(ExchangeError, match="own keys") as caught:
            client.get("/v1/models")
        assert caught.value.code == "exchange_refused"
        assert service.sabotage.refuse == []

    async def work() -> None:
        async with AsyncPrivateClient(url, verifier()) as http:
            await http.get("/v1/models")
            service.rotate()
            assert (await http.get("/v1/models")).status_code == 200

    run(work())


def test_a_verification_is_made_anew_when_it_is_a_day_old(world: World) -> None:
    _, service, url = world
    later = timedelta()
    judge = verifier(clock=lambda: now() + later)
    with PrivateClient(url, judge) as client:
        client.get("/v1/models")
        first = client.verified
        client.get("/v1/models")
        assert client.verified is first
        later = timedelta(minutes=76)  # the keys' hour and overlap, and the clocks' difference, are over
        with pytest.raises(VerificationError, match="not in force"):
            client.get("/v1/models")
        assert len(service.asked) == 2
    assert first is not None
    assert first.until - first.at < timedelta(minutes=76)


def test_what_the_service_refuses_outside_is_said_locally(world: World) -> None:
    _, service, url = world
    with PrivateClient(url, verifier()) as client:
        client.attest()
        service.sabotage.refuse = [(503, "busy"), (413, "too-large"), (400, "request")]
        busy = client.get("/v1/models")
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "busy")
        large = client.get("/v1/models")
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        with pytest.raises(ExchangeError, match="does not take"):
            client.get("/v1/models")
        assert client.post("/v1/completions", content=bytes(MAX_BODY + 1)).status_code == 413
        service.sabotage.keys_status = 503
        with pytest.raises(httpx2.ConnectError, match="busy"):
            client.attest()


def test_closing_a_stream_cancels_the_work(world: World) -> None:
    engine, service, url = world
    engine.script = ("x" * 500,)
    engine.broken = lambda made: time.sleep(0.005)
    with PrivateClient(url, verifier()) as client:
        with client.stream(
            "POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=500)
        ) as response:
            next(response.iter_bytes())
        assert eventually(lambda: service.running == 0)
        assert eventually(lambda: engine.running == 0)
        assert engine.made < 500


def test_other_hosts_are_not_asked(world: World) -> None:
    _, service, url = world
    with PrivateClient(url, verifier()) as client:
        for other in ("http://other.example/v1/models", "https://169.254.169.254/"):
            with pytest.raises(InputError, match="nobody else"):
                client.get(other)
        assert client.get("http://private/v1/models").status_code == 200
    assert len(service.asked) == 1


def test_what_cannot_be_sent_is_said(world: World) -> None:
    _, service, url = world
    with PrivateClient(url, verifier()) as client:
        with pytest.raises(InputError, match="bearer"):
            client.get("/v1/models", auth=("user", "canary-password"))
        with pytest.raises(InputError, match="headers"):
            client.get("/v1/models", headers={f"x-{number}": "v" for number in range(70)})
    assert service.asked == []
    for url in (
        "ftp://x",
        "https://a@b",
        "https://x/v1",
        "https://x?q",
        "x",
        "https://x:99999",
        "http://a\nb",
    ):
        with pytest.raises(InputError, match="address"):
            PrivateClient(url)
    with pytest.raises(InputError, match="model digest"):
        PrivateClient("https://x", verifier(), model_digest="ab")


def test_environment_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, url = world
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with PrivateClient(url, verifier()) as client:
        assert client.get("/v1/models").status_code == 200


def test_policies_and_files_of_them(world: World, tmp_path: Path) -> None:
    _, service, url = world
    path = tmp_path / "policy.toml"
    path.write_text('kinds = ["tdx"]\n')
    for policy in (EnclavePolicy(), path):
        with PrivateClient(url, policy) as client, pytest.raises(PolicyRefused):
            client.get("/v1/models")
    assert verifier_of(path).policy_digest == EnclavePolicy(kinds=("tdx",)).digest
    assert service.asked == []
    path.write_text("nonsense = 1\n")
    with pytest.raises(InputError):
        PrivateClient(url, path)


def test_secrets_do_not_show(world: World) -> None:
    _, _, url = world
    with PrivateClient(url, verifier(appraise=AppraiserDouble()), token=TOKEN) as client:
        client.get("/v1/models")
        assert TOKEN not in repr(client) + repr(client._transport) + repr(client.verified)


def test_done_waits_for_the_receipt_wherever_blocks_end() -> None:
    """An application may send [DONE] in one piece with what comes before, cut anywhere into blocks."""
    sizes = iter(range(990, 1020))

    class Chatty:
        async def __call__(self, request: Request) -> Reply:
            async def pieces() -> AsyncIterator[bytes]:
                yield b"data: " + b"x" * next(sizes) + b"\n\ndata: [DONE]\n\n"

            return Reply(200, {"content-type": "text/event-stream"}, pieces())

        def aclose(self) -> None:
            pass

    with running(ServiceDouble(Chatty())) as url, PrivateClient(url, verifier()) as client:
        for _ in range(30):
            with client.stream("POST", "/v1/chat/completions", json={}) as response:
                seen = b""
                for piece in response.iter_raw():
                    seen += piece
                    assert (b"[DONE]" in seen) <= (receipt_of(response) is not None)
            assert seen.endswith(b"x\n\ndata: [DONE]\n\n")
