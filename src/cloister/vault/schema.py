"""What rows must look like to enter the vault: columns, types, bounds, roles.

A schema is declared by the owner of the rows, from knowledge of the quantity and not from the rows: bounds
taken from the data would tell everybody its extremes. The same schema is shared by all sites of a study,
and its digest stands in the plan.

Invariants:
- `Schema` objects are valid: what contradicts itself is refused when it is made.
- bounds and categories may still be open (None) in a draft; `Schema.require_complete` refuses that, naming
  the column.
- the digest depends on what is declared, not on the order of the columns, comments or layout of the file.

It does not look at rows; `ingest` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import SchemaError
from cloister.files import read_bytes
from cloister.policy import decode_toml

__all__ = ["MAX_EXACT_INTEGER", "Column", "ColumnType", "Role", "Schema", "load_schema"]

ColumnType = Literal["number", "integer", "category", "text", "boolean"]
Role = Literal["feature", "label", "id", "unit", "consent", "drop"]

MAX_EXACT_INTEGER: Final = 2**53
"""Beyond it, a whole number is not exact as float64."""

_MAX_FILE: Final = 4 << 20
_MAX_COLUMNS: Final = 10_000
_MAX_CATEGORIES: Final = 10_000
_MAX_NAME: Final = 200
_ONCE: Final[tuple[Role, ...]] = ("label", "unit", "consent")


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column as it is declared.

    Attributes:
        type: number (float64), integer (int64), category, text (UTF-8), boolean.
        role: feature, label; id (unique in each row); unit (whose row it is: a person, a device); consent
            (rows that do not say yes are left out); drop (never enters the vault).
        bounds: lowest and highest value, both allowed; numbers and integers only.
        categories: the values allowed; categories only.
        pseudonym: store a keyed pseudonym in the place of the value; id and unit only.
        missing: whether an empty field is refused or kept as missing.
    """

    type: ColumnType
    role: Role = "feature"
    bounds: tuple[float, float] | None = None
    categories: tuple[str, ...] | None = None
    pseudonym: bool = False
    missing: Literal["refuse", "allow"] = "refuse"

    @property
    def stored(self) -> bool:
        """Whether the column enters the vault."""
        return self.role not in ("drop", "consent")


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The columns by name, in the order in which they are stored.

    Raises:
        SchemaError: a declaration contradicts itself; it names the column.
    """

    columns: dict[str, Column]

    def __post_init__(self) -> None:
        for problem, name in _problems(self.columns):
            raise SchemaError(problem, column=name, fix="Correct the schema")

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of the columns that enter the vault."""
        return tuple(name for name, column in self.columns.items() if column.stored)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns a model may learn from."""
        return self.by_role("feature")

    @property
    def label(self) -> str | None:
        """Name of the column a model predicts, if one is declared."""
        return next(iter(self.by_role("label")), None)

    def by_role(self, role: Role) -> tuple[str, ...]:
        """Return the names of the columns with this role."""
        return tuple(name for name, column in self.columns.items() if column.role == role)

    def digest(self) -> bytes:
        """Return the SHA-256 of the canonical bytes, 32 bytes: the same wherever the same is declared."""
        return sha256(canonical_bytes(self))

    def require_complete(self) -> None:
        """Raise SchemaError where bounds or categories of a feature or label are still open."""
        for name, column in self.columns.items():
            if column.role not in ("feature", "label"):
                continue
            if column.type in ("number", "integer") and column.bounds is None:
                raise SchemaError(
                    "the column has no bounds",
                    column=name,
                    fix="Write bounds = [lowest, highest], from knowledge and not from the rows",
                )
            if column.type == "category" and column.categories is None:
                raise SchemaError(
                    "the column has no categories",
                    column=name,
                    fix='Write categories = ["...", "..."] with every value allowed',
                )


def load_schema(source: Path | bytes) -> Schema:
    """Read a schema from a TOML file or its bytes.

    Raises:
        InputError: not TOML, an unknown key (the nearest known one is named), a wrong type.
        SchemaError: a declaration contradicts itself.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, limit=_MAX_FILE, what="schema")
    return decode_toml(data, Schema, "schema")


def _problems(columns: dict[str, Column]) -> Iterator[tuple[str, str | None]]:
    if not 0 < len(columns) <= _MAX_COLUMNS:
        yield f"a schema must have 1 to {_MAX_COLUMNS} columns", None
    for name, column in columns.items():
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or name != name.strip():
            yield (
                f"a column's name must have 1 to {_MAX_NAME} printable characters and no space around it",
                None,
            )
        for problem in (*_role_problems(column), *_bounds_problems(column), *_category_problems(column)):
            yield problem, name
    for role in _ONCE:
        names = [name for name, column in columns.items() if column.role == role]
        if len(names) > 1:
            yield f"the role {role!r} is given to a second column", names[1]
    if not any(column.stored for column in columns.values()):
        yield "no column is stored: every one has the role drop or consent", None


def _role_problems(column: Column) -> Iterator[str]:
    if column.pseudonym and (column.role not in ("id", "unit") or column.type not in ("text", "integer")):
        yield "pseudonym = true is for text and integer columns with the role id or unit"
    if column.role == "consent" and column.type != "boolean":
        yield "a consent column must be of type boolean"
    if column.missing == "allow" and column.role in ("label", "id", "unit"):
        yield f"a column with the role {column.role} must not allow missing values"


def _bounds_problems(column: Column) -> Iterator[str]:
    if column.bounds is None:
        return
    low, high = column.bounds
    if column.type not in ("number", "integer") or column.pseudonym:
        yield "bounds are for number and integer columns that are stored as they are"
    elif not (math.isfinite(low) and math.isfinite(high) and low < high):
        yield "bounds must be two finite numbers, the lower one first"
    elif column.type == "integer" and not all(
        float(v).is_integer() and abs(v) <= MAX_EXACT_INTEGER for v in (low, high)
    ):
        yield "bounds of an integer column must be whole numbers within 2**53"


def _category_problems(column: Column) -> Iterator[str]:
    if column.categories is None:
        return
    if column.type != "category":
        yield "categories are for columns of type category"
    elif not 0 < len(column.categories) <= _MAX_CATEGORIES:
        yield f"there must be 1 to {_MAX_CATEGORIES} categories"
    elif len(set(column.categories)) < len(column.categories):
        yield "a category is listed twice"
    elif not all(0 < len(c) <= _MAX_NAME and c.isprintable() and c == c.strip() for c in column.categories):
        yield f"a category must have 1 to {_MAX_NAME} printable characters and no space around it"
