"""Rows in the clear again, for their owner: one new file, mode 0600, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cloister.errors import InputError, StorageError
from cloister.vault.dataset import Dataset
from cloister.vault.ingest import storage_schema

__all__ = ["export_rows"]


def export_rows(dataset: Dataset, target: Path) -> int:
    """Write the rows to a new .csv or .parquet file; return their number.

    Raises:
        InputError: the suffix is another one, or the file exists.
        IntegrityError: the dataset was altered; nothing is written.
        StorageError: the file system refused; nothing is left half-written.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise InputError(
            "rows are exported as .csv or .parquet", where=str(target), fix="Choose one of the two"
        )
    schema = storage_schema(dataset.schema)
    with _new_file(target) as file:
        writer = pa_csv.CSVWriter(file, schema) if target.suffix == ".csv" else pq.ParquetWriter(file, schema)
        with writer:
            for batch in dataset.batches():
                writer.write_batch(batch.cast(schema))
    return dataset.rows


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    if target.exists():
        raise InputError("the file exists", where=str(target), fix="Choose another name")
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.rename(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"cannot write: {error.strerror or 'the file system refused'}",
            where=str(target),
            fix="Free space or choose another folder; nothing was left half-written",
        ) from None
