"""The part of a site that touches its rows: features, local training, evaluation.

It gets the global model and gives back an update; it knows no key, no mask and no network. It opens the encrypted dataset when
the first model arrives, not before, and what it computes from rows leaves it only as an update, or as evaluation sums where the
plan declares the rows public.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning import FeatureMap, Plan, build_model, evaluation_sums, train
from cloister.vault import Schema

__all__ = ["LocalWorker"]

OpenRows = Callable[[], pa.Table]


class LocalWorker:
    """Trains one site's rows.

    Args:
        plan: the study's plan.
        schema: the schema the plan names; its digest is checked by the site.
        rows: opens the training rows; called once, when the first model arrives.
        evaluation: opens held-out rows, or None where the site has none.
        random: order of batches; from the operating system unless a test says otherwise.
    """

    def __init__(
        self, plan: Plan, schema: Schema, rows: OpenRows, *, evaluation: OpenRows | None = None, random: StreamRandom | None = None
    ) -> None:
        self._plan = plan
        self._features = FeatureMap.build(schema, plan.data)
        self._model = build_model(plan.model, self._features.width)
        self._open_rows = rows
        self._open_evaluation = evaluation
        self._random = random or StreamRandom()
        self._train: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._held_out: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __repr__(self) -> str:
        return f"LocalWorker({'rows open' if self._train else 'rows closed'})"

    @property
    def size(self) -> int:
        """Number of parameters of the model."""
        return self._model.size

    def initial(self) -> NDArray[np.float64]:
        """float64[d]: the initial model that the plan's public seed gives."""
        return self._model.initial(self._plan.model.seed)

    def update(self, params: NDArray[np.float64]) -> NDArray[np.float64]:
        """Train from `params` on the site's rows.

        Args:
            params: float64[d], the global model.

        Returns:
            float64[d]: trained minus global.
        """
        self._open()
        assert self._train is not None  # noqa: S101 - for the type checker; _open raises otherwise
        trained = train(self._model, params[np.newaxis], [self._train], self._plan.training, self._random)
        return trained[0] - params

    def evaluate(self, params: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the addable evaluation sums of `params` on the held-out rows, or None where there are none."""
        self._open()
        if self._held_out is None:
            return None
        return evaluation_sums(self._model, params, *self._held_out)

    def _open(self) -> None:
        if self._train is not None:
            return
        features = self._features
        table = self._open_rows()
        if not table.num_rows:
            raise InputError("the dataset has no rows", fix="Add rows to the dataset, or leave the study")
        features = features.fit(table)
        self._train = features.transform(table)
        if self._open_evaluation is not None:
            self._held_out = features.transform(self._open_evaluation())
