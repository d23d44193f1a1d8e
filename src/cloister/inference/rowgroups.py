"""Answers for a whole dataset, one row group after another.

Memory is a row group, 65,536 rows of the columns that the model reads, and the answers. Other columns are not
decrypted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cloister.errors import InputError, SchemaError
from cloister.inference.predictor import RowPredictor
from cloister.inference.walledmessages import MAX_ANSWER
from cloister.vault import Dataset

__all__ = ["scored", "together"]


def scored(
    dataset: Dataset, predictor: RowPredictor, output_format: Literal["csv", "parquet"]
) -> tuple[bytes, int]:
    """Return a dataset's answers, encoded, and their number; its rows are read one row group at a time.

    Raises:
        SchemaError: a column is absent, or a row breaks the model's schema: number of the row, from 1.
        IntegrityError: a page was altered.
        InputError: the answers are too large.
    """
    names = list(predictor.inputs)
    for name in names:
        if name not in dataset.columns:
            raise SchemaError("the column is absent", column=name, fix="Add rows that have every column")
    return together(_of_groups(dataset, predictor, names), output_format)


def together(parts: Iterable[pa.Table], output_format: Literal["csv", "parquet"]) -> tuple[bytes, int]:
    """Return tables of the same columns as the bytes of one CSV or Parquet file, and how many rows it has.

    Raises:
        InputError: it is too large.
    """
    sink, writer, rows = io.BytesIO(), None, 0
    for part in parts:
        writer = writer or _writer(sink, part.schema, output_format)
        writer.write_table(part)
        rows += part.num_rows
        if sink.tell() > MAX_ANSWER:
            raise InputError(
                f"the predictions are larger than {MAX_ANSWER >> 20} MiB",
                where=f"after {rows} rows",
                fix="Split the rows",
            )
    if writer is not None:
        writer.close()
    return sink.getvalue(), rows


def _of_groups(dataset: Dataset, predictor: RowPredictor, names: list[str]) -> Iterator[pa.Table]:
    before = 0
    for batch in dataset.batches(names):
        yield _answers(pa.Table.from_batches([batch]), predictor, before)
        before += batch.num_rows


def _answers(table: pa.Table, predictor: RowPredictor, before: int) -> pa.Table:
    """Return the answers of one row group; `before` rows came before it."""
    try:
        return predictor.predict(table)
    except SchemaError as error:
        line = None if error.line is None else before + error.line
        raise SchemaError(error.what, line=line, column=error.column, fix=error.fix) from error


def _writer(sink: io.BytesIO, schema: pa.Schema, output_format: Literal["csv", "parquet"]) -> Any:
    if output_format == "csv":
        return pyarrow.csv.CSVWriter(sink, schema)
    return pyarrow.parquet.ParquetWriter(sink, schema)
