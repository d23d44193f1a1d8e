"""Rows of JSON as an Arrow table, for the check that decides what is refused and says where.

A column keeps its kind where all its values have one: whole numbers, numbers, true and false, or texts. Of
mixed kinds it becomes text, as in a CSV file, so that the check finds the first value that does not belong.
Messages of Arrow quote values and are therefore never passed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from cloister.errors import SchemaError

__all__ = ["arrow_table"]


def arrow_table(rows: Sequence[Mapping[str, object]], names: Iterable[str]) -> pa.Table:
    """Return the named columns of rows; a column that no row has is absent, unless there are no rows.

    Args:
        rows: by column name; what a row lacks is null.
        names: the columns to take.

    Raises:
        SchemaError: a value is neither number, text, true, false nor null: row, from 1, and column.
    """
    present = [name for name in names if not rows or any(name in row for row in rows)]
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in present})


def _column(name: str, values: Sequence[object]) -> pa.Array:
    for line, value in enumerate(values, start=1):
        if not isinstance(value, bool | int | float | str | None):
            raise SchemaError(
                "the value is neither a number, a text, true, false nor null",
                line=line,
                column=name,
                fix="Correct the row, or leave it out",
            )
    kinds = {type(value) for value in values if value is not None}
    target = pa.string()
    if not kinds:
        target = pa.null()
    elif kinds == {bool}:
        target = pa.bool_()
    elif kinds == {int}:
        target = pa.int64()
    elif kinds <= {int, float}:
        target = pa.float64()
    try:
        return pa.array(values, target)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):  # mixed kinds, or beyond int64
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else repr(value)
