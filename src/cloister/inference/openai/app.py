"""A language engine behind the paths of OpenAI.

    POST /v1/chat/completions   see `chat`
    POST /v1/completions        see `completions`
    POST /v1/embeddings         see `embeddings`
    GET  /v1/models             the one model that is served
    GET  /v1/models/ID

Everything a client sends is checked before the engine sees it. What the engine raises is worded without
details, unless it is an InputError, whose words are about the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cloister.inference.application import LanguageEngine, Reply, Request
from cloister.inference.openai.answers import ToolParser
from cloister.inference.openai.chat import chat
from cloister.inference.openai.completions import complete
from cloister.inference.openai.embeddings import embed
from cloister.inference.openai.encoding import check_body
from cloister.inference.openai.errors import Refusal
from cloister.inference.openai.paths import route, unknown_model
from cloister.inference.openai.schema import read_chat, read_completion, read_embedding

__all__ = ["OpenAIApp"]


class OpenAIApp:
    """Answers chat completions, completions, embeddings and models from one engine.

    Args:
        engine: the model; closed with this.
        tool_parser: makes what finds tool calls in this model's text, one for each answer; the engine's own
            `tool_parser` where it has one and none is given; without one no tools are taken.
        now: seconds since 1970, for "created".
    """

    def __init__(
        self,
        engine: LanguageEngine,
        *,
        tool_parser: Callable[[], ToolParser] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._now = engine, now
        self._parser = tool_parser or getattr(engine, "tool_parser", None)
        self._models = {engine.name: int(now())}
        self._handlers = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
            "/v1/embeddings": self._embed,
        }

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return await route(request, self._handlers, self._models)

    async def aclose(self) -> None:
        """Close the engine."""
        ended = self._engine.aclose()
        if hasattr(ended, "__await__"):
            await ended

    async def _chat(self, request: Request) -> Reply:
        check_body(self._engine.context, request.body, "messages")
        asked = read_chat(request.body)
        self._check(asked.model, self._engine.generates, "chat completions")
        return await chat(self._engine, asked, self._parser, self._now(), len(request.body))

    async def _complete(self, request: Request) -> Reply:
        asked = read_completion(request.body)
        self._check(asked.model, self._engine.generates, "completions")
        return await complete(self._engine, asked, self._now())

    async def _embed(self, request: Request) -> Reply:
        asked = read_embedding(request.body)
        self._check(asked.model, self._engine.embeds, "embeddings")
        return await embed(self._engine, asked)

    def _check(self, model: str, able: bool, what: str) -> None:
        """Raise Refusal where the model is another, or does not do this."""
        if model != self._engine.name:
            raise unknown_model(model)
        if not able:
            raise Refusal(f"This model does not offer {what}.", param="model", code="unsupported_model")
