"""The proxy: the official client with a changed base URL and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from tests.enclave.doubles import AttesterDouble
from tests.inference.client.doubles import (
    DIGEST,
    MAX_BODY,
    TOKEN,
    Proxied,
    ServiceDouble,
    eventually,
    proxied,
    run,
    running,
    scripted,
    verifier,
)
from tests.inference.openai.engine import ScriptedEngine, chat_body

from cloister.errors import PolicyRefused
from cloister.inference.exchange import KeyRing

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}

World = tuple[ScriptedEngine, ServiceDouble, Proxied]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    engine, service = scripted("Hello there")
    with (
        running(service) as url,
        proxied(url, token=TOKEN, receipts=tmp_path / "receipts.jsonl") as proxy,
    ):
        yield engine, service, proxy


def official(proxy: Proxied, **changes: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="unused", max_retries=0, **changes)  # type: ignore[arg-type]


def test_chat_completions_embeddings_and_models(world: World) -> None:
    _, service, proxy = world
    with official(proxy) as client:
        answer = client.chat.completions.create(**chat_body())
        assert answer.choices[0].message.content == "Hello there"
        assert answer.usage is not None
        text = client.completions.create(model="scripted", prompt="hi", max_tokens=50)
        assert text.choices[0].text == "Hello there"
        vectors = client.embeddings.create(model="scripted", input=["ab", "c"])
        assert [each.embedding for each in vectors.data] == [[2.0, 0.5, -0.25], [1.0, 0.5, -0.25]]
        assert [each.id for each in client.models.list()] == ["scripted"]
        assert client.models.retrieve("scripted").id == "scripted"
    assert set(service.credentials) == {TOKEN}
    assert {path for _, path, _ in service.outside} == {
        "/.well-known/cloister/keys",
        "/.well-known/cloister/exchange",
    }
    assert (proxy.proxy.requests, proxy.proxy.receipts) == (5, 5)


def test_streaming_with_usage(world: World) -> None:
    _, _, proxy = world
    with official(proxy) as client:
        stream = client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **chat_body()
        )
        chunks = list(stream)
        assert (
            "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == "Hello there"
        )
        assert len(chunks) > 10
        assert chunks[-1].usage is not None
        texts = client.completions.create(model="scripted", prompt="hi", max_tokens=50, stream=True)
        assert "".join(each.choices[0].text for each in texts) == "Hello there"
    assert eventually(lambda: proxy.proxy.receipts == 2)


def test_tools(world: World) -> None:
    engine, _, proxy = world
    engine.script = ('<call>{"name": "weather", "arguments": {"city": "Ulm"}}</call>',)
    with official(proxy) as client:
        answer = client.chat.completions.create(tools=[WEATHER], max_tokens=100, **chat_body())  # type: ignore[call-overload]
        assert answer.choices[0].finish_reason == "tool_calls"
        call = answer.choices[0].message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Ulm"})
        with client.chat.completions.stream(tools=[WEATHER], max_tokens=100, **chat_body()) as stream:  # type: ignore[arg-type]
            final = stream.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.name == "weather"  # type: ignore[index]


def test_the_errors_are_the_official_classes(world: World) -> None:
    _, service, proxy = world
    with official(proxy) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(**chat_body() | {"model": "other"})
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(**chat_body(temperature=99))
        assert bad.value.param == "temperature"
        service.sabotage.refuse = [(503, "busy")]
        with pytest.raises(openai.InternalServerError) as busy:
            client.models.list()
        assert (busy.value.status_code, busy.value.code) == (503, "busy")
        with pytest.raises(openai.APIStatusError) as large:
            client.completions.create(model="scripted", prompt="x" * (MAX_BODY + 1))
        assert large.value.status_code == 413
    with httpx2.Client(base_url=proxy.address) as client:
        assert client.get("/nothing").json()["error"]["code"] == "not_found"
        assert client.post("/v1/completions", content=b"x" * (33 << 20)).status_code == 413
        assert client.get("/v1/%00").status_code in (400, 404)


def test_a_busy_service_is_asked_again_by_the_official_client(world: World) -> None:
    _, service, proxy = world
    service.sabotage.refuse = [(503, "busy")]
    with openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="unused", max_retries=1) as client:
        assert [each.id for each in client.models.list()] == ["scripted"]


def test_an_application_that_goes_away_cancels_the_work(world: World) -> None:
    engine, service, proxy = world
    engine.script = ("x" * 900,)
    engine.broken = lambda made: time.sleep(0.005)
    with official(proxy) as client:
        stream = client.chat.completions.create(stream=True, max_tokens=900, **chat_body())
        next(iter(stream))
        stream.close()
        assert eventually(lambda: engine.running == 0 and service.running == 0)
        assert engine.made < 900

        engine.gate = asyncio.Event()  # an answer that does not come
        impatient = client.with_options(timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            impatient.chat.completions.create(**chat_body())
        assert eventually(lambda: engine.running == 0 and service.running == 0)


def test_many_at_once(world: World) -> None:
    engine, _, proxy = world

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=f"{proxy.address}/v1", api_key="x", max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(stream=True, **chat_body())
                return "".join([each.choices[0].delta.content or "" async for each in stream])

            assert set(await asyncio.gather(*[one() for _ in range(50)])) == {"Hello there"}

    run(work())
    assert engine.running == 0


def test_the_page_says_what_was_verified(world: World, tmp_path: Path) -> None:
    _, _, proxy = world
    with httpx2.Client(base_url=proxy.address) as client:
        client.get("/v1/models")
        found = client.get("/").json()
        assert found["verified"] is True
        assert (found["model"], found["model_digest"], found["protection"]) == (
            "scripted",
            DIGEST,
            "hardware",
        )
        assert found["receipts"] == {"checked": 1, "file": str(tmp_path / "receipts.jsonl")}
        assert found["evidence"]["signature"] == "yes"
        assert found["evidence"]["revocation_checked"] == "not checked"
        page = client.get("/", headers={"accept": "text/html"})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "<strong>Verified: hardware</strong>" in page.text
        assert found["keys"] in page.text
        assert client.head("/").status_code == 200
        assert client.post("/").status_code == 404


@pytest.mark.parametrize("known", [True, False, None])
def test_hardware_alone_does_not_say_which_software_answers(known: bool | None) -> None:
    """Under a policy without reference values anybody's machine of that kind passes: no page calls it good."""
    from tests.enclave.doubles import AppraiserDouble

    _, service = scripted()
    double = AppraiserDouble()

    def appraise(*given: object) -> object:
        import msgspec

        claims, reasons = double(*given)  # type: ignore[arg-type]
        return msgspec.structs.replace(claims, measurement_match=known), reasons

    with running(service) as url, proxied(url, policy=verifier(appraise=appraise)) as proxy:
        page = httpx2.get(proxy.address, headers={"accept": "text/html"}).text
        assert ("<p class=good>" in page) is (known is True)
        assert ("NO KNOWN SOFTWARE" in page) is (known is not True)
        assert ("and no other, holds the keys" in page) is (known is True)


