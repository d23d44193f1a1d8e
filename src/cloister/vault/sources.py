"""Where rows come from: a CSV file, a Parquet file, or an Arrow table already in memory."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from cloister.errors import InputError
from cloister.vault.csvfile import CsvSource
from cloister.vault.source import Progress, Record, Source, reading, refuse_duplicates

__all__ = ["CsvSource", "ParquetSource", "Progress", "Record", "Source", "TableSource", "open_source"]

_BATCH_ROWS: Final = 65_536
_PARQUET_MAGIC: Final = b"PAR1"
_ENCRYPTED_MAGIC: Final = b"PARE"


def open_source(path: Path) -> CsvSource | ParquetSource:
    """Return the source for a file, chosen by its first bytes.

    Raises:
        InputError: it cannot be read, is a pipe or a device, or is neither CSV nor Parquet.
        SchemaError: the header is not as it must be.
    """
    with reading(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # rows are read more than once
        raise InputError("the rows are not in a file", where=str(path), fix="Save them as a file first")
    with reading(path), path.open("rb") as file:
        start = file.read(4)
    if start == _ENCRYPTED_MAGIC:
        raise InputError(
            "the file is encrypted Parquet",
            where=str(path),
            fix="Give the plain file, or export the dataset first",
        )
    return ParquetSource(path) if start == _PARQUET_MAGIC else CsvSource(path)


class ParquetSource:
    """A plain Parquet file with flat columns; a line is the row's number, counted from 1.

    Raises:
        InputError: it cannot be read as Parquet.
        SchemaError: a column's name appears twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with pq.ParquetFile(path) as file:
                self.names: tuple[str, ...] = tuple(file.schema_arrow.names)
                self._rows: int = file.metadata.num_rows
        except (pa.ArrowException, OSError):
            self.names, self._rows = (), -1
        if self._rows < 0:
            raise self._unparsable()
        refuse_duplicates(self.names)

    @property
    def unreadable(self) -> int:
        """Always 0."""
        return 0

    def batches(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches in the types of the file."""
        failed = False
        done = 0
        try:
            with pq.ParquetFile(self._path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                    done += batch.num_rows
                    if progress:
                        progress(done, self._rows)
                    yield batch.select(list(columns))
        except (pa.ArrowException, OSError):
            failed = True
        if failed:
            raise self._unparsable()

    def records(self) -> Iterator[Record]:
        """Yield the rows, numbered."""
        return (Record(row + 1, row) for row in range(self._rows))

    def _unparsable(self) -> InputError:
        return InputError("the file cannot be read as Parquet", where=str(self._path), fix="Write it again")


class TableSource:
    """An Arrow table; a line is the row's number, counted from 1.

    Raises SchemaError for a repeated column name.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.names: tuple[str, ...] = tuple(table.column_names)
        refuse_duplicates(self.names)

    @property
    def unreadable(self) -> int:
        """Always 0."""
        return 0

    def batches(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches in the types of the table."""
        done = 0
        for batch in self._table.select(list(columns)).to_batches(_BATCH_ROWS):
            done += batch.num_rows
            if progress:
                progress(done, self._table.num_rows)
            yield batch

    def records(self) -> Iterator[Record]:
        """Yield the rows, numbered."""
        return (Record(row + 1, row) for row in range(self._table.num_rows))
