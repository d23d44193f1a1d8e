"""Answers that are sealed to somebody else before they leave the enclave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from tests.inference.client.doubles import ServiceDouble, proxied, running, scripted, verifier
from tests.inference.openai.engine import chat_body

from cloister.crypto import Identity, open_bytes, seal_bytes
from cloister.errors import InputError
from cloister.inference.application import Reply, Request
from cloister.inference.client import ExchangeError, PrivateClient
from cloister.inference.client.heads import readers_header
from cloister.inference.client.sealedanswers import SealedAnswers

ANN, BEN = Identity.generate("ann"), Identity.generate("ben")
READERS = (ANN.public, BEN.public)


@pytest.fixture
def service() -> Iterator[tuple[ServiceDouble, str]]:
    _, service = scripted("canary answer")
    with running(service) as url:
        yield service, url


def test_the_answer_opens_for_its_readers_alone(service: tuple[ServiceDouble, str]) -> None:
    _, url = service
    with PrivateClient(url, verifier(), seal_to=READERS) as client:
        response = client.post("/v1/chat/completions", json=chat_body())
        assert b"canary" not in response.content
        for reader in (ANN, BEN):
            answer = json.loads(open_bytes(response.content, reader))
            assert answer["choices"][0]["message"]["content"] == "canary answer"
        with pytest.raises(InputError):
            open_bytes(response.content, Identity.generate("eve"))
        assert client.post("/v1/chat/completions", json=chat_body(model="x")).status_code == 404
        assert client.get("/v1/models").json()["data"]


@pytest.mark.parametrize("readers", [(), (ANN.public,), (BEN.public, ANN.public)])
def test_what_is_not_sealed_as_asked_is_not_handed_on(readers: tuple[object, ...]) -> None:
    class Careless:
        async def __call__(self, request: Request) -> Reply:
            if not readers:
                return Reply(200, {"content-type": "application/json"}, b"in the open")
            return Reply(200, {"content-type": "application/cloister-sealed"}, seal_bytes(b"x", readers))  # type: ignore[arg-type]

        def aclose(self) -> None:
            pass

    with (
        running(ServiceDouble(Careless())) as url,
        PrivateClient(url, verifier(), seal_to=READERS) as client,
        pytest.raises(ExchangeError, match="readers"),
    ):
        client.post("/v1/chat/completions", json=chat_body())


def test_too_many_readers_for_a_header() -> None:
    many = [Identity.generate(f"reader-{number}").public for number in range(8)]
    assert len(readers_header(many[:5])) < 15 << 10
    with pytest.raises(InputError, match="too many"):
        readers_header(many)
    assert readers_header([]) == ""


def test_the_application_behind_a_proxy_is_told_where(
    service: tuple[ServiceDouble, str], tmp_path: Path
) -> None:
    double, url = service
    answers = SealedAnswers(tmp_path / "answers", READERS)
    with proxied(url, answers=answers, seal_to=READERS) as proxy:
        with openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="x", max_retries=0) as client:
            answer = client.chat.completions.create(**chat_body())
            text = answer.choices[0].message.content or ""
            assert "sealed to ann, ben" in text
            stream = client.chat.completions.create(
                stream=True, stream_options={"include_usage": True}, **chat_body()
            )
            chunks = list(stream)
            assert "sealed to ann, ben" in "".join(
                c.choices[0].delta.content or "" for c in chunks if c.choices
            )
            assert chunks[-1].usage is not None
            plain = client.completions.create(model="scripted", prompt="hi", max_tokens=50)
            assert "sealed to" in plain.choices[0].text
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(**chat_body(model="x"))
            with pytest.raises(openai.BadRequestError, match="cannot be sealed"):
                client.embeddings.create(model="scripted", input="x")
            assert [each.id for each in client.models.list()] == ["scripted"]
        assert httpx2.post(f"{proxy.address}/v1/completions", content=b"[]").status_code == 400
        assert httpx2.get(proxy.address).json()["sealed_to"] == ["ann", "ben"]
    files = sorted((tmp_path / "answers").iterdir())
    assert len(files) == 3
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"canary answer" in open_bytes(file.read_bytes(), BEN)
    assert str(next(file for file in files if str(file) in text)) in text
    assert all(json.loads(each.body).get("stream") is None for each in double.asked if each.body)
