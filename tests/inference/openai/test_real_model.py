"""A real (tiny) language model behind OpenAI's paths, asked by the official client over HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.inference.openai.plaindoor import serve_plain

from cloister.inference.openai import OpenAIApp

openai = pytest.importorskip("openai")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.inference.language.models import make_tool_model

    from cloister.inference.language.load import load_engine
    from cloister.learning.modelfiles.files import PlainFolder

    folder: Path = make_tool_model(tmp_path_factory.mktemp("models") / "tool")
    scratch = tmp_path_factory.mktemp("scratch")
    return load_engine(PlainFolder(folder), name="tool", kv_tokens=4096, threads=1, scratch=scratch)


@pytest.fixture(scope="module")
def client(engine: Any) -> Iterator[openai.OpenAI]:
    with (
        serve_plain(OpenAIApp(engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made,
    ):
        yield made


def ask(client: openai.OpenAI, messages: list[Any], **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tool", "messages": messages, "temperature": 0, "max_tokens": 80} | more
    )


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    from tests.inference.language.models import GREETING, HELLO

    whole = ask(client, said(GREETING), seed=1)
    assert whole.choices[0].message.content == HELLO
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(
        ask(client, said(GREETING), stream=True, stream_options={"include_usage": True}, logprobs=True)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == HELLO
    assert chunks[-1].usage == whole.usage
    told = [
        each
        for chunk in chunks[:-1]
        if chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content
    ]
    assert all(math.exp(each.logprob) > 0.5 for each in told)
    assert abs(len(told) - whole.usage.completion_tokens) <= 1  # what ends an answer has no text


def test_a_tool_is_called_and_its_result_is_read(client: openai.OpenAI) -> None:
    from tests.inference.language.models import HELLO, TOOL, TOOL_ARGUMENTS, TOOL_QUESTION

    first = ask(client, said(TOOL_QUESTION), tools=[TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls[0].function.arguments == TOOL_ARGUMENTS
    chunks = list(ask(client, said(TOOL_QUESTION), tools=[TOOL], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls] == ["weather"]
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sunny"}
    second = ask(client, [*said(TOOL_QUESTION), message, result], tools=[TOOL])
    assert second.choices[0].message.content == HELLO


def test_stop_length_and_several(client: openai.OpenAI) -> None:
    from tests.inference.language.models import GREETING, HELLO

    cut = ask(client, said(GREETING), stop=["How"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (HELLO[: HELLO.index("How")], "stop")
    short = ask(client, said(GREETING), max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    many = ask(client, said(GREETING), n=3, temperature=1.5, top_p=0.9, extra_body={"top_k": 50})
    assert len(many.choices) == 3
    texts = client.completions.create(model="tool", prompt=["a", "b"], max_tokens=3, temperature=0)
    assert [choice.index for choice in texts.choices] == [0, 1]
    again = client.completions.create(model="tool", prompt="a", max_tokens=3, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in again) == texts.choices[0].text


def test_what_does_not_fit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, said("word " * 2000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model="tool", prompt=[999_999], max_tokens=2)
    assert "999" not in str(unknown.value.message)


def test_embeddings(client: openai.OpenAI, engine: Any) -> None:
    if not engine.embeds:
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="tool", input="a")
        return
    vectors = [each.embedding for each in client.embeddings.create(model="tool", input=["a", "b"]).data]
    assert all(math.isclose(sum(x * x for x in vector), 1.0, rel_tol=1e-5) for vector in vectors)


def test_a_client_that_goes_frees_the_engine(client: openai.OpenAI) -> None:
    for _ in range(5):
        stream = ask(
            client, said("a b c"), stream=True, max_tokens=400, temperature=2, extra_body={"top_k": 0}
        )
        next(iter(stream))
        stream.close()
    assert ask(client, said("a"), max_tokens=1).usage.completion_tokens == 1
