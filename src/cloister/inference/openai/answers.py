"""One answer of a language model while it comes: pieces of the engine in, deltas for the client out.

    pieces  ->  tool parser, where tools were offered  ->  deltas: text, calls, and at last why it ended

An answer that called a tool ends with "tool_calls" where it ended by itself, and with "length" where it was
cut. With one call allowed the engine is stopped after the first.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cloister.errors import ProtocolError
from cloister.inference.application import LanguageEngine, Sampling, TokenLogprob
from cloister.inference.openai.errors import Refusal
from cloister.inference.openai.streams import close

__all__ = ["Delta", "Stamp", "ToolCall", "ToolParser", "answer", "check_room", "finite", "usage"]


class ToolCall(Protocol):
    """A tool call that a model wrote."""

    @property
    def name(self) -> str:
        """The function's name."""

    @property
    def arguments(self) -> str:
        """Its arguments, the text of a JSON object."""


class ToolParser(Protocol):
    """Finds tool calls in a model's text; one object an answer."""

    def feed(self, text: str) -> Sequence[str | ToolCall]:
        """Return what is certain after this text: text for the reader, and calls."""

    def finish(self) -> Sequence[str | ToolCall]:
        """Return what was held back, at the end."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What an answer has gained.

    Attributes:
        text: for the reader; may be empty.
        calls: complete tool calls.
        tokens: generated since the last delta.
        logprobs: of those tokens, where asked for.
        finish: why it ended, in the last delta: "stop", "length", "tool_calls".
    """

    text: str = field(repr=False)
    calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every part of one reply repeats: id, time, model."""

    id: str
    created: int
    model: str

    @classmethod
    def fresh(cls, prefix: str, created: float, model: str) -> Stamp:
        """Return a new one; `created` in seconds since 1970."""
        return cls(f"{prefix}-{os.urandom(12).hex()}", int(created), model)

    def parts(self, kind: str, choices: Iterable[object]) -> dict[str, object]:
        """Return the object of a reply or of an event of a stream."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }


async def answer(
    engine: LanguageEngine,
    prompt: Sequence[int],
    sampling: Sampling,
    parser: Callable[[], ToolParser] | None = None,
    *,
    single: bool = False,
) -> AsyncGenerator[Delta, None]:
    """Yield the deltas of one answer; the last has `finish`.

    Args:
        engine: the model.
        prompt: tokens.
        sampling: how to draw.
        parser: makes what finds tool calls; None looks for none.
        single: whether the answer ends with its first call.

    Raises:
        ProtocolError: the engine ended without saying why. What the engine raises passes.
    """
    found = parser() if parser else None
    called = False
    pieces = engine.generate(prompt, sampling)
    try:
        async for piece in pieces:
            events: list[str | ToolCall] = [piece.text]
            if found is not None:
                events = list(found.feed(piece.text))
                if piece.finish is not None:
                    events += found.finish()
            text = "".join(event for event in events if isinstance(event, str))
            calls = tuple(event for event in events if not isinstance(event, str))
            called = called or bool(calls)
            finish: str | None = piece.finish
            if called and (finish == "stop" or single):
                finish = "tool_calls"
            yield Delta(text, calls[:1] if single else calls, piece.tokens, piece.logprobs, finish)
            if finish is not None:
                return
    finally:
        await close(pieces)
    raise ProtocolError("the engine ended an answer without saying why")


def check_room(context: int, prompt: int, wanted: int, param: str) -> None:
    """Raise Refusal where prompt and answer do not fit the context; all three in tokens."""
    least = max(wanted, 1)  # a prompt that leaves no room asks for less than one
    if prompt + least > context:
        raise Refusal(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt + least} tokens ({prompt} in the {param}, {least} in the completion).",
            param=param,
            code="context_length_exceeded",
        )


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold: -9999 for what cannot be, as OpenAI has it."""
    return logprob if logprob > -9999.0 else -9999.0


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Return the count of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
