"""Chat completions, whole and streamed, with tools, several answers, and engines that fail."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.inference.openai.engine import ScriptedEngine, body_of, chat_body, events_of, post

from cloister.errors import InputError, StorageError
from cloister.inference.application import Reply
from cloister.inference.openai import OpenAIApp

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call>'


def ask(engine: ScriptedEngine, **more: Any) -> tuple[int, Any]:
    async def run() -> tuple[Reply, bytes]:
        reply = await OpenAIApp(engine, now=lambda: 1700000000.5)(post(CHAT, chat_body(**more)))
        return reply, await body_of(reply)

    reply, body = asyncio.run(run())
    assert engine.running == 0
    if reply.headers["content-type"].startswith("text/event-stream"):
        return reply.status, events_of(body)
    return reply.status, json.loads(body)


def test_a_whole_answer() -> None:
    engine = ScriptedEngine("Hello")
    status, answer = ask(engine)
    assert status == 200
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["created"], answer["model"]) == (
        "chat.completion",
        1700000000,
        "scripted",
    )
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


def test_without_a_limit_the_rest_of_the_context_is_offered() -> None:
    engine = ScriptedEngine(context=50)
    ask(engine)
    assert engine.asked[0][1].max_tokens == 48


def test_what_is_asked_reaches_the_engine() -> None:
    engine = ScriptedEngine("Hello")
    status, answer = ask(
        engine, max_completion_tokens=3, temperature=0, top_p=0.5, top_k=7, stop="x", seed=4, user="me"
    )
    sampling = engine.asked[0][1]
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (3, 0.0, 0.5, 7)
    assert sampling.stop == ("x",)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hel")
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stream() -> None:
    _, events = ask(ScriptedEngine("Hey"), stream=True, stream_options={"include_usage": True})
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "H"},
        {"content": "e"},
        {"content": "y"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 4 + ["stop"]
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_a_stream_without_usage_does_not_mention_it() -> None:
    _, events = ask(ScriptedEngine("Hey"), stream=True)
    assert not any("usage" in event for event in events)


def test_several_answers() -> None:
    engine = ScriptedEngine("one", "three", "fourth")
    _, answer = ask(engine, n=3)
    assert [each["message"]["content"] for each in answer["choices"]] == ["one", "three", "fourth"]
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 14, "total_tokens": 16}


def test_several_answers_streamed_come_together() -> None:
    engine = ScriptedEngine("one", "three", "fourth")
    _, events = ask(engine, n=3, stream=True)
    texts, ends, order = ["", "", ""], ["", "", ""], []
    assert [event["choices"][0]["delta"].get("role") for event in events[:3]] == ["assistant"] * 3
    for event in events[3:]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends[choice["index"]] = choice["finish_reason"]
        order.append(choice["index"])
    assert texts == ["one", "three", "fourth"]
    assert ends == ["stop"] * 3
    assert set(order[:3]) == {0, 1, 2}


def test_logprobs_of_each_token() -> None:
    _, answer = ask(ScriptedEngine("aé"), logprobs=True, top_logprobs=0)
    content = answer["choices"][0]["logprobs"]["content"]
    assert content[1] == {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []}
    _, events = ask(ScriptedEngine("aé"), logprobs=True, stream=True)
    told = [event["choices"][0]["logprobs"] for event in events]
    assert [each["content"][0]["token"] for each in told if each] == ["a", "é"]


def test_a_tool_is_called() -> None:
    engine = ScriptedEngine("Well. " + CALL)
    _, answer = ask(engine, tools=[WEATHER])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well. "
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert engine.conversations[0][1] == [WEATHER]


def test_a_call_alone_has_no_content() -> None:
    _, answer = ask(ScriptedEngine(CALL), tools=[WEATHER])
    assert answer["choices"][0]["message"]["content"] is None


def test_tool_calls_are_streamed_whole() -> None:
    _, events = ask(ScriptedEngine(CALL + CALL), tools=[WEATHER], stream=True)
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[0]["id"] != calls[1]["id"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any("<" in event["choices"][0]["delta"].get("content", "") for event in events)


def test_one_call_and_no_more_where_only_one_is_wanted() -> None:
    engine = ScriptedEngine(CALL + CALL + "and so on" * 10)
    _, answer = ask(engine, tools=[WEATHER], parallel_tool_calls=False)
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert engine.made == len(CALL)


def test_tools_that_may_not_be_called_are_not_shown_to_the_model() -> None:
    engine = ScriptedEngine(CALL)
    _, answer = ask(engine, tools=[WEATHER], tool_choice="none")
    assert engine.conversations[0][1] == []
    assert answer["choices"][0]["message"]["content"] == CALL


def test_without_tools_nothing_is_looked_for() -> None:
    _, answer = ask(ScriptedEngine(CALL))
    assert answer["choices"][0]["message"]["content"] == CALL


def test_a_call_that_was_cut_is_text() -> None:
    _, answer = ask(ScriptedEngine(CALL), tools=[WEATHER], max_tokens=20)
    assert answer["choices"][0]["message"]["content"] == CALL[:20]
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_conversation_as_the_template_reads_it() -> None:
    engine = ScriptedEngine()
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "q", "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city": 1}'}}
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "x"},
    ]
    status, _ = ask(engine, messages=messages)
    assert status == 200
    assert engine.conversations[0][0] == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "q", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "weather", "arguments": {"city": 1}}}
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "x"},
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "word"),
    [
        (InputError("the token is none of this model's"), 400, "invalid_request_error", "token"),
        (StorageError("SECRET queue"), 503, "server_error", "wait"),
        (RuntimeError("SECRET"), 500, "server_error", "could not answer"),
    ],
)
def test_an_engine_that_refuses_at_once(
    error: Exception, status: int, kind: str, word: str, stream: bool
) -> None:
    got, answer = ask(ScriptedEngine(error), stream=stream)
    assert got == status
    assert answer["error"]["type"] == kind
    assert word in answer["error"]["message"]
    assert "SECRET" not in answer["error"]["message"]


def test_one_of_several_answers_that_fails_ends_all() -> None:
    engine = ScriptedEngine("long" * 50, StorageError("full"))
    status, _ = ask(engine, n=2)
    assert status == 503
    assert engine.made < 10


def test_an_engine_that_breaks_within_a_stream() -> None:
    engine = ScriptedEngine("Hello")
    engine.broken = lambda at: RuntimeError("SECRET") if at == 2 else None

    async def run() -> bytes:
        return await body_of(await OpenAIApp(engine)(post(CHAT, chat_body(stream=True))))

    events = asyncio.run(run()).decode().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "SECRET" not in "".join(events)
    assert "[DONE]" not in "".join(events)
    assert engine.running == 0


def test_an_engine_that_ends_without_a_reason_has_failed() -> None:
    class Cut(ScriptedEngine):
        async def generate(self, prompt: Any, sampling: Any) -> Any:
            async for piece in super().generate(prompt, sampling):
                if piece.finish is None:
                    yield piece

    status, answer = ask(Cut("Hello"))
    assert (status, answer["error"]["code"]) == (500, "internal_error")


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_whoever_stops_reading_stops_the_engine(taken: int, n: int) -> None:
    engine = ScriptedEngine("x" * 900)

    async def run() -> None:
        reply = await OpenAIApp(engine)(post(CHAT, chat_body(stream=True, n=n)))
        assert engine.running == n
        stream = reply.body
        assert not isinstance(stream, bytes)
        for _ in range(taken):
            await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert engine.running == 0
        assert engine.made < 20

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_cancelling_the_request_stops_the_engine(stream: bool, n: int) -> None:
    engine = ScriptedEngine("x" * 900)

    async def run() -> None:
        engine.gate = asyncio.Event()
        task = asyncio.ensure_future(OpenAIApp(engine)(post(CHAT, chat_body(stream=stream, n=n))))
        while engine.running < n:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.running == 0

    asyncio.run(run())


def test_closing_the_application_closes_the_engine() -> None:
    engine = ScriptedEngine()
    asyncio.run(OpenAIApp(engine).aclose())
    assert engine.closed
