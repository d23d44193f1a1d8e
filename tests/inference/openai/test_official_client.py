"""The official client finds an OpenAI server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.inference.openai.engine import BracketParser, ScriptedEngine
from tests.inference.openai.plaindoor import serve_plain

from cloister.errors import StorageError
from cloister.inference.openai import OpenAIApp

openai = pytest.importorskip("openai")
CALL = '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call>'
USER = [{"role": "user", "content": "hi"}]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]


class ByPrompt(ScriptedEngine):
    """Answers a prompt "fail" by failing, "tool" by a call, "long" at length, and says Hello otherwise."""

    def generate(self, prompt, sampling):  # type: ignore[no-untyped-def]
        words = "".join(map(chr, prompt))
        self.script = ("Hello",)
        if words.endswith("tool"):
            self.script = (CALL,)
        if words.endswith("long"):
            self.script = ("x" * 900,)
        if words.endswith("full"):
            self.script = (StorageError("full"),)
        self.broken = lambda at: RuntimeError("SECRET") if words.endswith("fail") and at == 2 else None
        return super().generate(prompt, sampling)


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ByPrompt()


@pytest.fixture(scope="module")
def client(engine: ScriptedEngine) -> Iterator[openai.OpenAI]:
    with (
        serve_plain(OpenAIApp(engine, tool_parser=BracketParser)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as made,
    ):
        yield made


def said(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": word}]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=USER, n=2)
    assert [choice.message.content for choice in answer.choices] == ["Hello", "Hello"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12


def test_chat_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=USER, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_the_clients_own_gathering_of_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=said("tool"), tools=TOOLS) as stream:
        stream.until_done()
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "weather"


def test_a_tool_round(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    first = client.chat.completions.create(model="scripted", messages=said("tool"), tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    second = client.chat.completions.create(
        model="scripted", messages=[*said("tool"), message, result], tools=TOOLS
    )
    assert second.choices[0].message.content == "Hello"
    told = engine.conversations[-1][0]
    assert told[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}


def test_completions_and_embeddings_and_models(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt=["a", "b"])
    assert [choice.text for choice in answer.choices] == ["Hello", "Hello"]
    pieces = client.completions.create(model="scripted", prompt=[1, 2], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "Hello"
    vectors = client.embeddings.create(model="scripted", input=["ab"]).data  # asks for base64 by itself
    assert list(vectors[0].embedding) == [2.0, 0.5, -0.25]
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "cloister"


def test_refusals(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="scripted", messages=USER, presence_penalty=1)
    assert bad.value.param == "presence_penalty"
    with pytest.raises(openai.InternalServerError) as full:
        client.chat.completions.create(model="scripted", messages=said("full"))
    assert full.value.status_code == 503


def test_an_error_within_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="scripted", messages=said("fail"), stream=True)
    with pytest.raises(openai.APIError, match="could not answer"):
        list(stream)


def test_a_client_that_goes_stops_the_engine(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    stream = client.chat.completions.create(model="scripted", messages=said("long"), stream=True)
    next(iter(stream))
    stream.close()
    for _ in range(500):
        if not engine.running:
            break
        time.sleep(0.01)
    assert engine.running == 0
