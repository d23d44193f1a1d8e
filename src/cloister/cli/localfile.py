"""The files of a local release: released rows, and the record beside them (FILE.json).

The record appears first: rows without it could not be put to use, and a record without rows says nothing.
What an interrupted release left behind is replaced by the next one of that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import InputError, IntegrityError
from cloister.files import read_bytes, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from cloister.privacy.local import LocalRecord

__all__ = ["digest", "encode", "read", "target", "write"]

_MAX_FILE: Final = 1 << 30
_SUFFIXES: Final = (".csv", ".parquet")


def target(out: Path) -> tuple[Path, Path]:
    """Return the file to write and its record. Raises InputError where it exists or has another suffix."""
    if out.suffix not in _SUFFIXES:
        raise InputError("rows are released as .csv or .parquet", where=str(out), fix="Choose one of the two")
    if out.exists():
        raise InputError(
            "the file exists", where=str(out), fix="Choose another name; a release is not repeated"
        )
    if not out.parent.is_dir():
        raise InputError("there is no such folder", where=str(out.parent), fix="Make it first")
    return out, out.with_name(out.name + ".json")


def encode(table: pa.Table, path: Path) -> bytes:
    """Return the rows as the file's suffix says."""
    import io

    import pyarrow.csv
    import pyarrow.parquet

    buffer = io.BytesIO()
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, buffer)
    else:
        pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def write(path: Path, beside: Path, content: bytes, record: LocalRecord) -> None:
    """Write the record, then the rows, each whole. Raises InputError where the file has come to be there."""
    from cloister.crypto import canonical_bytes

    write_atomic(beside, canonical_bytes(record) + b"\n", mode=0o600)
    write_atomic(path, content, mode=0o600, replace=False)


def read(file: Path) -> tuple[LocalRecord, dict[str, list[Any]]]:
    """Return the record of a file and the columns that it describes.

    Raises:
        InputError: one of the two cannot be read.
        IntegrityError: they do not belong together.
    """
    from cloister.privacy.local import read_record
    from cloister.privacy.local.record import MAX_RECORD

    content = read_bytes(file, limit=_MAX_FILE, what="released rows")
    beside = file.with_name(file.name + ".json")
    record = read_record(read_bytes(beside, limit=MAX_RECORD, what="record of the release"))
    if digest(content) != record.sha256:
        raise IntegrityError(
            "the file is not the one its record describes", where=str(file), fix="Get both again"
        )
    return record, _decode(content, file, record)


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    from cloister.crypto import sha256

    return sha256(content).hex()


def _decode(content: bytes, file: Path, record: LocalRecord) -> dict[str, list[Any]]:
    import io

    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from cloister.privacy.local import Response

    types = {
        name: pa.string() if isinstance(each.mechanism, Response) else pa.float64()
        for each in record.columns
        for name in each.columns
    }
    try:
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(io.BytesIO(content), columns=list(types))
        else:
            options = pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), strings_can_be_null=False
            )
            table = pyarrow.csv.read_csv(io.BytesIO(content), convert_options=options)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"the released rows cannot be read ({type(error).__name__})",
            where=str(file),
            fix="Get them again",
        ) from None
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns
