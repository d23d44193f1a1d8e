"""The part of a site that touches its rows: features, local training, evaluation.

It gets the global model and gives back an update; it knows no key, no mask and no network. It opens the
encrypted dataset when the first model arrives, not before, and what it computes from rows leaves it only as
an update, or as evaluation sums where the plan declares the rows public.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.learning import ClientRows, Plan, evaluation_sums, initial_model, plan_model, train
from cloister.vault import Schema

__all__ = ["LocalWorker"]

OpenRows = Callable[[], pa.Table]


class LocalWorker:
    """Trains one site's rows.

    Args:
        plan: the study's plan.
        schema: the schema of the rows; one with another digest than the plan's is refused.
        rows: opens the training rows; called once, when the first model arrives.
        evaluation: opens held-out rows, or None where the site has none.
        insecure_test_random: order of batches; from the operating system unless a test says otherwise.

    Attributes:
        initial: float64[d], the initial model the plan pins, drawn here from its public seed.

    Raises:
        PlanError: the schema is not the plan's, or the pinned initial model is not the one its seed gives.
    """

    def __init__(
        self,
        plan: Plan,
        schema: Schema,
        rows: OpenRows,
        *,
        evaluation: OpenRows | None = None,
        insecure_test_random: StreamRandom | None = None,
    ) -> None:
        self._plan = plan
        self._features, self._model = plan_model(plan, schema)
        self.initial = initial_model(plan, schema)
        self._open_rows = rows
        self._open_evaluation = evaluation
        self._random = insecure_test_random
        self._opened: tuple[ClientRows, tuple[NDArray[np.float64], NDArray[np.float64]] | None] | None = None

    def __repr__(self) -> str:
        return f"LocalWorker({'rows open' if self._opened else 'rows closed'})"

    def train(self, params: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[d]: what local training on the site's rows makes of the global model `params`."""
        rows, _ = self._open()
        trained: NDArray[np.float64] = train(
            self._model, params, rows, self._plan.training, insecure_test_random=self._random
        )[0]
        return trained

    def evaluate(self, params: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the addable evaluation sums of `params` on the held-out rows, or None where there are
        none."""
        _, held_out = self._open()
        return (
            None
            if held_out is None
            else evaluation_sums(self._model, params, *held_out, unit=self._features.label_unit)
        )

    def _open(self) -> tuple[ClientRows, tuple[NDArray[np.float64], NDArray[np.float64]] | None]:
        if self._opened is None:
            table = self._open_rows()
            features = self._features.fit(table)
            held_out = None if self._open_evaluation is None else features.transform(self._open_evaluation())
            self._opened = ClientRows.stack([features.transform(table)]), held_out
        return self._opened