def test_an_engine_behind_the_worker_is_said_aloud() -> None:
    """Evidence covers the worker that passes requests on: no page calls the whole good, or shows a digest."""
    from tests.enclave.doubles import AppraiserDouble

    _, service = scripted()
    service.ring = KeyRing("engine", "0" * 64, lifetime=3600, overlap=600, max_body=MAX_BODY)
    double = AppraiserDouble()

    def appraise(*given: object) -> object:
        import msgspec

        claims, reasons = double(*given)  # type: ignore[arg-type]
        return msgspec.structs.replace(claims, measurement_match=True), reasons

    with running(service) as url, proxied(url, policy=verifier(appraise=appraise)) as proxy:
        page = httpx2.get(proxy.address, headers={"accept": "text/html"}).text
    assert "sees requests in the clear" in page
    assert "<p class=good>" not in page
    assert "0" * 64 not in page


def test_the_page_shows_evidence_as_text_and_names_software_aloud() -> None:
    _, service = scripted()
    service.attester = AttesterDouble(hardware=False, machine="<script>alert(1)</script>")
    from tests.enclave.doubles import AppraiserDouble

    double = AppraiserDouble(software=True)

    def appraise(*given: object) -> object:
        import msgspec

        claims, reasons = double(*given)  # type: ignore[arg-type]
        return msgspec.structs.replace(claims, reasons={"signature": "<script>alert(1)</script>"}), reasons

    with running(service) as url, proxied(url, policy=verifier(appraise=appraise)) as proxy:
        page = httpx2.get(proxy.address, headers={"accept": "text/html"}).text
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
        assert "NOT HARDWARE-PROTECTED" in page
        assert "Verified: not hardware-protected" in page


def test_it_does_not_start_on_a_service_that_does_not_pass() -> None:
    _, service = scripted()
    service.attester = AttesterDouble(hardware=False)
    with running(service) as url, pytest.raises(PolicyRefused), proxied(url):
        pass
    with pytest.raises(httpx2.ConnectError), proxied("http://127.0.0.1:9"):
        pass


def test_a_service_that_ceases_to_pass_gets_nothing_more(world: World) -> None:
    _, service, proxy = world
    with official(proxy) as client:
        client.models.list()
        service.rotate()
        service.attester = AttesterDouble(hardware=False)
        with pytest.raises(openai.InternalServerError) as refused:
            client.models.list()
        assert (refused.value.status_code, refused.value.code) == (502, "evidence_refused")
        assert "hardware" in str(refused.value)
        assert len(service.asked) == 1


def test_it_verifies_again_ahead_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.inference.client import proxy as module

    _, service = scripted()
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(module, "_AHEAD_SECONDS", 1e6)
    with running(service) as url, proxied(url) as proxy:
        first = proxy.proxy.verified
        assert eventually(lambda: proxy.proxy.verified is not first)
        service.attester = AttesterDouble(hardware=False)
        assert eventually(lambda: "not hardware-protected" in proxy.proxy.problem)
        assert "not hardware-protected" in httpx2.get(proxy.address).json()["problem"]
        with official(proxy) as client:
            client.models.list()  # what was verified still counts
        service.attester = AttesterDouble()
        assert eventually(lambda: proxy.proxy.problem == "")
