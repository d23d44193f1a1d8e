"""A language model that answers many at once: prompts in, text out.

    prompt -> checks -> batch of transformers -> token ids -> text -> stop texts -> pieces

Prompts and answers are never kept, never logged, and never shared between requests; `repr` shows none. A text
in a prompt that spells a special token is that token, as in every server of such models: a client writes its
own prompt. What a model's generation_config.json says of sampling is not applied: clients say how to sample.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cloister.errors import InputError, StorageError
from cloister.inference.application import Piece, Sampling, TokenLogprob
from cloister.inference.language.batching import Batcher, EngineStopped
from cloister.inference.language.drawing import Draw
from cloister.inference.language.manager import Manager, tried
from cloister.inference.language.text import Detokenizer, Stops
from cloister.inference.language.tools import ToolFormat, ToolParser
from cloister.inference.language.vectors import embedded, groups
from cloister.inference.language.words import Words
from cloister.learning.modelfiles.folder import Pooling

__all__ = ["Engine", "Loaded"]

_MOST_REQUESTS: Final = 256
_MOST_EMBEDDED: Final = 2048


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        name: under which clients ask for it.
        model: of transformers; with a head where it generates.
        words: its tokenizer.
        generates: whether it is a causal language model.
        context: the most tokens it was made for.
        vocabulary: token ids are below this.
        ends: ids of the tokens that end an answer.
        pooling: how its token vectors become one.
        tools: how it writes tool calls; None where it does not.
    """

    name: str
    model: Any = field(repr=False)
    words: Words = field(repr=False)
    generates: bool
    context: int
    vocabulary: int
    ends: tuple[int, ...]
    pooling: Pooling
    tools: ToolFormat | None


