"""One column as plan and schema declare it, and as checked float64; messages name it, never a value."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cloister.errors import PlanError, SchemaError
from cloister.learning.heads import Array
from cloister.learning.sections import DataSection, ModelSection
from cloister.vault import Column, Schema

__all__ = [
    "check_schema",
    "class_names",
    "class_numbers",
    "column_numbers",
    "label_classes",
    "plan_column",
    "table_column",
    "to_unit",
]


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


def check_schema(schema: Schema, data: DataSection) -> None:
    """Return if the schema is the plan's and complete.

    Raises:
        PlanError: it is another. SchemaError: bounds or categories of a column are still open.
    """
    if schema.digest().hex() != data.schema:
        raise PlanError(
            "the schema is not the one that the plan names",
            where="[data] schema",
            fix="Use the plan's schema, or write this one's digest and have the plan signed again",
        )
    schema.require_complete()


def plan_column(schema: Schema, name: str, role: Literal["feature", "label"]) -> Column:
    """Return the declaration of a column that a plan uses. Raises PlanError where it has no such role."""
    field = "[data] features" if role == "feature" else "[data] label"
    column = schema.columns.get(name)
    if column is None:
        near = difflib.get_close_matches(name, schema.columns, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Name a column of the schema"
        raise PlanError(f"the schema has no column {name!r}", where=field, fix=hint)
    if column.role != role:
        raise PlanError(
            f"column {name!r} has the role {column.role} in the schema",
            where=field,
            fix=f"Use a column with the role {role}",
        )
    return column


def label_classes(label: Column, model: ModelSection) -> int:
    """Return 0 for a regression, else the classes. Raises PlanError where model and label do not fit."""
    wanted = 2 if model.kind == "logistic" else model.classes
    if wanted == 0:
        if label.type not in ("number", "integer"):
            raise PlanError(
                f"a regression needs a number as its label, not a {label.type}",
                where="[model] kind",
                fix="Choose logistic or softmax, or another label",
            )
        return 0
    offered = 0
    if label.type == "boolean":
        offered = 2
    elif label.type == "category":
        offered = len(label.categories or ())
    elif label.type == "integer" and label.bounds is not None:
        offered = int(label.bounds[1] - label.bounds[0]) + 1
    if offered != wanted:
        raise PlanError(
            f"the model has {wanted} classes and the label {offered or 'none'}",
            where="[model] classes",
            fix="Use as many classes as the schema gives the label",
        )
    return wanted


def class_names(label: Column, classes: int) -> tuple[str, ...]:
    """Return a label's values in the order of their numbers; empty for a regression."""
    if classes and label.type == "integer" and label.bounds is not None:
        low = int(label.bounds[0])
        return tuple(str(low + number) for number in range(classes))
    if label.type == "boolean":
        return ("false", "true")
    return (label.categories or ()) if classes else ()


def class_numbers(table: pa.Table, name: str, label: Column) -> Array:
    """Return a classifier's label as float64, 0 for its first class. Raises as `column_numbers`."""
    values = column_numbers(table_column(table, name), name, label)
    return values - (label.bounds[0] if label.type == "integer" and label.bounds is not None else 0.0)
