"""Rows in a CSV file. Values come as raw bytes, so that one place, `columns`, decides what they mean.

Arrow's parser reads the rows. Finding lines costs a second pass, so it is done on failure only. That pass
reads the records one by one with Python's csv module, which agrees with Arrow's parser on quotes, on line
ends inside quotes and on blank lines (a test compares the two); a blank line is no row. A quote that is
never closed would swallow rows silently and is refused before the first row.
"""

from __future__ import annotations

import codecs
import collections
import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pa_csv

from cloister.errors import InputError, SchemaError
from cloister.vault.source import Progress, Record, reading, refuse_duplicates

__all__ = ["CsvSource"]

_BLOCK: Final = 4 << 20
_MAX_FIELD: Final = 2 << 20  # more than a text may have: a longer one is a quote that was never closed
_WIDE_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class CsvSource:
    """Comma-separated values in UTF-8 with a header, with or without a byte-order mark, any line ends.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, is empty or UTF-16, or a quote in it is never closed.
        SchemaError: the header names a column twice, or is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unreadable = 0
        with reading(path):
            self._size, quotes, start = self._scan()
        if start.startswith(_WIDE_MARKS) or b"\0" in start:
            raise InputError("the file is not UTF-8 text", where=str(path), fix="Save it as CSV in UTF-8")
        with reading(path):
            header = next(self._fields(), None)
        if header is None:
            raise InputError(
                "the file is empty", where=str(path), fix="Give a CSV file with a header and rows"
            )
        self.names = _header(header[1])
        if quotes % 2 and (line := self._open_quote()):
            raise SchemaError(
                "a quote is opened and never closed", line=line, fix="Close the quote, or double it"
            )

    @property
    def unreadable(self) -> int:
        """Rows skipped so far for their number of fields."""
        return self._unreadable

    def batches(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches of binary columns: the bytes of each field, quotes removed, nothing interpreted."""
        self._unreadable = 0
        failed = False
        with reading(self._path), pa.OSFile(str(self._path), "rb") as file:
            try:
                reader = self._reader(file, columns)
                while reader is not None:
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                    if progress:
                        progress(min(file.tell(), self._size), self._size)
                    yield batch
            except pa.ArrowCancelled:
                raise KeyboardInterrupt from None
            except pa.ArrowException:
                failed = True  # its message may quote the row
        if failed:
            raise InputError(
                "the file cannot be parsed as CSV", where=str(self._path), fix="Save it again as CSV in UTF-8"
            )

    def records(self) -> Iterator[Record]:
        """Yield the records after the header."""
        row = 0
        with reading(self._path):
            for line, fields in itertools.islice(self._fields(), 1, None):
                if len(fields) != len(self.names):
                    yield Record(
                        line, None, f"the row has {len(fields)} fields, the header {len(self.names)}"
                    )
                else:
                    yield Record(line, row)
                    row += 1

    def _reader(self, file: pa.NativeFile, columns: Sequence[str]) -> pa_csv.CSVStreamingReader | None:
        def skip(_: pa_csv.InvalidRow) -> str:
            self._unreadable += 1
            return "skip"

        if next(self.records(), None) is None:
            return None  # Arrow refuses a header without rows
        return pa_csv.open_csv(
            file,
            read_options=pa_csv.ReadOptions(
                block_size=_BLOCK, use_threads=False, column_names=list(self.names), skip_rows_after_names=1
            ),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.binary()),
                include_columns=list(columns),
                null_values=[],
                strings_can_be_null=False,
            ),
        )

    def _scan(self) -> tuple[int, int, bytes]:
        size, quotes, start = 0, 0, b""
        with self._path.open("rb") as file:
            while block := file.read(1 << 20):
                start = start or block[:4096]
                size += len(block)
                quotes += block.count(b'"')
        return size, quotes, start

    def _fields(self, *, end: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
        """Yield (line, fields) of each record; a byte is a character here."""
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
        with self._path.open(encoding="latin-1", newline="") as file:
            if file.read(3).encode("latin-1") != codecs.BOM_UTF8:
                file.seek(0)
            reader = csv.reader(itertools.chain(file, end))
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    fields = None
                if fields is None:
                    raise SchemaError(
                        f"a field is longer than {_MAX_FIELD} bytes",
                        line=line,
                        fix="Shorten it, or look for a quote not closed",
                    )
                if fields:
                    yield line, fields

    def _open_quote(self) -> int | None:
        """Return the line of the record that the end of the file leaves open, if one is."""
        mark = ("\r\n", "end")  # inside a quote this becomes part of the last field
        with reading(self._path):
            last = collections.deque(self._fields(end=mark), maxlen=1)[0]
        return last[0] if last[1] != ["end"] and last[1][-1].endswith("".join(mark)) else None


def _header(fields: list[str]) -> tuple[str, ...]:
    names: list[str] = []
    for number, field in enumerate(fields, start=1):
        try:
            name = field.encode("latin-1").decode().strip()
        except UnicodeDecodeError:
            name = ""
        if not name or not name.isprintable():
            raise SchemaError(
                f"column number {number} has no name in printable UTF-8", line=1, fix="Correct the header"
            )
        names.append(name)
    refuse_duplicates(names, line=1)
    return tuple(names)
