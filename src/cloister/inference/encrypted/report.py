"""What encryption costs and what it changes, measured on rows of one's own, against the model in the clear.

Client, server and key are all here, so this is for whoever has both a model and rows to try it on.
Times are of this process on this machine, one after the other, key generation included.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cloister.errors import InputError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.encrypted.card import Card
from cloister.inference.encrypted.client import encrypt_rows
from cloister.inference.encrypted.server import score_rows
from cloister.inference.predictor import Predictor
from cloister.inference.rows import read_rows
from cloister.vault.sources import Source

__all__ = ["Report", "compare"]


@dataclass(frozen=True)
class Report:
    """Figures of one run.

    Attributes:
        rows: how many.
        features: numbers in a row.
        circuit: which one.
        max_error: largest difference of an answer (a value in the label's unit, or a probability).
        label_flips: rows whose predicted class differs.
        doubtful: rows the client is told could differ.
        bound: by how much a score may differ, as the client is told.
        noise: of encryption alone, measured.
        encrypt_ms, score_ms, open_ms: milliseconds a row.
        plain_ms: milliseconds a row in the clear.
        up_bytes, down_bytes: bytes a row on the wire.
        plain_bytes: of a row's features as float64.
    """

    rows: int
    features: int
    circuit: str
    max_error: float
    label_flips: int
    doubtful: int
    bound: float
    noise: float
    encrypt_ms: float
    score_ms: float
    open_ms: float
    plain_ms: float
    up_bytes: float
    down_bytes: float
    plain_bytes: float


def compare(artifact: ModelArtifact, source: Source, reference: Source | None = None) -> Report:
    """Score rows both ways.

    Args:
        artifact: the model.
        source: the rows; read twice.
        reference: rows to scale by, under local scaling.

    Raises:
        InputError: as of `encrypt_rows` and `Network.of`.
    """
    card = Card.of(artifact)
    predictor = Predictor.of(artifact)
    if reference is not None:
        predictor = Predictor(artifact, predictor.features.fit(_rows(reference, predictor)))
    begin = time.perf_counter()
    plain = predictor.predict_source(source)
    marks = [time.perf_counter()]
    request, key = encrypt_rows(card, source, reference)
    marks.append(time.perf_counter())
    scores = score_rows(artifact, request)
    marks.append(time.perf_counter())
    opened = key.open(scores)
    marks.append(time.perf_counter())
    rows = plain.num_rows
    if rows == 0:
        raise InputError("there is no row to compare", fix="Give a file with rows")
    encrypt, score, open_ = (1000.0 * float(seconds) / rows for seconds in np.diff(marks))
    return Report(
        rows,
        card.features.width,
        card.circuit,
        *_differences(plain, opened.answers),
        opened.doubtful,
        opened.error,
        opened.noise,
        encrypt,
        score,
        open_,
        1000.0 * (marks[0] - begin) / rows,
        len(request) / rows,
        len(scores) / rows,
        8.0 * card.features.width,
    )


def _rows(source: Source, predictor: Predictor) -> pa.Table:
    return read_rows(source, predictor.inputs)


def _differences(plain: pa.Table, answers: pa.Table) -> tuple[float, int]:
    numbers = [name for name in plain.column_names if name != "prediction"]
    largest = max(float(np.abs(plain[name].to_numpy() - answers[name].to_numpy()).max()) for name in numbers)
    if "prediction" not in plain.column_names:
        return largest, 0
    pairs = zip(plain["prediction"].to_pylist(), answers["prediction"].to_pylist(), strict=True)
    return largest, sum(own != other for own, other in pairs)
