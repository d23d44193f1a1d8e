"""What a source of rows is, and what all kinds of it share.

A source yields record batches in the order of the file, and knows the line of every row. What a value was
never enters a message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from cloister.errors import InputError, SchemaError

__all__ = ["Progress", "Record", "Source", "reading", "refuse_duplicates"]

Progress = Callable[[int, int], None]
"""Called with the bytes (or rows) read so far, and their total."""


@dataclass(frozen=True)
class Record:
    """One record: the line it begins on; its index among the readable rows, or None and the reason."""

    line: int
    row: int | None
    reason: str = ""


class Source(Protocol):
    """Rows to ingest."""

    names: tuple[str, ...]

    @property
    def unreadable(self) -> int:
        """How many records were skipped so far because they do not have the header's number of fields."""

    def batches(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some columns, in order."""

    def records(self) -> Iterator[Record]:
        """Yield every record with its line, unreadable ones included, in order."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the file system's refusals to read `path` into InputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot read the rows: {reason}", where=str(path), fix="Check the path") from None


def refuse_duplicates(names: Sequence[str], *, line: int | None = None) -> None:
    """Raise SchemaError where a column's name appears twice."""
    twice = (
        next((name for name in names if names.count(name) > 1), None)
        if len(set(names)) < len(names)
        else None
    )
    if twice is not None:
        raise SchemaError(
            "the header names the column twice", line=line, column=twice, fix="Rename one of them"
        )
