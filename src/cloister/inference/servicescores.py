"""Rows for a served table model, in chunks, and the predictions in what it answers. Bytes in, bytes out.

    POST /v1/score    {"columns": {name: [value, ...], ...}}    at most `CHUNK` rows at a time

1. Values become JSON as the model's own check will read them: numbers, texts, true, false, or null where one
   is missing. What JSON has no word for is refused here: a number that is not finite would become a missing
   one.
2. An answer is parsed strictly: one prediction for each row, with the columns it names, the same in every
   chunk.
3. A row that the service refuses is named by its number among all rows, from 1, and column.

The columns that are sent are the caller's choice; the model does not look at those it does not read. Whom
the bytes go to is for `PrivateClient`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cloister.errors import ProtocolError, SchemaError
from cloister.text import printable

__all__ = ["CHUNK", "PATH", "Post", "service_scores"]

PATH: Final = "/v1/score"
CHUNK: Final = 2_000
"""Rows of one request."""
_PLACE: Final = re.compile(r"columns\.(?P<column>.{1,256})\[(?P<row>[0-9]{1,6})\]\Z", re.DOTALL)
_COUNTED: Final = re.compile(r" \(line [0-9]{1,9}(, column [^)]{1,256})?\)")
_MAX_WORDS: Final = 300

Post = Callable[[bytes], tuple[int, bytes]]
"""Takes the body of a request to `PATH`, JSON; returns status and body of the answer."""

_Cell = float | int | str | bool | None


class _Answer(msgspec.Struct, frozen=True):
    model: str
    columns: Annotated[list[Annotated[str, msgspec.Meta(max_length=4096)]], msgspec.Meta(min_length=1)]
    predictions: list[dict[str, _Cell]]


class _Said(msgspec.Struct, frozen=True):
    message: str
    param: str | None = None


class _Refused(msgspec.Struct, frozen=True):
    error: _Said


_encode = msgspec.json.Encoder().encode


def service_scores(post: Post, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield predictions for rows, one table for each chunk, in order.

    Args:
        post: asks the service.
        batches: the rows, columns of one kind each; binary ones are fields of a CSV file.

    Raises:
        SchemaError: a column's values are none that can be asked about, or the service refuses a row.
        ProtocolError: the service refuses for another reason, or its answer is no prediction of these rows.
    """
    before, schema = 0, None
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK):
            part = batch.slice(start, CHUNK)
            status, body = post(_encode({"columns": _columns(part, before)}))  # 1
            if status != 200:
                raise _refusal(status, body, before)  # 3
            table = _table(body, part.num_rows, schema)  # 2
            schema = table.schema
            before += part.num_rows
            yield table


def _columns(part: pa.RecordBatch, before: int) -> dict[str, list[_Cell]]:
    return {name: _values(name, part.column(name), before) for name in part.schema.names}


def _values(name: str, column: pa.Array, before: int) -> list[_Cell]:
    """Return a column as JSON has it. Raises SchemaError."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_binary(kind):
        return [_text(name, value, before + row) for row, value in enumerate(column.to_pylist(), start=1)]
    if pa.types.is_floating(kind):
        bad = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy(zero_copy_only=False)
        if bad.any():
            line = before + int(np.flatnonzero(bad)[0]) + 1
            raise SchemaError("the number is not finite", line=line, column=name, fix="Correct the row")
    elif not (
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
    ):
        raise SchemaError(
            f"the column holds {kind}, which no model reads", column=name, fix="Name the others with --column"
        )
    values: list[_Cell] = column.to_pylist()
    return values


def _text(name: str, value: bytes | None, line: int) -> str | None:
    """Return the text of a CSV file's field; an empty one is missing."""
    try:
        return value.decode() if value else None
    except UnicodeDecodeError:
        raise SchemaError("the text is not UTF-8", line=line, column=name, fix="Save it as UTF-8") from None


def _table(body: bytes, rows: int, schema: pa.Schema | None) -> pa.Table:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        names = answer.columns
        if len(answer.predictions) != rows or len(set(names)) != len(names):
            raise _strange()
        if any(each.keys() != set(names) for each in answer.predictions):
            raise _strange()
        columns: dict[str, Any] = {
            name: [each[name] for each in answer.predictions]
            if schema is None
            else pa.array([each[name] for each in answer.predictions], schema.field(name).type)
            for name in names
        }
        table = pa.table(columns)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        raise _strange() from None
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        raise _strange() from None
    if schema is not None and table.schema != schema:
        raise _strange()
    return table


def _strange() -> ProtocolError:
    return ProtocolError(
        "the service's answer is no prediction of the rows it was asked about",
        fix="Ask its operator which model it serves",
    )


def _refusal(status: int, body: bytes, before: int) -> SchemaError | ProtocolError:
    """Return what the service says is wrong, in printable words."""
    try:
        said = msgspec.json.decode(body, type=_Refused).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = _Said(f"status {status}")
    words = printable(said.message[:_MAX_WORDS]).rstrip(".")
    if status == 401:
        return ProtocolError(
            "the service does not know this token, or wants one",
            fix="Give the one that its operator made for you with --token-file",
        )
    if status == 404:
        return ProtocolError("the service serves no table model", fix="Ask it with `cloister ask`")
    place = _PLACE.match(said.param or "")
    if place is None or status != 400:
        advised = ". " in words  # it says itself what to do
        fix = "Ask again later" if status >= 500 else "" if advised else "Change the request"
        return ProtocolError(f"the service refuses: {words}", fix=fix)
    what, _, advice = _COUNTED.sub("", words).partition(". ")  # it counts rows of one chunk
    line = before + int(place["row"]) + 1
    return SchemaError(what, line=line, column=printable(place["column"]), fix=advice)
