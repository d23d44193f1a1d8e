"""Long prompts: refused by their length where nothing could fit, encoded aside where they might."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from tests.inference.openai.engine import ScriptedEngine, body_of, post

from cloister.inference.openai import OpenAIApp
from cloister.inference.openai.encoding import CHARACTERS, LONG

CHAT = {"messages": [{"role": "user", "content": ""}]}


class Noting(ScriptedEngine):
    """Notes which thread encodes, and may be held while it does."""

    def __init__(self, context: int) -> None:
        super().__init__(context=context)
        self.threads: list[bool] = []
        self.hold: threading.Event | None = None

    def text_prompt(self, text: str) -> list[int]:
        aside = threading.current_thread() is not threading.main_thread()
        self.threads.append(aside)
        if aside and self.hold is not None:
            assert self.hold.wait(20)
        return [1]

    def chat_prompt(self, messages: Any, tools: Any = ()) -> list[int]:
        return self.text_prompt("")


def asked(engine: Noting, path: str, fields: dict[str, Any]) -> tuple[int, Any]:
    async def main() -> tuple[int, Any]:
        reply = await OpenAIApp(engine)(post(path, {"model": "scripted", **fields}))
        return reply.status, json.loads(await body_of(reply))

    return asyncio.run(main())


def chat(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", chat("x" * (6 * CHARACTERS * 1000 + (1 << 20)))),
        ("/v1/completions", {"prompt": "x" * (CHARACTERS * 1000 + 1)}),
        ("/v1/completions", {"prompt": ["x", "x" * (CHARACTERS * 1000 + 1)]}),
        ("/v1/embeddings", {"input": "x" * (CHARACTERS * 1000 + 1)}),
    ],
)
def test_what_no_context_holds_is_refused_before_it_is_encoded(path: str, fields: dict[str, Any]) -> None:
    engine = Noting(1000)
    status, body = asked(engine, path, fields)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert engine.threads == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", chat("x" * LONG)),
        ("/v1/completions", {"prompt": ["x" * (LONG // 2)] * 2}),
        ("/v1/embeddings", {"input": "x" * LONG}),
    ],
)
def test_a_long_prompt_keeps_nobody_waiting(path: str, fields: dict[str, Any]) -> None:
    """While a thread encodes it, and however long that takes, a short one is answered."""

    async def main() -> None:
        engine = Noting(100_000)
        engine.hold = threading.Event()
        app = OpenAIApp(engine)
        slow = asyncio.ensure_future(app(post(path, {"model": "scripted", **fields})))
        try:
            while not engine.threads:
                await asyncio.sleep(0.005)
            short = post("/v1/completions", {"model": "scripted", "prompt": "x"})
            reply = await asyncio.wait_for(app(short), 10)
            assert reply.status == 200
            assert not slow.done()
        finally:
            engine.hold.set()
        assert (await asyncio.wait_for(slow, 10)).status == 200

    asyncio.run(main())
