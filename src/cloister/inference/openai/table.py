"""A released table model behind one path: rows in, predictions out."""

from __future__ import annotations

from cloister.inference.application import Reply, Request
from cloister.inference.openai.errors import Refusal
from cloister.inference.predictor import Predictor

__all__ = ["TableApp"]


class TableApp:
    """Answers POST /v1/score and GET /v1/models from one released model.

    Args:
        predictor: the model, fitted where it asks for local scaling.
        name: under which clients ask for it.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self._predictor, self._name = predictor, name

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return Refusal("Not here yet.", status=404).reply()

    async def aclose(self) -> None:
        """Nothing is held."""
