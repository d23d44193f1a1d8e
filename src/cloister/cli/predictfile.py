"""Predictions for a file of rows: in a walled worker, or, where that was spelled out, in this process."""

from __future__ import annotations

import contextlib
import enum
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloister.cli.common import load_identity
from cloister.cli.releasedmodel import existing, rows_path

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.inference import Artifact
    from cloister.inference.predictor import RowPredictor

__all__ = ["Answer", "Asked", "Format", "of_file", "predictor_inside"]


class Format(enum.StrEnum):
    """What the predictions are written as."""

    CSV = "csv"
    PARQUET = "parquet"


class Answer(NamedTuple):
    """The predictions' bytes, sealed where they have readers; how many, and their columns' names."""

    content: bytes
    rows: int
    columns: list[str]


@dataclass(frozen=True)
class Asked:
    """What is asked of some rows.

    Attributes:
        artifact: the model.
        readers: to whom the predictions are sealed; None for nobody.
        output_format: what they are written as.
        reference: a file of rows to scale by, or None.
        code: the file of a model that is code, which was allowed and has the plan's hash; else None.
        base: folder of a language model's base; None for other models.
        tokens: of an answer at most, where the model writes.
    """

    artifact: Artifact
    readers: list[PublicIdentity] | None
    output_format: Format
    reference: Path | None
    code: bytes | None
    base: Path | None
    tokens: int


def of_file(asked: Asked, file: Path, *, sandboxed: bool) -> Answer:
    """Return predictions for a file of rows, sealed where they have readers.

    Raises:
        SchemaError: a row breaks the model's schema: line and column.
        InputError: the file cannot be read, is too large for a worker, or is sealed to somebody else.
        IntegrityError: it was altered.
    """
    return (_walled if sandboxed else _inside)(asked, file)


def _walled(asked: Asked, file: Path) -> Answer:
    """Have a walled worker predict."""
    from cloister.inference.walled import predict_walled, rows_of

    given = [rows_of(existing(each), load_identity) for each in (asked.reference, file) if each is not None]
    answer = predict_walled(
        asked.artifact,
        given[-1],
        reference=given[0] if asked.reference is not None else None,
        output_format=asked.output_format.value,
        readers=asked.readers,
        code=asked.code,
        base=asked.base,
        tokens=asked.tokens,
    )
    return Answer(bytes(answer.content), answer.rows, answer.columns)


def _inside(asked: Asked, file: Path) -> Answer:
    """Predict in this process."""
    from cloister.crypto import seal_bytes
    from cloister.inference.predictor import encoded

    with predictor_inside(asked) as predictor, rows_path(file) as path:
        predictions = predictor.predict_file(path)
    content = encoded(predictions, asked.output_format.value)
    sealed = content if asked.readers is None else seal_bytes(content, asked.readers)
    return Answer(sealed, predictions.num_rows, predictions.column_names)


@contextlib.contextmanager
def predictor_inside(asked: Asked) -> Iterator[RowPredictor]:
    """Yield what predicts in this process, scaled where rows are given for that; a user's code runs here."""
    with tempfile.TemporaryDirectory() as scratch:
        predictor = _predictor(asked, Path(scratch))
        if asked.reference is not None:
            with rows_path(asked.reference) as path:
                predictor = predictor.fit_file(path)
        yield predictor


def _predictor(asked: Asked, scratch: Path) -> RowPredictor:
    from cloister.inference import AdapterArtifact, Predictor
    from cloister.inference.released import needed_base
    from cloister.inference.torchpredict import torch_predictor

    if isinstance(asked.artifact, AdapterArtifact):
        from cloister.inference.language.answers import LanguagePredictor
        from cloister.learning.modelfiles.files import PlainFolder

        with contextlib.closing(PlainFolder(needed_base(asked.artifact, asked.base))) as files:
            return LanguagePredictor.of(asked.artifact, files, most=asked.tokens, scratch=scratch)
    if asked.code is None:
        return Predictor.of(asked.artifact)
    return torch_predictor(asked.artifact, asked.code, scratch=scratch)
