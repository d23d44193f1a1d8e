"""Requests that do not fit get an OpenAI error object that names the field; nothing at all raises."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.openai.engine import ScriptedEngine, body_of, chat_body, post

from cloister.inference.application import Request
from cloister.inference.openai import OpenAIApp
from cloister.inference.openai.schema import read_chat

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


def refused(request: Request, engine: ScriptedEngine | None = None) -> tuple[int, dict[str, Any]]:
    engine = engine or ScriptedEngine()

    async def run() -> tuple[int, bytes]:
        reply = await OpenAIApp(engine)(request)
        assert reply.headers["content-type"] == "application/json"
        return reply.status, await body_of(reply)

    status, body = asyncio.run(run())
    answer = json.loads(body)
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"].endswith(".")
    return status, answer["error"]


USER = {"role": "user", "content": "hi"}
MESSAGE = "messages[0]"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "pope", "content": "x"}]}, f"{MESSAGE}.role"),
        ({"messages": [{"content": "x"}]}, f"{MESSAGE}.role"),
        ({"messages": [{"role": "user"}]}, f"{MESSAGE}.content"),
        ({"messages": [{"role": "user", "content": 3}]}, f"{MESSAGE}.content"),
        ({"messages": [{"role": "user", "content": []}]}, f"{MESSAGE}.content"),
        ({"messages": [{**USER, "mood": "good"}]}, f"{MESSAGE}.mood"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            f"{MESSAGE}.content[0].type",
        ),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
            f"{MESSAGE}.tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"max_tokens": 999}, "messages"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": {"include": 1}}, "stream_options.include"),
        ({"seed": 1}, "seed"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{}]}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]},
            "tools[0].function.strict",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: dict[str, Any], param: str) -> None:
    status, error = refused(post(PATHS[0], chat_body(**change)))
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "flex"},
        {"safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h"},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1, "modalities": ["text"]},
        {"response_format": {"type": "text"}, "top_logprobs": 0, "seed": 5, "temperature": 0},
        {"temperature": None, "stop": None, "tools": None, "tool_choice": None, "logprobs": None},
        {"tools": [], "parallel_tool_calls": True, "functions": [], "function_call": "none"},
        {"stream": False, "stop": [], "top_k": -1},
    ],
)
def test_fields_that_ask_for_nothing_pass(harmless: dict[str, Any]) -> None:
    read_chat(json.dumps(chat_body(**harmless)).encode())


def test_tools_of_a_model_that_has_none() -> None:
    engine = ScriptedEngine()
    engine.takes_tools = False
    tools = [{"type": "function", "function": {"name": "a"}}]
    status, error = refused(post(PATHS[0], chat_body(tools=tools)), engine)
    assert (status, error["param"]) == (400, "tools")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": "a" * 990}, "prompt"),
        ({"prompt": "\0"}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 5}, "logprobs"),
        ({}, "prompt"),
    ],
)
def test_completions_that_do_not_fit(body: dict[str, Any], param: str) -> None:
    status, error = refused(post(PATHS[1], {"model": "scripted"} | body))
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (Request("GET", PATHS[0], {}, b""), 405, "method_not_allowed"),
        (Request("DELETE", "/v1/models/scripted", {}, b""), 405, "method_not_allowed"),
        (Request("POST", "/v1/models", {}, b"{}"), 405, "method_not_allowed"),
        (Request("POST", "/v1/images/generations", {}, b"{}"), 404, "unknown_url"),
        (Request("GET", "/", {}, b""), 404, "unknown_url"),
        (Request("POST", "/v1/chat/completions/", {}, b"{}"), 404, "unknown_url"),
        (post(PATHS[0], b""), 400, "invalid_json"),
        (post(PATHS[0], b"[]"), 400, "invalid_json"),
        (post(PATHS[0], b"\xff\xfe"), 400, "invalid_json"),
        (post(PATHS[0], b'{"model":"\\ud800"}'), 400, "invalid_json"),
        (post(PATHS[0], b"[" * 100_000), 400, "invalid_json"),
        (post(PATHS[0], b'{"a":' * 100_000), 400, "invalid_json"),
        (post(PATHS[0], b'{"max_tokens":' + b"9" * 100_000 + b"}"), 400, None),
        (post(PATHS[0], chat_body(model="gpt-9")), 404, "model_not_found"),
    ],
)
def test_whole_requests_that_do_not_fit(request_: Request, status: int, code: str | None) -> None:
    got, error = refused(request_)
    assert got == status
    assert code is None or error["code"] == code


def test_a_refused_method_names_the_right_one() -> None:
    reply = asyncio.run(OpenAIApp(ScriptedEngine())(Request("PUT", PATHS[0], {}, b"")))
    assert reply.headers["allow"] == "POST"


def test_a_refusal_does_not_give_back_all_that_was_sent() -> None:
    for body in (chat_body(model="x" * 100_000), chat_body(**{"y" * 100_000: 1})):
        reply = asyncio.run(OpenAIApp(ScriptedEngine())(post(PATHS[0], body)))
        assert len(reply.body) < 5000  # type: ignore[arg-type]


def test_requests_do_not_show_in_a_repr() -> None:
    asked = read_chat(json.dumps(chat_body(messages=[{"role": "user", "content": "SECRET"}])).encode())
    assert "SECRET" not in repr(asked) + repr(asked.messages)


_NAMES = """model messages role content user assistant tool system developer type text tools function name
    arguments tool_calls tool_call_id id stream stream_options include_usage n stop temperature prompt input
    max_tokens logprobs scripted hi encoding_format base64 seed tool_choice auto parameters strict"""
_WORDS = st.sampled_from(re.findall(r"\w+", _NAMES))
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=6),
    max_leaves=20,
)
_BASE = st.just({"model": "scripted", "messages": [USER]}) | st.just({"model": "scripted"})


def never_raises(path: str, body: bytes) -> None:
    async def run() -> None:
        reply = await OpenAIApp(ScriptedEngine("ok"))(post(path, body))
        data = await body_of(reply)
        assert reply.status in (200, 400, 404)
        if reply.status != 200:
            assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}

    asyncio.run(run())


@given(st.sampled_from(PATHS), st.dictionaries(_WORDS, _JSON, max_size=6), _BASE)
@settings(max_examples=150, deadline=None)
def test_no_json_makes_it_raise(path: str, change: dict[str, Any], base: dict[str, Any]) -> None:
    never_raises(path, json.dumps(base | change).encode())


@given(st.sampled_from(PATHS), st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_no_bytes_make_it_raise(path: str, body: bytes) -> None:
    never_raises(path, body)


@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "PUT", "\u00e9"]))
@settings(max_examples=100, deadline=None)
def test_no_path_makes_it_raise(path: str, method: str) -> None:
    reply = asyncio.run(OpenAIApp(ScriptedEngine())(Request(method, path, {}, b"{}")))
    assert reply.status in (200, 400, 404, 405)
