"""Completions, embeddings and models."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
from tests.inference.openai.engine import ScriptedEngine, body_of, events_of, get, post

from cloister.inference.application import Reply, Request
from cloister.inference.openai import OpenAIApp


def answer_to(engine: ScriptedEngine, request: Request) -> tuple[Reply, Any]:
    async def run() -> tuple[Reply, bytes]:
        reply = await OpenAIApp(engine, now=lambda: 1700000000.5)(request)
        return reply, await body_of(reply)

    reply, body = asyncio.run(run())
    if reply.headers["content-type"].startswith("text/event-stream"):
        return reply, events_of(body)
    return reply, json.loads(body)


def complete(engine: ScriptedEngine, prompt: Any, **more: Any) -> tuple[Reply, Any]:
    return answer_to(
        engine, post("/v1/completions", {"model": "scripted", "prompt": prompt, "max_tokens": 9} | more)
    )


def test_completions_of_texts_and_of_tokens() -> None:
    engine = ScriptedEngine("one", "two", "three")
    _, answer = complete(engine, ["ab", "c"], n=2, logprobs=0)
    assert [each["text"] for each in answer["choices"]] == ["one", "two", "three", "one"]
    assert [prompt for prompt, _ in engine.asked] == [[97, 98], [97, 98], [99], [99]]
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["o", "n", "e"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": None,
        "text_offset": [0, 1, 2],
    }
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 14
    for prompt in ([5, 6], [[5, 6]]):
        engine = ScriptedEngine("x")
        _, answer = complete(engine, prompt)
        assert engine.asked[0][0] == [5, 6]
        assert len(answer["choices"]) == 1
    engine = ScriptedEngine("x" * 100)
    _, answer = answer_to(engine, post("/v1/completions", {"model": "scripted", "prompt": "a"}))
    assert (len(answer["choices"][0]["text"]), answer["choices"][0]["finish_reason"]) == (16, "length")


def test_completions_streamed() -> None:
    _, events = complete(
        ScriptedEngine("one"), "a", stream=True, logprobs=0, stream_options={"include_usage": True}
    )
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "one"
    assert [offset for event in events[:-1] for offset in event["choices"][0]["logprobs"]["text_offset"]] == [
        0,
        1,
        2,
    ]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["total_tokens"] == 4


def test_embeddings() -> None:
    def embed(given: Any, **more: Any) -> tuple[Reply, Any]:
        return answer_to(
            ScriptedEngine(), post("/v1/embeddings", {"model": "scripted", "input": given} | more)
        )

    _, answer = embed(["ab", "abc"])
    assert [each["embedding"] for each in answer["data"]] == [[2.0, 0.5, -0.25], [3.0, 0.5, -0.25]]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    _, answer = embed([1, 2, 3, 4], encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype="<f4")
    assert vector.tolist() == [4.0, 0.5, -0.25]
    reply, answer = embed("a" * 1001)
    assert (reply.status, answer["error"]["code"]) == (400, "context_length_exceeded")
    reply, answer = embed("a", dimensions=2)
    assert (reply.status, answer["error"]["param"]) == (400, "dimensions")
    reply, answer = embed(["a"] * 2049)
    assert (reply.status, answer["error"]["param"]) == (400, "input")


def test_models() -> None:
    class Slashed(ScriptedEngine):
        name = "org/model"

    model = {"id": "org/model", "object": "model", "created": 1700000000, "owned_by": "cloister"}
    _, answer = answer_to(Slashed(), get("/v1/models"))
    assert answer == {"object": "list", "data": [model]}
    for path in ("/v1/models/org/model", "/v1/models/org%2Fmodel", "/v1/models/org/model?x=1"):
        assert answer_to(Slashed(), get(path))[1] == model
    reply, answer = answer_to(Slashed(), get("/v1/models/other"))
    assert (reply.status, answer["error"]["code"]) == (404, "model_not_found")


def test_what_a_model_does_not_do() -> None:
    class Encoder(ScriptedEngine):
        generates = False

    class Decoder(ScriptedEngine):
        embeds = False

    for engine, path in (
        (Encoder(), "chat/completions"),
        (Encoder(), "completions"),
        (Decoder(), "embeddings"),
    ):
        body = {"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
        if path != "chat/completions":
            body = {"model": "scripted", ("input" if path == "embeddings" else "prompt"): "x"}
        reply, answer = answer_to(engine, post(f"/v1/{path}", body))
        assert (reply.status, answer["error"]["code"]) == (400, "unsupported_model")
