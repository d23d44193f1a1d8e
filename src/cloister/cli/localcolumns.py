"""From a dataset's schema to local mechanisms, and from its rows to the values they take.

Everything a mechanism depends on is declared in the schema or on the command line: no row is looked at until
it stands. Whether a value is missing is told by no release: a missing category is a category of its own, and
a missing number is replaced by one that the command line names.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloister.errors import InputError, SchemaError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from cloister.privacy.local import ColumnRecord
    from cloister.vault import Column, Schema

__all__ = ["Choice", "MechanismName", "choose", "person_column", "shown", "values_of"]

_BOOLEAN = ("false", "true")


class MechanismName(enum.StrEnum):
    """What is done to a column."""

    LAPLACE = "laplace"
    GAUSSIAN = "gaussian"
    RESPONSE = "response"
    PLANAR = "planar"


@dataclass(frozen=True)
class Choice:
    """What a command line says about noise."""

    mechanism: MechanismName | None
    epsilon: float
    delta: float | None = None
    step: float | None = None
    missing: float | None = None
    metres: bool = False
    beyond: bool = False


def person_column(schema: Schema, named: str | None) -> str:
    """Return the column that says whose a row is: the one that is named, else the unit, else the id.

    Raises:
        InputError: there is none, or the named one has another role.
    """
    candidates = (*schema.by_role("unit"), *schema.by_role("id"))
    if named is None and candidates:
        return candidates[0]
    if named is not None and named in candidates:
        return named
    raise InputError(
        "nothing says whose a row is" if named is None else "the column does not say whose a row is",
        where=named or "schema",
        fix=f"Name one of {', '.join(candidates)}"
        if candidates
        else 'Declare a column with role = "unit" or "id", and add the rows again',
    )


def choose(schema: Schema, names: Sequence[str], choice: Choice) -> tuple[ColumnRecord, ...]:
    """Return what is to be done to each of these columns.

    Raises:
        InputError: a column is unknown or named twice, or the mechanism or a number does not fit it.
        SchemaError: the schema declares no bounds or no categories for one.
    """
    if len(set(names)) < len(names):
        raise InputError("a column is named twice", fix="Name each once")
    columns = {name: _column(schema, name) for name in names}
    if choice.mechanism is MechanismName.PLANAR:
        return (_planar(columns, choice),)
    if choice.metres or choice.beyond:
        raise InputError("metres and bounds of positions are for planar noise", fix="Use --mechanism planar")
    return tuple(_single(name, column, choice) for name, column in columns.items())


def values_of(table: pa.Table, record: ColumnRecord) -> NDArray[Any]:
    """Return a column's true values as its mechanism takes them. Raises InputError where one is missing."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from cloister.privacy.local import Response

    raw = [table.column(name).combine_chunks() for name in record.columns]
    if isinstance(record.mechanism, Response):
        texts = pc.if_else(raw[0], *reversed(_BOOLEAN)) if pa.types.is_boolean(raw[0].type) else raw[0]
        return record.mechanism.encode(pc.fill_null(texts, "").to_pylist())
    if record.missing is not None:
        raw = [pc.fill_null(each.cast(pa.float64()), record.missing) for each in raw]
    if any(each.null_count for each in raw):
        raise InputError(
            "a value is missing", where=record.columns[0], fix="Say what stands for it with --missing"
        )
    numbers = [each.cast(pa.float64()).to_numpy(zero_copy_only=False) for each in raw]
    return record.mechanism.accept(numbers[0] if len(numbers) == 1 else np.column_stack(numbers))


def shown(record: ColumnRecord, released: NDArray[Any], schema: Schema) -> Mapping[str, pa.Array]:
    """Return released values as columns of a table: text for categories, whole numbers where the grid is."""
    import pyarrow as pa

    from cloister.privacy.local import PlanarLaplace, Response

    mechanism = record.mechanism
    if isinstance(mechanism, Response):
        return {record.columns[0]: pa.array(mechanism.decode(released), pa.string())}
    if isinstance(mechanism, PlanarLaplace):
        return {name: pa.array(released[:, i]) for i, name in enumerate(record.columns)}
    whole = schema.columns[record.columns[0]].type == "integer" and mechanism.grid.step.is_integer()
    return {record.columns[0]: pa.array(released.astype("int64") if whole else released)}


