"""One column of a table as checked float64; messages name the column, never a value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cloister.errors import SchemaError
from cloister.learning.heads import Array
from cloister.vault import Column

__all__ = ["column_numbers", "table_column", "to_unit"]


def table_column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return the named column. Raises SchemaError where there is none."""
    if name not in table.column_names:
        raise SchemaError("the column is absent", column=name, fix="Give every column the plan names")
    return table.column(name)


def column_numbers(values: pa.ChunkedArray, name: str, column: Column) -> Array:
    """Return a column as float64 (levels by number, NaN for missing), checked against its declaration."""
    if values.null_count and column.missing == "refuse":
        raise SchemaError("a value is missing", column=name, fix="Leave the row out, or allow missing values")
    if column.type == "category":
        numbers = _levels(values, name, column.categories or ())
    else:
        numbers = _cast(values, name, column)
    broken = np.isnan(numbers).sum() != values.null_count or np.isinf(numbers).any()
    if broken:
        raise SchemaError("a value is not allowed", column=name, fix="Use what the schema declares")
    if column.bounds is not None and len(numbers):
        low, high = column.bounds
        with np.errstate(invalid="ignore"):
            if (numbers < low).any() or (numbers > high).any():
                raise SchemaError(
                    "a value is outside the bounds", column=name, fix="Correct or leave out the row"
                )
        if column.type == "integer" and (np.nan_to_num(numbers) % 1.0).any():
            raise SchemaError(
                "a value is not a whole number", column=name, fix="Correct or leave out the row"
            )
    return numbers


def _cast(values: pa.ChunkedArray, name: str, column: Column) -> Array:
    if column.type == "boolean" and pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    elif column.type == "boolean" or not (
        pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    ):
        raise SchemaError("the column is not of the declared type", column=name, fix="Convert it first")
    try:
        return np.array(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pa.ArrowInvalid as error:
        raise SchemaError(
            "a value is not exact as float64", column=name, fix="Use smaller numbers"
        ) from error


def _levels(values: pa.ChunkedArray, name: str, categories: Sequence[str]) -> Array:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise SchemaError("the column is not text", column=name, fix="Convert it first")
    found = pc.index_in(values, value_set=pa.array(list(categories), type=values.type))
    return np.array(found.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def to_unit(values: Array, column: Column) -> Array:
    """Return values carried from the column's bounds to [-1, 1]."""
    low, high = column.bounds or (-1.0, 1.0)
    return (values - low) * (2.0 / (high - low)) - 1.0
