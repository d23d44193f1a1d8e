"""Rows to predict: the model's feature columns out of a file or a table, checked as the vault checks
rows it takes in.

Only the columns the model reads are parsed; a label, identifiers and whatever else stands in the file
are neither needed nor looked at. The first row that breaks the schema is refused with its line and
column, never with its value. For a CSV file lines count from the header as 1; for Parquet and tables in
memory a line is the row's number, from 1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from cloister.errors import SchemaError
from cloister.vault import Column
from cloister.vault.columns import check_values, storage_type
from cloister.vault.sources import Source

__all__ = ["in_memory_file", "read_rows"]


def read_rows(source: Source, columns: Mapping[str, Column]) -> pa.Table:
    """Return the columns that a model reads out of a source, in their stored types.

    Args:
        source: the rows.
        columns: name to the schema's declaration, in order.

    Raises:
        SchemaError: a column is absent, or a row breaks the schema: line, column, reason.
        InputError: the source cannot be read.
    """
    for name in columns:
        if name not in source.names:
            raise SchemaError(
                "the column is absent", column=name, fix="Give every column that the model reads"
            )
    fields = [pa.field(name, storage_type(column)) for name, column in columns.items()]
    batches, first = [], 0
    for raw in source.batches(list(columns)):
        batches.append(_checked(raw, columns, source, first))
        first += raw.num_rows
    if source.unreadable:
        bad = next(record for record in source.records() if record.row is None)
        raise SchemaError(bad.reason, line=bad.line, fix="Correct the row")
    return pa.Table.from_batches(batches, schema=pa.schema(fields))


def _checked(
    raw: pa.RecordBatch, columns: Mapping[str, Column], source: Source, first: int
) -> pa.RecordBatch:
    """Return one batch of stored values; `first` is the index of its first row in the source."""
    arrays, faults = {}, []
    for name, column in columns.items():
        checked = check_values(name, column, raw.column(name))
        arrays[name] = checked.values
        faults += [(int(np.flatnonzero(mask)[0]), name, reason) for reason, mask in checked.faults.items()]
    if faults:
        row, name, reason = min(faults)
        line = next(record.line for record in source.records() if record.row == first + row)
        raise SchemaError(reason, line=line, column=name, fix="Correct the row, or leave it out")
    return pa.RecordBatch.from_pydict(arrays)


@contextlib.contextmanager
def in_memory_file(data: bytes) -> Iterator[Path]:
    """Yield a path under which `data` can be read as a file, without its ever being on a disk; gone
    afterwards."""
    descriptor = os.memfd_create("rows", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
