"""A language model served for real: walls, uvicorn, a streamed conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.doubles import AppraiserDouble
from tests.inference.service.real import Running, running

from cloister.inference.client import PrivateClient, Verifier
from cloister.inference.service import LanguageModel

pytestmark = pytest.mark.slow

CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Good morning!"}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from tests.inference.language.models import make_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    with running(LanguageModel(Path(folder), kv_tokens=2048), threads=1) as here:
        yield here


def test_a_conversation_is_answered(served: Running) -> None:
    status, body = served.ask("/v1/chat/completions", CHAT)
    assert status == 200, body
    assert json.loads(body)["usage"]["completion_tokens"] <= 12
    assert served.ask("/v1/chat/completions", CHAT)[0] == 200


def test_a_stream_is_the_same_answer_in_pieces(served: Running) -> None:
    whole = json.loads(served.ask("/v1/chat/completions", CHAT)[1])["choices"][0]["message"]["content"]
    head, *pieces = served.stream("/v1/chat/completions", {**CHAT, "stream": True})
    assert head.headers["content-type"].startswith("text/event-stream")
    events = [line for line in b"".join(pieces).decode().split("\n\n") if line]
    assert events[-1] == "data: [DONE]"
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole


def test_the_keys_name_the_model(served: Running) -> None:
    keys = served.keys()
    assert served.service.ready is not None
    assert served.service.ready.kind == "language"
    assert (keys.model, keys.model_digest) == ("tiny", served.service.ready.model_digest)
    assert served.service.walls["Landlock"] is True


@pytest.fixture
def official(served: Running) -> Iterator[Any]:
    """The official client, whose HTTP client verified the service."""
    openai = pytest.importorskip("openai")
    http = PrivateClient(served.url, Verifier(AppraiserDouble()))
    with openai.OpenAI(base_url="http://private/v1", http_client=http, api_key="any") as client:
        yield client


def test_the_official_client(official: Any) -> None:
    answer = official.chat.completions.create(**CHAT)
    assert answer.usage.completion_tokens <= 12
    pieces = official.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    text, used = "", None
    for piece in pieces:
        text += (piece.choices[0].delta.content or "") if piece.choices else ""
        used = piece.usage or used
    assert text == answer.choices[0].message.content
    assert used is not None
    assert used.completion_tokens == answer.usage.completion_tokens
    assert [model.id for model in official.models.list()] == ["tiny"]


def test_closing_a_stream_of_the_official_client_ends_the_work(official: Any, served: Running) -> None:
    before = served.service.stats().get("cancelled", 0)
    stream = official.chat.completions.create(**{**CHAT, "max_tokens": 200, "temperature": 1.5}, stream=True)
    next(iter(stream))
    stream.close()
    for _ in range(1000):
        if served.service.stats()["open"] == 0:
            break
        time.sleep(0.02)
    stats = served.service.stats()
    assert stats["open"] == 0
    assert stats.get("cancelled", 0) <= before + 1
    assert official.chat.completions.create(**CHAT).choices
