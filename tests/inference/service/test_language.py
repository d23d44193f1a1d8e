"""A language model served for real: walls, uvicorn, a streamed conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.inference.service.real import Running, running

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
