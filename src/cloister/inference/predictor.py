"""From rows to answers with a released model.

Answers are a table with one row for each row given, in order:

    regression           value                                       in the label's own unit
    two classes          prediction, probability                     the probability of the second class
    more classes         prediction, probability=NAME for each class

A prediction has the label's type: true or false, a whole number, or a category's name. A row that breaks
the schema is refused with line and column; nothing is clipped or filled in silently.

A module of the user's own (kind "torch") is code, which a release does not carry: `torchpredict` makes its
predictor from that file. Names of its answers' columns need no code.

With scaling "local" a model means rows relative to their site's own mean and deviation. It predicts only
after `fit` on the rows of the site that asks; those statistics stay in the returned predictor.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.inference.artifact import ModelArtifact, answer_labels, answer_names
from cloister.inference.rows import read_rows
from cloister.learning import FeatureMap
from cloister.learning.heads import Array, Head
from cloister.vault import Column
from cloister.vault.sources import Source, TableSource, open_source

__all__ = ["Network", "Predictor", "RowPredictor", "encoded"]


class Network(Protocol):
    """What computes: a built-in model, or a module of the user's own."""

    @property
    def head(self) -> Head:
        """How scores are read."""

    def predict(self, params: Array, X: NDArray[Any], /) -> Array:
        """Return float64[n] values or probabilities; float64[n, classes] for more classes."""


class RowPredictor(Protocol):
    """What answers rows: a `Predictor`, or a language model's (`inference.language.answers`)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of an answer."""

    @property
    def inputs(self) -> Mapping[str, Column]:
        """The columns that are read of a row, by name, as the schema declares them."""

    def fit_file(self, path: Path, /) -> RowPredictor:
        """Return one that scales by rows of a file. Raises InputError where there is nothing to scale."""

    def predict(self, table: pa.Table, /) -> pa.Table:
        """Return answers for the rows of an Arrow table. Raises SchemaError: line, column."""

    def predict_file(self, path: Path, /) -> pa.Table:
        """Return answers for the rows of a CSV or Parquet file; as `predict`, with the file's lines."""


def encoded(answers: pa.Table, output_format: Literal["csv", "parquet"]) -> bytes:
    """Return answers as the bytes of a CSV or Parquet file."""
    buffer = io.BytesIO()
    if output_format == "csv":
        pyarrow.csv.write_csv(answers, buffer)
    else:
        pyarrow.parquet.write_table(answers, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class Predictor:
    """A released model that answers.

    Attributes:
        artifact: the model.
        features: how it reads rows; the artefact's own, unless `fit` has added a site's scaling.
        network: what computes, where that is code of the user's own; None for a built-in model.
    """

    artifact: ModelArtifact
    features: FeatureMap
    network: Network | None = field(default=None, repr=False)

    @classmethod
    def of(cls, artifact: ModelArtifact, network: Network | None = None) -> Predictor:
        """Return the predictor of a released model."""
        return cls(artifact, artifact.card.features, network)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of an answer."""
        names = self.features.class_names if self.features.classes else ()
        return answer_names(names, self._outputs)

    @property
    def inputs(self) -> Mapping[str, Column]:
        """The columns that are read of a row, by name, as the schema declares them."""
        return self.features.columns

    def fit(self, reference: pa.Table) -> Predictor:
        """Return a predictor that scales by the rows of `reference` where the model asks for local scaling.

        Raises:
            SchemaError: a row breaks the schema.
        """
        return self._fitted(TableSource(reference))

    def fit_file(self, path: Path) -> Predictor:
        """As `fit`, by the rows of a CSV or Parquet file."""
        return self._fitted(open_source(path))

    def _fitted(self, source: Source) -> Predictor:
        return replace(self, features=self.features.fit(read_rows(source, self.inputs)))

    def predict(self, table: pa.Table) -> pa.Table:
        """Return answers for the rows of an Arrow table.

        Raises:
            SchemaError: a column is absent, or a row breaks the schema: row number, column.
            InputError: the model asks for local scaling and `fit` was not called; or it is code of the
                user's own, and this predictor has none.
        """
        return self.predict_source(TableSource(table))

    def predict_file(self, path: Path) -> pa.Table:
        """Return answers for the rows of a CSV or Parquet file; as `predict`, with the file's lines."""
        return self.predict_source(open_source(path))

    def predict_source(self, source: Source) -> pa.Table:
        """Return answers for the rows of any source of the vault; as `predict`."""
        if self.features.scaling == "local" and self.features.means is None:
            raise InputError(
                'the model was trained with scaling = "local" and needs rows to scale by',
                fix="Give rows of the same site as a reference",
            )
        X = self.features.transform_features(read_rows(source, self.inputs))
        scores = (self.network or self.artifact.model).predict(self.artifact.parameters, X)
        if not self.features.classes:
            columns = [pa.array(self.features.label_values(scores))]
        elif scores.ndim == 1:
            columns = [self._labels(scores >= 0.5), pa.array(scores)]
        else:
            columns = [self._labels(scores.argmax(axis=1)), *(pa.array(each) for each in scores.T)]
        return pa.table(dict(zip(self.columns, columns, strict=True)))

    @property
    def _outputs(self) -> int:
        """Scores of one row; of a user's module with two classes their difference counts alone."""
        if self.artifact.card.model.kind == "torch":
            return 1 if self.features.classes == 2 else self.features.classes
        return self.artifact.model.head.outputs

    def _labels(self, classes: NDArray[np.generic]) -> pa.Array:
        """Return class numbers as the label's own values."""
        return answer_labels(self.features.class_names, self.features.label, classes)
