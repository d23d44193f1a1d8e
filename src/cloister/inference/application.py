"""What lies between the exchange and an engine: one request in, one reply out, both already in the clear.

    exchange (opens, seals)  ->  Application (routes, checks, words errors)  ->  LanguageEngine (computes)

All of it runs in the walled worker. A reply's body is whole, or an asynchronous iterator of pieces, each
of which the exchange seals into frames of one size as soon as it comes. Whoever stops iterating (`aclose`)
cancels the work behind it: the client is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["Application", "LanguageEngine", "Piece", "Reply", "Request", "Sampling", "TokenLogprob"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. Its `repr` shows neither path's query nor body.

    Attributes:
        method: "GET", "POST".
        path: from the root, such as "/v1/chat/completions"; no host.
        headers: lower-case names.
        body: as sent, at most the service's limit.
        client: the client's name, as its credential proved it; empty where anybody may ask.
    """

    method: str
    path: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    client: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What it is answered.

    Attributes:
        status: of HTTP.
        headers: lower-case names; "content-type" at least.
        body: whole, or pieces as they come.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | AsyncIterator[bytes] = field(repr=False)


class Application(Protocol):
    """Answers requests. It never raises for what a client sent: a refusal is a reply."""

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""

    def aclose(self) -> object:
        """Let go of what it holds."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, and when to stop.

    Attributes:
        max_tokens: at most so many are generated, from 1.
        temperature: 0 takes the likeliest token each time.
        top_p: the smallest set of tokens whose probability reaches this is drawn from; 1 is all.
        top_k: at most so many of the likeliest; 0 is all.
        stop: texts that end the answer and are not part of it.
        logprobs: whether to tell the log-probability of each token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token and its natural log-probability."""

    token: str = field(repr=False)
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What was generated since the last piece.

    Attributes:
        text: may be empty while a character is incomplete, or might begin a stop text.
        tokens: generated since the last piece, those of hidden stop texts included.
        finish: why it ended, in the last piece.
        logprobs: of those tokens, where asked for.
    """

    text: str = field(repr=False)
    tokens: int
    finish: Literal["stop", "length"] | None = None
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)


class LanguageEngine(Protocol):
    """A language model that generates, embeds, or both. Prompts are token ids.

    Attributes:
        name: under which clients ask for it.
        context: the most tokens of prompt and answer together.
        generates: whether `generate` works.
        embeds: whether `embed` works.
        takes_tools: whether its chat template knows tools.
        running: whether it can still answer.
    """

    name: str
    context: int
    generates: bool
    embeds: bool
    takes_tools: bool

    @property
    def running(self) -> bool:
        """See above."""

    def chat_prompt(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()
    ) -> list[int]:
        """Return the tokens of a conversation, with the opening of the assistant's turn.

        Raises:
            InputError: the model has no chat template, or it refuses these messages.
        """

    def text_prompt(self, text: str) -> list[int]:
        """Return the tokens of a text. Raises InputError where it cannot be encoded."""

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[Piece]:
        """Generate. Closing the iterator cancels.

        Raises:
            InputError: prompt and answer do not fit the context, or a token id is none of this model's.
            StorageError: too many wait already.
        """

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return one vector of unit length for each prompt; float32 values."""

    def aclose(self) -> object:
        """Stop computing."""
