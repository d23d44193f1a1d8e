"""What is publicly known of a table before anybody looks into it: columns, bounds, categories, row count.

A private statistic may depend on the rows only through noise, so everything else it needs is declared: the
bounds a value is clamped to, the categories a group may have, whether values may be missing, and the column
that says whose row it is. The owner declares them from knowledge of the quantity. The row count is public.

Invariant: a `Declarations` object is valid; what contradicts itself is refused when it is made.
"""

from __future__ import annotations

import difflib
import math
from typing import Final, Literal

import msgspec

from cloister.errors import InputError

__all__ = ["Declarations", "Declared"]

MAX_EXACT: Final = 2**53


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One column.

    Attributes:
        kind: number (any real), integer, category (text of a known list), boolean.
        bounds: lowest and highest value; for numbers and integers. None where nobody declared them.
        categories: every text that is allowed; for categories.
        missing: whether values may be missing.

    Raises:
        InputError: bounds or categories that fit neither themselves nor the kind.
    """

    kind: Literal["number", "integer", "category", "boolean"]
    bounds: tuple[float, float] | None = None
    categories: tuple[str, ...] | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        if self.bounds is not None:
            low, high = self.bounds
            if self.kind not in ("number", "integer"):
                raise InputError(f"a {self.kind} has no bounds", fix="Leave them out")
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError("bounds must be two finite numbers, the lower one first")
            if max(abs(low), abs(high)) > 1e150:  # their squares are numbers too
                raise InputError(
                    "bounds beyond 1e150 cannot be used", fix="Declare the column in another unit"
                )
            whole = float(low).is_integer() and float(high).is_integer()
            if self.kind == "integer" and not (whole and max(abs(low), abs(high)) <= MAX_EXACT):
                raise InputError("bounds of an integer must be whole numbers within 2**53")
        if self.categories is not None:
            if self.kind != "category":
                raise InputError(f"a {self.kind} has no categories", fix="Leave them out")
            if not self.categories or len(set(self.categories)) < len(self.categories):
                raise InputError("categories are none, or one is listed twice")


class Declarations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The columns that statistics may be asked of, and two facts about the rows.

    Attributes:
        columns: by name; identifiers and free text are not among them.
        rows: how many rows there are; public.
        unit: the column that says whose row it is. Where there is one, privacy is that of a unit with all its
            rows, and no statistic can leave it out of account.

    Raises:
        InputError: no column, a negative row count, or a unit that is itself a column to be asked of.
    """

    columns: dict[str, Declared]
    rows: int
    unit: str | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError("no column can be asked of", fix="Declare a number, category or boolean")
        if self.rows < 0:
            raise InputError("a table has no negative number of rows")
        if self.unit in self.columns:
            raise InputError(
                "the unit's column is also declared as one to be asked of",
                where=str(self.unit),
                fix="A unit is an identifier: leave it out of the columns",
            )

    def column(self, name: str) -> Declared:
        """Return a column. Raises InputError, naming the nearest one, where there is none."""
        found = self.columns.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self.columns, n=1)
            known = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(self.columns)}"
            raise InputError(f"no statistic can be asked of a column {name!r}", fix=known)
        return found

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the bounds of a number, integer or boolean (0 and 1).

        Raises:
            InputError: the column is a category, or nobody declared its bounds.
        """
        column = self.column(name)
        if column.kind == "boolean":
            return (0.0, 1.0)
        if column.kind == "category":
            raise InputError(
                f"column {name!r} is a category and no number", fix="Ask for a histogram, or group --by it"
            )
        if column.bounds is None:
            raise InputError(
                f"column {name!r} has no bounds",
                fix="Declare bounds = [lowest, highest] in the schema, from knowledge and not from the rows",
            )
        return (float(column.bounds[0]), float(column.bounds[1]))
