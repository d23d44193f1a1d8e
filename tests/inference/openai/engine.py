"""An engine that answers from a script, and remembers what it was asked and what was cancelled."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.errors import InputError
from cloister.inference.application import Piece, Request, Sampling, TokenLogprob


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str


class BracketParser:
    """Takes <call>{"name": ..., "arguments": ...}</call> out of a text; holds back what may begin one."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[str | Call]:
        self._held += text
        out: list[str | Call] = []
        while found := re.search(r"<call>(.*?)</call>", self._held):
            value = json.loads(found.group(1))
            out += [self._held[: found.start()], Call(value["name"], json.dumps(value["arguments"]))]
            self._held = self._held[found.end() :]
        if "<" not in self._held:
            out.append(self._held)
            self._held = ""
        return out

    def finish(self) -> list[str | Call]:
        held, self._held = self._held, ""
        return [held]


class ScriptedEngine:
    """Tokens are code points. Each answer is the script's next text, one character a piece."""

    name = "scripted"
    generates = True
    embeds = True
    takes_tools = True

    def __init__(self, *script: str | Exception, context: int = 1000) -> None:
        self.script = script or ("Hello",)
        self.context = context
        self.asked: list[tuple[list[int], Sampling]] = []
        self.conversations: list[tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]] = []
        self.running = 0
        self.made = 0
        self.closed = False
        self.gate: asyncio.Event | None = None
        self.broken: Callable[[int], Exception | None] = lambda made: None
        self.tool_parser = BracketParser

    def chat_prompt(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()
    ) -> list[int]:
        if any(message["role"] == "tool" for message in messages[:1]):
            raise InputError("a conversation cannot begin with a tool", fix="Begin with a user")
        self.conversations.append((list(messages), list(tools)))
        return [ord(each) for message in messages for each in str(message["content"])]

    def text_prompt(self, text: str) -> list[int]:
        if "\0" in text:
            raise InputError("the text holds a zero")
        return [ord(each) for each in text]

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[Piece]:
        number = len(self.asked)
        self.asked.append((list(prompt), sampling))
        text = self.script[number % len(self.script)]
        if isinstance(text, Exception):
            raise text
        self.running += 1
        try:
            for at, letter in enumerate(text[: sampling.max_tokens]):
                if self.gate is not None:
                    await self.gate.wait()
                await asyncio.sleep(0)
                if (error := self.broken(at)) is not None:
                    raise error
                self.made += 1
                logprobs = (TokenLogprob(letter, -0.5),) if sampling.logprobs else ()
                yield Piece(letter, 1, None, logprobs)
            yield Piece("", 0, "stop" if len(text) <= sampling.max_tokens else "length")
        finally:
            self.running -= 1

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[float(len(prompt)), 0.5, -0.25] for prompt in prompts]

    def aclose(self) -> None:
        self.closed = True


def post(path: str, body: object, **headers: str) -> Request:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request("POST", path, {"content-type": "application/json", **headers}, data)


def get(path: str) -> Request:
    return Request("GET", path, {}, b"")


def chat_body(**more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], **more}


async def body_of(reply: Any) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    return b"".join([each async for each in reply.body])


def events_of(body: bytes) -> list[Any]:
    """The events of a stream, without the closing [DONE], which must be there."""
    parts = body.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    texts = [part.removeprefix("data: ") for part in parts]
    assert texts.pop() == "[DONE]"
    return [json.loads(text) for text in texts]
