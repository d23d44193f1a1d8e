"""Rows in the clear again, for their owner: one new file, mode 0600, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cloister.errors import InputError
from cloister.files import atomic_file
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
    if target.exists():
        raise InputError("the file exists", where=str(target), fix="Choose another name")
    with atomic_file(target, mode=0o600, replace=False) as file:
        writer = pa_csv.CSVWriter(file, schema) if target.suffix == ".csv" else pq.ParquetWriter(file, schema)
        with writer:
            for batch in dataset.batches():
                writer.write_batch(batch.cast(schema))
    return dataset.rows
