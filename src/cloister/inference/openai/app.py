"""A language engine behind the paths of OpenAI."""

from __future__ import annotations

import time
from collections.abc import Callable

from cloister.inference.application import LanguageEngine, Reply, Request
from cloister.inference.openai.errors import Refusal

__all__ = ["OpenAIApp"]


class OpenAIApp:
    """Answers chat completions, completions, embeddings and models from one engine.

    Args:
        engine: the model; closed with this.
        now: seconds since 1970, for "created".
    """

    def __init__(self, engine: LanguageEngine, *, now: Callable[[], float] = time.time) -> None:
        self._engine, self._now = engine, now

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return Refusal("Not here yet.", status=404).reply()

    async def aclose(self) -> None:
        """Close the engine."""
