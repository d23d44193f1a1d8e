"""What is passed around: rows, models, and the checks that turn what a user gives into them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import PublicIdentity
from cloister.errors import InputError
from cloister.learning import Model, ModelSection, build_model

__all__ = [
    "Array",
    "ClientData",
    "ClientModel",
    "EncryptedData",
    "EncryptedModel",
    "FinalModel",
    "Kind",
    "features_of",
    "matrix",
    "pair",
    "shape_of",
    "vector",
]

Array = NDArray[np.float64]
Kind = Literal["logistic", "linear"]

_COLUMNS = 2
"""Least columns of a table that holds features and a label; parts of a pair."""


@dataclass(frozen=True, eq=False)
class ClientData:
    """A client's own rows: float64[n, f] and float64[n], and whose they are."""

    X: Array = field(repr=False)
    y: Array = field(repr=False)
    owner: PublicIdentity


@dataclass(frozen=True)
class EncryptedData:
    """Rows sealed to the client that owns them."""

    owner: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True)
class EncryptedModel:
    """The server's model: a sum it cannot read. Round 0 is the start, all zeros, and holds nothing."""

    room: str
    round: int
    survivors: tuple[str, ...] = ()
    total: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class ClientModel:
    """What a client's training gave, masked."""

    room: str
    client: str
    round: int
    masked: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class FinalModel:
    """The opened model.

    Attributes:
        weights: float64[f + 1], one per feature, the constant last; or whatever was submitted by hand.
    """

    weights: Array
    kind: Kind

    def predict(self, X: Any) -> Array:
        """Return 0 or 1 a row (logistic), or the value (linear). X is (n, f)."""
        values = self._scores(X)
        return (values > 0.5).astype(np.float64) if self.kind == "logistic" else values

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of class 1 a row."""
        if self.kind != "logistic":
            raise InputError("a linear model has no probabilities", fix="Use predict")
        return self._scores(X)

    def score(self, X: Any, y: Any) -> float:
        """Return accuracy (logistic) or R2 (linear) on the given rows."""
        y = vector(y)
        predicted = self.predict(X)
        if self.kind == "logistic":
            return float(np.mean(predicted == y))
        return float(1.0 - np.square(predicted - y).sum() / np.square(y - y.mean()).sum())

    def _scores(self, X: Any) -> Array:
        rows = features_of(self.kind, matrix(X))
        return shape_of(self.kind, self.weights.size - 1).predict(self.weights, rows)


def shape_of(kind: Kind, features: int) -> Model:
    """Return the model of `features` inputs."""
    return build_model(ModelSection(kind=kind), features)


def features_of(kind: Kind, X: Array) -> Array:
    """Return what the model sees of the rows; see the module's docstring."""
    return np.arcsinh(X) if kind == "logistic" else X


def pair(rows: Any) -> tuple[Any, Any]:
    """Return (X, y) of a pair, or of one table whose last column is the label."""
    if isinstance(rows, tuple) and len(rows) == _COLUMNS:
        return rows[0], rows[1]
    if isinstance(rows, list) and len(rows) == _COLUMNS and np.ndim(rows[0]) == _COLUMNS:
        return rows[0], rows[1]
    table = matrix(rows)
    if table.shape[1] < _COLUMNS:
        raise InputError("the table has no feature beside its label", fix="Assign client.data = X, y")
    return table[:, :-1], table[:, -1]


def matrix(X: Any) -> Array:
    """Return float64[n, f], finite. Raises InputError."""
    try:
        rows = np.ascontiguousarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("X holds something that is not a number", fix="Give a table of numbers") from None
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError("X must be a finite table (n, f)", fix="Reshape it, and leave out missing values")
    return rows


def vector(y: Any) -> Array:
    """Return float64[n], finite. Raises InputError."""
    try:
        values = np.ascontiguousarray(y, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("a label or weight is not a number", fix="Give a list of numbers") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(
            "labels or weights must be one finite list", fix="Flatten it, and leave out missing values"
        )
    return values