class Engine:
    """A `LanguageEngine`.

    Args:
        loaded: the model.
        cache_tokens: room for keys and values, in tokens of all requests together.
        most: requests that may compute or wait at once.

    Raises:
        InputError: as `tried`. ValueError, RuntimeError and others: as `Manager` and `tried`.

    Attributes:
        name: as of `LanguageEngine`.
        context: as of `LanguageEngine`; what fits the cache at most.
        generates: as of `LanguageEngine`.
        embeds: as of `LanguageEngine`.
        takes_tools: as of `LanguageEngine`.
    """

    def __init__(self, loaded: Loaded, *, cache_tokens: int, most: int = _MOST_REQUESTS) -> None:
        self._loaded, self._words, self._most = loaded, loaded.words, most
        self._batcher: Batcher | None = None
        if loaded.generates:
            manager = Manager(loaded.model, cache_tokens, loaded.ends)
            tried(manager, loaded.vocabulary)
            self._batcher = Batcher(manager)
        self._embedding = ThreadPoolExecutor(1, "embedding")  # one at a time, in order
        self._waiting, self._closed = 0, False
        self.name, self.generates = loaded.name, loaded.generates
        self.context = min(loaded.context, self._batcher.capacity) if self._batcher else loaded.context
        self.embeds = "paged" not in loaded.model.config._attn_implementation  # it needs the batch's pages
        self.takes_tools = loaded.generates and loaded.tools is not None

    @property
    def running(self) -> bool:
        """Whether it can compute; False for good once something fatal has happened, or it was closed."""
        return not self._closed and (self._batcher is None or self._batcher.running)

    def tool_parser(self) -> ToolParser:
        """Return what finds the tool calls in one answer of this model."""
        return ToolParser(self._loaded.tools)

    def chat_prompt(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()
    ) -> list[int]:
        """Return the tokens of a conversation, with the opening of the assistant's turn.

        Raises:
            InputError: the model has no chat template, or it refuses these messages.
        """
        return self._words.conversation(messages, tools)

    def text_prompt(self, text: str) -> list[int]:
        """Return the tokens of a text. Raises InputError where it cannot be encoded."""
        return self._words.text(text)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[Piece]:
        """Generate. Closing the iterator cancels.

        Raises:
            InputError: prompt and answer do not fit the context, or a token id is none of this model's.
            StorageError: too many wait already; also as the first piece is asked for.
            EngineStopped: it no longer computes; also as any piece is asked for.
        """
        if self._batcher is None:
            raise InputError("this model does not generate", fix="Ask it for embeddings")
        self._check(prompt, sampling.max_tokens)
        if sampling.max_tokens < 1 or sampling.temperature < 0 or "" in sampling.stop:
            raise InputError("the sampling cannot be followed", fix="Check max_tokens, temperature and stop")
        self._admit(self._batcher)
        return self._pieces(self._batcher, tuple(prompt), sampling)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return one vector of unit length for each prompt; float32 values.

        Raises:
            InputError: a prompt is empty or does not fit, there are too many, or the model does not embed.
            StorageError: too many wait already.
            EngineStopped: it no longer computes.
        """
        if not self.embeds:
            raise InputError("this model does not embed", fix="Ask it for completions")
        if len(prompts) > _MOST_EMBEDDED:
            raise InputError(f"more than {_MOST_EMBEDDED} texts at once", fix="Ask in several requests")
        for prompt in prompts:
            self._check(prompt, 0)
        if self._waiting >= self._most:
            raise _busy()
        loop, vectors = asyncio.get_running_loop(), dict[int, list[float]]()
        self._waiting += 1
        try:
            for group in groups(prompts):
                if not self.running:
                    raise EngineStopped
                some = [prompts[index] for index in group]  # others get their turn between two groups
                found = await loop.run_in_executor(self._embedding, self._embedded, some)
                vectors.update(zip(group, found, strict=True))
        finally:
            self._waiting -= 1
        return [vectors[index] for index in range(len(prompts))]

    async def aclose(self) -> None:
        """Stop computing; what is open ends with EngineStopped."""
        self._closed = True
        self._embedding.shutdown(wait=False)
        if self._batcher is not None:
            await self._batcher.aclose()

    def _embedded(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Compute in another thread, while the batch waits."""
        if self._closed:
            raise EngineStopped
        with self._batcher.paused() if self._batcher is not None else contextlib.nullcontext():
            model = self._loaded.model.base_model if self.generates else self._loaded.model
            return embedded(model, prompts, self._loaded.pooling)

    def _check(self, prompt: Sequence[int], answer: int) -> None:
        if not prompt:
            raise InputError("the prompt is empty", fix="Send at least one token")
        if len(prompt) + answer > self.context:
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the answer may have {answer}: "
                f"together more than {self.context}",
                fix="Shorten the prompt, or ask for fewer tokens",
            )
        if min(prompt) < 0 or max(prompt) >= self._loaded.vocabulary:
            raise InputError("a token id is none of this model's", fix="Encode the text with its tokenizer")

    def _admit(self, batcher: Batcher) -> None:
        if not self.running:
            raise EngineStopped
        if batcher.open >= self._most:
            raise _busy()

    async def _pieces(
        self, batcher: Batcher, prompt: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[Piece, None]:
        self._admit(batcher)
        answer = _Answer(self._words, sampling, self._loaded.ends)
        async with contextlib.aclosing(batcher.tokens(prompt, sampling.max_tokens, answer.draw)) as steps:
            async for tokens, last in steps:
                piece = answer.take(tokens, last)
                if piece is not None:
                    yield piece
                    if piece.finish is not None:
                        return


class _Answer:
    """The text of one answer, as far as it has come."""

    def __init__(self, words: Words, sampling: Sampling, ends: tuple[int, ...]) -> None:
        self.draw = Draw(sampling)
        self._words, self._ends, self._tells = words, ends, sampling.logprobs
        self._detokenizer, self._stops = Detokenizer(words.decode), Stops(sampling.stop)
        self._text, self._tokens, self._given = "", list[int](), 0

    def take(self, tokens: Sequence[int], last: bool) -> Piece | None:
        """Return a piece, where there is text to give or the answer ends."""
        finish: Literal["stop", "length"] | None = None
        for token in tokens:
            self._tokens.append(token)
            if token not in self._ends and not self._words.hides(token):
                self._text += self._stops.feed(self._detokenizer.feed((token,)))
            if self._stops.stopped:
                finish = "stop"
                break
        if last and finish is None:
            self._text += self._stops.feed(self._detokenizer.finish())
            self._text += self._stops.finish()
            ended = self._stops.stopped or (self._tokens and self._tokens[-1] in self._ends)
            finish = "stop" if ended else "length"
        if not self._text and finish is None:
            return None
        text, counted, self._text, self._tokens = self._text, self._tokens, "", []
        first, self._given = self._given, self._given + len(counted)
        return Piece(text, len(counted), finish, self._logprobs(counted, first))

    def _logprobs(self, tokens: Sequence[int], first: int) -> tuple[TokenLogprob, ...]:
        if not self._tells:
            return ()
        told = self.draw.logprobs[first : first + len(tokens)]
        return tuple(
            TokenLogprob(self._words.spelled(token), logprob)
            for token, logprob in zip(tokens, told, strict=True)
        )


def _busy() -> StorageError:
    return StorageError("too many requests wait already", fix="Try again in a while")