def _column(schema: Schema, name: str) -> Column:
    column = schema.columns.get(name)
    if column is None or not column.stored:
        raise InputError(f"the dataset has no column {name!r}", fix=f"It has {', '.join(schema.stored)}")
    if column.role not in ("feature", "label") or column.type == "text":
        raise InputError(
            "only bounded numbers, categories and yes or no can be released",
            where=name,
            fix="Choose another column",
        )
    return column


def _single(name: str, column: Column, choice: Choice) -> ColumnRecord:
    from cloister.privacy.local import BoundedGaussian, BoundedLaplace, ColumnRecord, Response, ValueGrid

    numeric = column.type in ("number", "integer")
    mechanism = choice.mechanism or (MechanismName.LAPLACE if numeric else MechanismName.RESPONSE)
    if numeric is (mechanism is MechanismName.RESPONSE):
        fitting = "laplace or gaussian" if numeric else "response"
        raise InputError(f"{mechanism} noise does not fit this column", where=name, fix=f"Use {fitting}")
    if (choice.delta is None) is (mechanism is MechanismName.GAUSSIAN):
        raise InputError(
            "Gaussian noise, and no other, needs a delta", where=name, fix="Give --delta with gaussian"
        )
    if not numeric:
        if choice.step is not None or choice.missing is not None:
            raise InputError("a step and a missing value are for numbers", where=name, fix="Leave them out")
        return ColumnRecord((name,), Response(_categories(name, column), choice.epsilon))
    low, high = _bounds(name, column)
    if column.missing == "allow" and choice.missing is None:
        raise InputError(
            "values of the column may be missing, and that would show",
            where=name,
            fix="Say which number stands for missing with --missing",
        )
    missing = choice.missing if column.missing == "allow" else None
    if missing is not None and not low <= missing <= high:
        raise InputError(
            "what stands for missing is outside the bounds", where=name, fix="Choose a value within"
        )
    grid = ValueGrid.of(low, high, step=choice.step, whole=column.type == "integer")
    if choice.delta is not None:
        return ColumnRecord((name,), BoundedGaussian(grid, choice.epsilon, choice.delta), missing)
    return ColumnRecord((name,), BoundedLaplace(grid, choice.epsilon), missing)


def _planar(columns: Mapping[str, Column], choice: Choice) -> ColumnRecord:
    from cloister.privacy.local import ColumnRecord, PlanarLaplace, Rectangle, Region

    if len(columns) != 2 or any(column.type != "number" for column in columns.values()):
        raise InputError(
            "a position has two columns of type number",
            fix="Give --column latitude --column longitude, or two in metres with --metres",
        )
    if choice.delta is not None or choice.missing is not None:
        raise InputError("planar noise has no delta and nothing for missing", fix="Leave them out")
    for name, column in columns.items():
        if column.missing == "allow":
            raise InputError(
                "a position may be missing, and that would show",
                where=name,
                fix="Add rows with positions alone",
            )
    first, second = (_bounds(name, column) for name, column in columns.items())
    region = Rectangle(first, second) if choice.metres else Region(first, second)
    planar = PlanarLaplace.of(region, choice.epsilon, step=choice.step, truncated=not choice.beyond)
    return ColumnRecord(tuple(columns), planar)


def _bounds(name: str, column: Column) -> tuple[float, float]:
    if column.bounds is None:
        raise SchemaError("the column has no bounds", column=name, fix="Declare them, and add the rows again")
    return column.bounds


def _categories(name: str, column: Column) -> tuple[str, ...]:
    if column.type == "boolean":
        declared: tuple[str, ...] = _BOOLEAN
    elif column.categories is None:
        raise SchemaError(
            "the column has no categories", column=name, fix="Declare them, and add the rows again"
        )
    else:
        declared = column.categories
    return (*declared, "") if column.missing == "allow" else declared
