"""Axes of an answer: which cells there are, by declaration, and which of them a row falls into.

Invariant: the cells of an axis depend on what is declared and asked, never on the rows. A category that no
row has gets its cell and its noise all the same, and a value that nobody declared is counted nowhere: a cell
that came into being because a row has it would tell that the row is there.

Bins of integers hold whole numbers from first to last; bins of numbers go from one edge up to, but not
including, the next, except that the last one includes its upper edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.statistics.declared import Declarations
from cloister.privacy.statistics.rows import Rows

__all__ = ["Axis", "Key", "bin_axis", "group_axis", "histogram_axis"]

Key = str | int | bool | tuple[float, float] | None
"""What a cell is called: a category, a whole number, true or false, a bin's two ends; None where the value is
missing."""

MAX_KEYS: Final = 1000
"""Most whole numbers that a group-by enumerates."""
_DEFAULT_BINS: Final = 10
_FEW: Final = 50  # an integer with at most so many values gets one cell for each


@dataclass(frozen=True)
class Axis:
    """One dimension of cells.

    Args:
        column: its name.
        keys: one for each cell.
        edges: float64[len], rising, for columns that are binned; None for columns that are enumerated.
        missing: whether the last cell is that of missing values.
    """

    column: str
    keys: tuple[Key, ...]
    edges: tuple[float, ...] | None
    missing: bool

    def cells(self, rows: Rows) -> NDArray[np.int64]:
        """Return int64[n]: each row's cell, -1 for none."""
        if self.edges is None:
            found = rows.codes(self.column)
        else:
            values, edges = rows.numbers(self.column), np.asarray(self.edges)
            found = np.searchsorted(edges, values, side="right").astype(np.int64) - 1
            found[values == edges[-1]] = len(edges) - 2
            found[~((values >= edges[0]) & (values <= edges[-1]))] = -1  # NaN as well
        if self.missing:
            found = np.where(rows.missing(self.column), len(self.keys) - 1, found)
        return found


def group_axis(declarations: Declarations, name: str) -> Axis:
    """Return the axis of a column to group by: its declared values.

    Raises:
        InputError: unknown column, or one whose values cannot be enumerated from its declaration.
    """
    column = declarations.column(name)
    if column.kind == "category":
        if column.categories is None:
            raise InputError(
                f"column {name!r} has no categories",
                fix="Declare every value allowed in the schema; groups are never taken from the rows",
            )
        return _enumerated(name, column.categories, column.missing)
    if column.kind == "boolean":
        return _enumerated(name, (False, True), column.missing)
    low, high = declarations.bounds(name)
    if column.kind == "number" or high - low >= MAX_KEYS:
        raise InputError(
            f"column {name!r} has too many values to group by",
            fix="Group by a category, a boolean, or an integer with few values; or ask for its histogram",
        )
    return _enumerated(name, tuple(range(int(low), int(high) + 1)), column.missing)


def histogram_axis(declarations: Declarations, name: str, bins: int | None, edges: tuple[float, ...]) -> Axis:
    """Return the axis of a histogram: categories, whole numbers, or bins.

    Raises:
        InputError: unknown column, no bounds, or bins of something that has none.
    """
    column = declarations.column(name)
    if column.kind in ("category", "boolean"):
        if bins is not None or edges:
            raise InputError(f"column {name!r} has no bins: it is a {column.kind}", fix="Leave bins out")
        return group_axis(declarations, name)
    low, high = declarations.bounds(name)
    if column.kind == "integer" and bins is None and not edges and high - low < _FEW:
        return group_axis(declarations, name)
    return bin_axis(declarations, name, bins or _DEFAULT_BINS, edges, missing=column.missing)


def bin_axis(
    declarations: Declarations, name: str, bins: int, edges: tuple[float, ...], *, missing: bool
) -> Axis:
    """Return bins of a number or integer within its bounds; of an integer at most one for each value.

    Args:
        declarations: of the table.
        name: the column.
        bins: how many, all of about one width, unless edges are given.
        edges: the bins' edges, or empty.
        missing: whether missing values get a cell of their own.

    Raises:
        InputError: no bounds, or edges outside them.
    """
    low, high = declarations.bounds(name)
    whole = declarations.column(name).kind != "number"
    end = high + 1 if whole else high  # one past the last whole number
    if edges:
        if edges[0] < low or edges[-1] > end:
            raise InputError(
                f"edges of {name!r} lie outside its bounds", fix=f"Take edges from {low:g} to {high:g}"
            )
        chosen = np.asarray(edges, dtype=np.float64)
    else:
        chosen = np.linspace(low, end, bins + 1)
        chosen[-1] = end
    if whole:
        chosen = np.ceil(chosen)
        if edges and edges[-1] == high:
            chosen[-1] = end  # the last bin includes its upper edge
    chosen = np.unique(chosen)
    if len(chosen) < 2:
        raise InputError(f"edges of {name!r} hold no value between them", fix="Spread them")
    pairs = zip(chosen[:-1].tolist(), chosen[1:].tolist(), strict=True)
    keys: tuple[Key, ...] = tuple((a, b - 1) if whole else (a, b) for a, b in pairs)
    if whole:
        chosen = chosen - 0.5  # so that no value lies on an edge
    return Axis(name, (*keys, None) if missing else keys, tuple(chosen.tolist()), missing)


def _enumerated(name: str, keys: tuple[Key, ...], missing: bool) -> Axis:
    return Axis(name, (*keys, None) if missing else keys, None, missing)


def count_cells(axes: tuple[Axis, ...], most: int) -> int:
    """Return how many cells axes span. Raises InputError above `most`."""
    cells = math.prod(len(axis.keys) for axis in axes)
    if cells > most:
        raise InputError(
            f"the answer would have {cells} cells",
            fix=f"At most {most} are possible; group by fewer columns, or ask for fewer bins",
        )
    return cells


def cells_of(axes: tuple[Axis, ...], rows: Rows) -> NDArray[np.int64]:
    """Return int64[n]: each row's cell among all combinations, the last axis running fastest; -1 for none."""
    joint = np.zeros(rows.count, dtype=np.int64)
    nowhere = np.zeros(rows.count, dtype=np.bool_)
    for axis in axes:
        own = axis.cells(rows)
        nowhere |= own < 0
        joint = joint * len(axis.keys) + own
    joint[nowhere] = -1
    return joint
