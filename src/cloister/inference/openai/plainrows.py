"""Rows of JSON into the numbers a model takes, where no value needs a second look.

One row through Arrow costs some hundred kernel calls, each for one value. Here a value that is plainly what
its column declares (a number within bounds, a whole number where one is asked, a category letter by letter,
true or false, null where missing is allowed) goes straight to its place in X. Anything else (a number as
text, spaces around a category, a value out of bounds) makes the whole request take the way of
`Predictor.predict`, which alone decides what is refused and says where.

Invariant: where this gives numbers, they are those of `FeatureMap.transform_features`, bit by bit; the layout
of X is described there. Under scaling "local" the map must be fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.learning import FeatureMap
from cloister.vault import Column

__all__ = ["PlainRows"]

_EXACT: Final = 2**53
_MISSING: Final = float("nan")

Reader = Callable[[object], float | None]
"""Returns a value's number, or None where it needs a second look."""


class PlainRows:
    """Reads rows for one model.

    Args:
        features: how the model reads rows.
    """

    def __init__(self, features: FeatureMap) -> None:
        self._columns = []
        at = 0
        for name, column in features.columns.items():
            category = column.type == "category"
            width = len(column.categories or ()) - 1 if category else 1
            missing = column.missing == "allow"
            self._columns.append((name, _reader(column), category, missing, at, width))
            at += width + missing
        self._width = at
        self._scaled = [
            (at, low, 2.0 / (high - low))
            for (_, _, _, _, at, _), column in zip(self._columns, features.columns.values(), strict=True)
            if features.scaling == "bounds" and column.type in ("number", "integer")
            for low, high in [column.bounds or (-1.0, 1.0)]
        ]
        self._at = np.array([at for at, _, _ in self._scaled], dtype=np.intp)
        self._low = np.array([low for _, low, _ in self._scaled])
        self._factor = np.array([factor for _, _, factor in self._scaled])
        self._means = None if features.means is None else np.asarray(features.means)
        self._deviations = None if features.deviations is None else np.asarray(features.deviations)

    def matrix(self, rows: Sequence[Mapping[str, object]]) -> NDArray[np.float64] | None:
        """Return X float64[n, f], or None where a value of any row needs a second look."""
        X = np.zeros((len(rows), self._width))
        for place, row in zip(X, rows, strict=True):
            for name, read, category, missing, at, width in self._columns:
                value = row.get(name)
                if value is None:
                    if not missing:
                        return None
                    if not category:
                        place[at] = _MISSING
                    place[at + width] = 1.0
                    continue
                number = read(value)
                if number is None:
                    return None
                if not category:
                    place[at] = number
                elif number:
                    place[at + int(number) - 1] = 1.0
        if len(self._at):
            X[:, self._at] = (X[:, self._at] - self._low) * self._factor - 1.0
        if self._means is not None and self._deviations is not None:
            X -= self._means
            X /= self._deviations
        np.nan_to_num(X, copy=False, nan=0.0)
        return X


def _reader(column: Column) -> Reader:
    if column.type == "category":
        levels = {level: float(number) for number, level in enumerate(column.categories or ())}
        return lambda value: levels.get(value) if isinstance(value, str) else None
    if column.type == "boolean":
        return lambda value: float(value) if isinstance(value, bool) else None
    return _number(column)


def _number(column: Column) -> Reader:
    low, high = column.bounds or (-math.inf, math.inf)
    low, high = max(low, -float(_EXACT)), min(high, float(_EXACT))
    whole = column.type == "integer"

    def read(value: object) -> float | None:
        kind = type(value)
        if kind is not float and kind is not int:
            return None
        number: float = value  # type: ignore[assignment]  # one of the two, as was just seen
        if not low <= number <= high:
            return None
        if whole and (not -_EXACT < number < _EXACT or number != int(number)):
            return None
        return float(number)

    return read
