"""From decrypted scores to answers, on the client's side: the same columns as `cloister predict` gives.

Scores are rounded to 2**-20 first. What CKKS decrypts to carries noise that depends on the key, and whoever
is told exact decryptions of ciphertexts that it knows can compute that key (Li and Micciancio 2021). Rounding
takes the noise away from nearly every score; it is no proof. So: a key serves one file, and exact scores
are shown to nobody.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.inference.encrypted.card import Card
from cloister.learning.heads import Head, LogisticHead, SoftmaxHead, SquaredHead

__all__ = ["answers_of", "doubtful_rows", "head_of", "rounded"]

Array = NDArray[np.float64]

_STEPS: Final = 2.0**20


def rounded(scores: Array) -> Array:
    """Return scores as multiples of 2**-20."""
    found: Array = np.round(scores * _STEPS) / _STEPS
    return found


def head_of(card: Card) -> Head:
    """Return what turns scores into predictions."""
    if card.head == "value":
        return SquaredHead()
    return LogisticHead() if card.head == "logistic" else SoftmaxHead(card.outputs)


def answers_of(card: Card, scores: Array) -> pa.Table:
    """Return one row of answers for each row of scores, float64[n, k]."""
    features = card.features
    found = head_of(card).prediction(scores)
    if card.head == "value":
        return pa.table({"value": features.label_values(found)})
    if card.head == "logistic":
        return pa.table({"prediction": _labels(card, found >= 0.5), "probability": found})
    columns = {f"probability={name}": own for name, own in zip(features.class_names, found.T, strict=True)}
    return pa.table({"prediction": _labels(card, found.argmax(axis=1)), **columns})


def doubtful_rows(card: Card, scores: Array, error: float) -> int:
    """Return of how many rows the predicted class could be another one if scores were wrong by `error`."""
    if card.head == "value":
        return 0
    if card.head == "logistic":
        return int((np.abs(scores[:, 0]) <= error).sum())
    highest = np.sort(scores, axis=1)[:, -2:]
    return int((highest[:, 1] - highest[:, 0] <= 2.0 * error).sum())


def _labels(card: Card, classes: NDArray[np.generic]) -> pa.Array:
    names = pa.array(card.features.class_names).take(pa.array(classes.astype(np.int64)))
    kind = {"integer": pa.int64(), "boolean": pa.bool_()}.get(card.features.label.type, pa.string())
    return names.cast(kind)
