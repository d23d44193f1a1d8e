"""A released model of rows behind one path: rows in, predictions out; of tables, or of texts.

    POST /v1/score    {"rows": [{column: value, ...}, ...]}    or    {"columns": {column: [value, ...], ...}}
                      -> {"model", "columns": [names in order], "predictions": [{name: value, ...}, ...]}
    GET  /v1/models

One prediction for each row, in order; what its columns mean is said in `cloister.inference.predictor`. A
value is a number, a text, true, false, or null where one is missing. A column that no row has is refused, and
columns that the model does not read are not looked at. The first value that breaks the schema is refused by
row, from 1, and column, never by value.

Steps: 1 the request is read; 2 plain values become X at once; 3 where a value needs a second look, the
predictor checks all of them, as it does with texts; 4 predictions are worded. From `LONG` rows on, and for
texts, a thread computes, so that others are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pyarrow as pa

from cloister.errors import InputError, SchemaError
from cloister.inference.application import Reply, Request
from cloister.inference.openai.arrowrows import arrow_table
from cloister.inference.openai.errors import Refusal, json_reply, refusal_of
from cloister.inference.openai.fields import Fields, read_fields
from cloister.inference.openai.paths import route, unknown_model
from cloister.inference.openai.plainrows import PlainRows
from cloister.inference.predictor import Predictor, RowPredictor

__all__ = ["LONG", "TableApp"]

LONG: Final = 256
"""Rows from which on a thread computes."""


class ScoreRequest(Fields, frozen=True):
    """POST /v1/score: either `rows` or `columns`."""

    model: str | None = None
    rows: tuple[dict[str, object], ...] | None = None
    columns: dict[str, tuple[object, ...]] | None = None


class TableApp:
    """Answers POST /v1/score and GET /v1/models from one released model.

    Args:
        predictor: the model, fitted where it asks for local scaling.
        name: under which clients ask for it.

    Raises:
        InputError: the model asks for local scaling, and the predictor is not fitted.
    """

    def __init__(self, predictor: RowPredictor, name: str) -> None:
        self._predictor, self._name = predictor, name
        self._models = {name: int(time.time())}
        self._quick = _Quick(predictor) if isinstance(predictor, Predictor) else None
        self._names = predictor.columns
        self._thread = ThreadPoolExecutor(1, "cloister-score")
        pa.array(np.zeros(1))  # what Arrow imports at its first use must not wait for a request

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return await route(request, {"/v1/score": self._score}, self._models)

    async def aclose(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _score(self, request: Request) -> Reply:
        asked = read_fields(request.body, ScoreRequest, ignored=frozenset(), only={})  # 1
        if asked.model is not None and asked.model != self._name:
            raise unknown_model(asked.model)
        if (asked.rows is None) == (asked.columns is None):
            raise Refusal("Give either rows or columns.", param="rows", code="missing_required_parameter")
        rows: Sequence[Mapping[str, object]]
        if asked.rows is not None:
            rows, place = asked.rows, "rows[{row}].{column}"
        else:
            names = tuple(self._predictor.inputs)
            rows, place = _rows(asked.columns or {}, names), "columns.{column}[{row}]"
        try:
            if self._quick is not None and len(rows) < LONG:
                return self._answer(rows)
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, rows)
        except SchemaError as error:
            row = "" if error.line is None else error.line - 1
            param = place.format(row=row, column=error.column)
            raise refusal_of(error, param=param.replace("[]", "")) from None

    def _answer(self, rows: Sequence[Mapping[str, object]]) -> Reply:
        self._check_present(rows)
        columns = None if self._quick is None else self._quick.columns(rows)  # 2
        if columns is None:
            answers = self._predictor.predict(arrow_table(rows, self._predictor.inputs))  # 3
            columns = [answers.column(name).to_pylist() for name in self._names]
        predictions = [dict(zip(self._names, values, strict=True)) for values in zip(*columns, strict=True)]
        return json_reply({"model": self._name, "columns": self._names, "predictions": predictions})  # 4

    def _check_present(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Raise SchemaError for a column that no row has: a slip in its name is no missing value."""
        for name in self._predictor.inputs if rows else ():
            if not any(name in row for row in rows):
                raise SchemaError(
                    "the column is absent", column=name, fix="Give every column that the model reads"
                )


class _Quick:
    """The way of plain values for a model of tables. Raises InputError as `TableApp`."""

    def __init__(self, predictor: Predictor) -> None:
        features = predictor.features
        if features.scaling == "local" and features.means is None:
            raise InputError(
                'the model was trained with scaling = "local" and needs rows to scale by',
                fix="Give rows of the same site as a reference",
            )
        self._features, self._parameters = features, predictor.artifact.parameters
        self._network = predictor.network or predictor.artifact.model
        self._plain = PlainRows(features)
        self._labels = [_label(each, features.label.type) for each in features.class_names]

    def columns(self, rows: Sequence[Mapping[str, object]]) -> list[list[object]] | None:
        """Return the columns of an answer, as `Predictor.predict` has them; None where a value needs a second
        look."""
        X = self._plain.matrix(rows)
        if X is None:
            return None
        features = self._features
        scores = self._network.predict(self._parameters, X)
        if not features.classes:
            return [features.label_values(scores).tolist()]
        if scores.ndim == 1:
            return [[self._labels[each] for each in (scores >= 0.5).tolist()], scores.tolist()]
        return [[self._labels[each] for each in scores.argmax(axis=1).tolist()], *scores.T.tolist()]


def _rows(columns: Mapping[str, Sequence[object]], names: Sequence[str]) -> list[dict[str, object]]:
    """Return the rows of named columns. Raises Refusal where their lengths differ."""
    present = [name for name in names if name in columns]
    lengths = {len(columns[name]) for name in present}
    if len(lengths) > 1:
        raise Refusal("The columns have different lengths.", param="columns", code="invalid_value")
    if not present:
        return [{} for _ in range(max(map(len, columns.values()), default=0))]
    return [
        dict(zip(present, values, strict=True))
        for values in zip(*(columns[name] for name in present), strict=True)
    ]


def _label(name: str, kind: str) -> bool | int | str:
    """Return a class's name as the label's own value."""
    return name == "true" if kind == "boolean" else int(name) if kind == "integer" else name
