"""The rows as statistics see them: checked columns, clamped to their bounds, few of each unit.

In this order:

1. every column that is needed is there and of its declared type;
2. where there is a unit column, no unit is missing, and of each unit the first `rows_per_unit` rows stay, in
   the order of the table. Which rows stay is decided for each unit by its own rows alone, so a unit changes
   the statistic by what its kept rows contribute and by nothing else;
3. numbers are clamped to their bounds, and a category that is not declared has no code.

What is refused here names a column and never a value. Refusals depend on the rows where these break their
declaration; rows from a vault do not, since they were checked when they came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.statistics.declared import Declarations

__all__ = ["Rows", "Table"]

_STORED: Final = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "category": pa.string(),
    "boolean": pa.bool_(),
}

Table: TypeAlias = "pa.Table | Mapping[str, Any]"
"""Rows: an Arrow table, or numpy arrays of one length by column name."""


class Rows:
    """The columns of a table that some statistics need, at most `rows_per_unit` rows of each unit.

    Args:
        table: the rows.
        declarations: what is known of it.
        columns: names of the columns needed, without the unit.
        rows_per_unit: how many rows of a unit count; without effect where no unit is declared.

    Raises:
        InputError: a column is absent, of another type, has missing values that are not declared, or a unit
            is missing.
    """

    def __init__(
        self, table: Table, declarations: Declarations, columns: Sequence[str], rows_per_unit: int = 1
    ) -> None:
        if not isinstance(table, pa.Table):
            table = pa.table({name: pa.array(values) for name, values in table.items()})
        if table.num_rows != declarations.rows:
            raise InputError("the table has another number of rows than was declared", fix="Declare it again")
        self._declarations = declarations
        kept = None
        if declarations.unit is not None:
            kept = _first_rows(_column(table, declarations.unit), declarations.unit, rows_per_unit)
        self._columns = {name: self._checked(_column(table, name), name, kept) for name in columns}
        self.count = table.num_rows if kept is None else len(kept)

    def __repr__(self) -> str:
        return f"Rows({', '.join(self._columns)})"

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return float64[n], clamped to the column's bounds, NaN where missing; booleans as 0 and 1."""
        low, high = self._declarations.bounds(name)
        values = self._columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        clamped: NDArray[np.float64] = np.clip(np.asarray(values, dtype=np.float64), low, high)
        return np.rint(clamped) if self._declarations.column(name).kind == "integer" else clamped

    def codes(self, name: str) -> NDArray[np.int64]:
        """Return int64[n]: the number of each row's declared value, -1 where it is missing or unknown."""
        column, values = self._declarations.column(name), self._columns[name]
        if column.kind == "category":
            known = pa.array(list(column.categories or ()), type=pa.string())
            found = pc.fill_null(pc.index_in(values, value_set=known), -1)
            codes: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
            return codes
        low = 0.0 if column.kind == "boolean" else self._declarations.bounds(name)[0]
        numbers = self.numbers(name)
        return np.where(np.isnan(numbers), -1.0, numbers - low).astype(np.int64)

    def missing(self, name: str) -> NDArray[np.bool_]:
        """Return bool[n]: where there is no value."""
        absent: NDArray[np.bool_] = pc.is_null(self._columns[name]).to_numpy(zero_copy_only=False)
        return absent

    def _checked(self, values: pa.Array, name: str, kept: NDArray[np.int64] | None) -> pa.Array:
        column = self._declarations.column(name)
        if kept is not None:
            values = values.take(pa.array(kept))
        if pa.types.is_null(values.type):  # nothing is there, of any type
            values = values.cast(_STORED[column.kind])
        if column.kind == "category":
            fits = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            values = values.cast(pa.string()) if fits else values
        elif column.kind == "boolean":
            fits = pa.types.is_boolean(values.type)
            values = values.cast(pa.int8()) if fits else values
        else:
            fits = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
            values = _float(values, name) if fits else values
        if not fits:
            raise InputError(
                f"column {name!r} is not of its declared type", fix="Convert it, or declare it as it is"
            )
        if values.null_count and not column.missing:
            raise InputError(
                f"column {name!r} has missing values that are not declared",
                fix='Write missing = "allow" in the schema, or leave these rows out',
            )
        return values


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise InputError(
            f"the table has no column {name!r}", fix="Give every column that is declared and asked of"
        )
    values = table.column(name).combine_chunks()
    return values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values


def _float(values: pa.Array, name: str) -> pa.Array:
    """Return float64 with null for NaN, as both mean that there is no value."""
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise InputError(f"a value of {name!r} is not exact as float64", fix="Use smaller numbers") from error
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _first_rows(units: pa.Array, name: str, most: int) -> NDArray[np.int64]:
    """Return the positions of the first `most` rows of each unit, rising."""
    if units.null_count:
        raise InputError(
            f"the unit column {name!r} has missing values",
            fix="Every row must say whose it is; leave out those that do not",
        )
    if pa.types.is_floating(units.type) or pa.types.is_nested(units.type):
        raise InputError(
            f"the unit column {name!r} is not of a type that identifies", fix="Use text or whole numbers"
        )
    codes = units.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    lengths = np.diff(starts, append=len(ordered))
    rank = np.arange(len(ordered)) - np.repeat(starts, lengths)
    kept: NDArray[np.int64] = np.sort(order[rank < most]).astype(np.int64)
    return kept
