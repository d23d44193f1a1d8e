"""Counts, sums, means and variances as sums of integers, and what noisy sums say about them.

Every kept row adds a few integers to one cell: up to K in absolute value each, where K is the grid. With c =
(x - middle) / half in [-1, 1] for a value clamped to its bounds, rounded once for each row:

    part       adds                    needed by
    count      K                       count, histogram, contingency; the others where n is private
    centred    K c                     mean, variance; sum where n is public
    plain      K x / max |bound|       sum where n is private
    square     K (2 c**2 - 1)          variance

Integers are added exactly, so there is no floating-point sum whose rounding could depend on a row. Replacing
the rows of one unit, at most k, by nothing changes one cell a row, by at most K in each part: at most k K
parts in L1, k K sqrt(parts) in L2. That is all the privacy proof needs; tests find no table that beats it.

n is public where every row counts: no groups, no missing values, no units. It then costs nothing.

Error bars. All parts of a cell get independent draws of the same noise. A sum's bar is that of one draw. A
mean is a ratio of two noisy sums, S / N: the bar is the set of all m that both could have (Fieller 1954),
{m : |S - m N| <= t(m)}, where t(m) bounds the noise of S - m N. A variance is E - A**2 with two such ratios,
each at half of the failure probability, so its bar is wider than it had to be. Bars are cut at what bounds
make possible. Rounding of values is added where it is not nil.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cloister.privacy.statistics.answer import Cell
from cloister.privacy.statistics.axes import (
    Axis,
    cells_of,
    count_cells,
    group_axis,
    histogram_axis,
)
from cloister.privacy.statistics.declared import Declarations
from cloister.privacy.statistics.noise import Noise
from cloister.privacy.statistics.query import Query
from cloister.privacy.statistics.rows import Rows

__all__ = ["MAX_CELLS", "Moments"]

MAX_CELLS: Final = 100_000
_BISECTIONS: Final = 60
Part = Literal["count", "centred", "plain", "square"]


@dataclass(frozen=True)
class Moments:
    """One query of sums over the cells of some axes. Made by `of`.

    Args:
        query: what is asked.
        declarations: of the table.
        axes: what the cells are.
        parts: what each row adds to its cell.
        public_count: whether every row counts, so that n is the public row count.
    """

    query: Query
    declarations: Declarations
    axes: tuple[Axis, ...]
    parts: tuple[Part, ...]
    public_count: bool

    @classmethod
    def of(cls, query: Query, declarations: Declarations) -> Moments:
        """Return the statistic that `query` asks of such a table; its rows are not looked at.

        Raises:
            InputError: a column is unknown, has no bounds or categories, or there are too many cells.
        """
        axes = tuple(group_axis(declarations, name) for name in (*query.by, *query.columns))
        column = declarations.column(query.column) if query.column else None
        private = bool(axes) or declarations.unit is not None or (column is not None and column.missing)
        parts: tuple[Part, ...] = ("count",)
        if query.statistic == "histogram":
            axes = (*axes, histogram_axis(declarations, query.column, query.bins, query.edges))
        elif query.statistic == "sum":
            parts = ("plain",) if private else ("centred",)
        elif query.statistic == "mean":
            parts = ("centred", "count") if private else ("centred",)
        elif query.statistic == "variance":
            parts = ("centred", "square", "count") if private else ("centred", "square")
        if query.statistic in ("sum", "mean", "variance"):
            declarations.bounds(query.column)
        count_cells(axes, MAX_CELLS)
        return cls(query, declarations, axes, parts, not private)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns whose values are needed."""
        own = [self.query.column] if self.query.column else []
        return tuple(dict.fromkeys([*own, *(axis.column for axis in self.axes)]))

    @property
    def size(self) -> int:
        """Integers in the vector."""
        return math.prod(len(axis.keys) for axis in self.axes) * len(self.parts)

    @property
    def whole(self) -> bool:
        """Whether the integers are counts, for which a grid of 1 is exact."""
        return self.parts == ("count",)

    def sensitivity(self, grid: int, norm: Literal[1, 2]) -> float:
        """Return the most that a unit changes the vector, in L1 or L2 norm, in units of the grid."""
        parts = len(self.parts)
        return self.query.rows_per_unit * grid * (parts if norm == 1 else math.sqrt(parts))

    def exact_grid(self, grid: int) -> int:
        """Return the greatest grid up to `grid` on which whole numbers need no rounding, else `grid`."""
        step = self._step()
        return grid - grid % step if step <= grid else grid

    def vector(self, rows: Rows, grid: int) -> NDArray[np.int64]:
        """Return int64[size]: the exact sums over `rows`, before any noise. Private: nobody may see it."""
        cells = cells_of(self.axes, rows)
        counted = cells >= 0
        if self.query.column and self.query.statistic != "histogram":  # which has a cell for missing values
            counted &= ~rows.missing(self.query.column)
        out = np.zeros((self.size // len(self.parts), len(self.parts)), dtype=np.int64)
        for number, part in enumerate(self.parts):
            np.add.at(out[:, number], cells[counted], self._contributions(part, rows, grid)[counted])
        return out.reshape(-1)

    def answer(self, noisy: NDArray[np.int64], grid: int, noise: Noise, rows: int) -> tuple[Cell, ...]:
        """Turn noisy sums into estimates with error bars; post-processing, which costs nothing.

        Args:
            noisy: int64[size], what `vector` returned plus noise.
            grid: the same as there.
            noise: what was added to each integer.
            rows: the public row count of whoever is in the sums.
        """
        keys = [axis.keys for axis in self.axes]
        names = [axis.column for axis in self.axes]
        table = noisy.reshape(-1, len(self.parts)) / grid
        estimate = _Estimate(self, grid, noise, rows)
        cells = []
        for index, sums in enumerate(table):
            at = np.unravel_index(index, [len(own) for own in keys]) if keys else ()
            group = {name: own[int(i)] for name, own, i in zip(names, keys, at, strict=True)}
            value, low, high = estimate(dict(zip(self.parts, sums.tolist(), strict=True)))
            cells.append(Cell(group=group, value=value, low=low, high=high))
        return tuple(cells)

    # --- inside -----------------------------------------------------------------------------------

    def _contributions(self, part: Part, rows: Rows, grid: int) -> NDArray[np.int64]:
        """Return int64[n], each within [-grid, grid]."""
        if part == "count":
            return np.full(rows.count, grid, dtype=np.int64)
        values = rows.numbers(self.query.column)
        values = np.where(np.isnan(values), 0.0, values)
        middle, half = self._scale()
        if part == "plain":
            real = values / self._largest()
        else:
            real = (values - middle) / half
            real = 2.0 * np.square(real) - 1.0 if part == "square" else real
        units: NDArray[np.int64] = np.clip(np.rint(real * grid), -grid, grid).astype(np.int64)
        return units

    def _scale(self) -> tuple[float, float]:
        low, high = self.declarations.bounds(self.query.column)
        return (low / 2 + high / 2, high / 2 - low / 2)

    def _largest(self) -> float:
        low, high = self.declarations.bounds(self.query.column)
        return max(abs(low), abs(high))

    def _step(self) -> int:
        if self.whole or self.declarations.column(self.query.column).kind == "number":
            return 1
        low, high = self.declarations.bounds(self.query.column)
        return int(self._largest() if self.parts == ("plain",) else high - low)

    def rounding(self, grid: int, part: Part) -> float:
        """Return by how much rounding to the grid may change one row's part, in units of the part."""
        exact = part == "count" or (part != "square" and self._step() > 1 and grid % self._step() == 0)
        return 0.0 if exact else 0.5 / grid


@dataclass(frozen=True)
class _Estimate:
    """From the noisy sums of one cell, divided by the grid, to (value, low, high)."""

    statistic: Moments
    grid: int
    noise: Noise
    rows: int

    def __call__(self, sums: Mapping[str, float]) -> tuple[float, float, float]:
        match self.statistic.query.statistic:
            case "sum":
                return self._sum(sums)
            case "mean":
                return self._mean(sums)
            case "variance":
                return self._variance(sums)
            case _:
                return self._count(sums["count"])

    @property
    def _beta(self) -> float:
        """What may go wrong on each side."""
        return (1.0 - self.statistic.query.confidence) / 2.0

    def _bar(self, beta: float, *weights: float) -> float:
        """Return the bound on a weighted sum of draws, in the unit of the sums."""
        return self.noise.bound(tuple((weight, 1) for weight in weights), beta) / self.grid

    def _count(self, count: float) -> tuple[float, float, float]:
        bar = self._bar(self._beta, 1.0)
        return _cut(count, count - bar, count + bar, 0.0, float(self.rows))

    def _sum(self, sums: Mapping[str, float]) -> tuple[float, float, float]:
        statistic, rows = self.statistic, self.rows
        low, high = statistic.declarations.bounds(statistic.query.column)
        part: Part = statistic.parts[0]
        middle, half = statistic._scale()
        unit, start = (half, rows * middle) if part == "centred" else (statistic._largest(), 0.0)
        bar = self._bar(self._beta, 1.0) + rows * statistic.rounding(self.grid, part)
        value = start + unit * sums[part]
        least = rows * (low if statistic.public_count else min(low, 0.0))
        most = rows * (high if statistic.public_count else max(high, 0.0))
        return _cut(value, value - unit * bar, value + unit * bar, least, most)

    def _mean(self, sums: Mapping[str, float]) -> tuple[float, float, float]:
        middle, half = self.statistic._scale()
        value, low, high = self._ratio(sums, "centred", self._beta)
        return (middle + half * value, middle + half * low, middle + half * high)

    def _variance(self, sums: Mapping[str, float]) -> tuple[float, float, float]:
        _, half = self.statistic._scale()
        a, a_low, a_high = self._ratio(sums, "centred", self._beta / 2.0)
        s, s_low, s_high = self._ratio(sums, "square", self._beta / 2.0)
        least = 0.0 if a_low <= 0.0 <= a_high else min(a_low**2, a_high**2)
        value, low, high = (
            (1 + s) / 2 - a * a,
            (1 + s_low) / 2 - max(a_low**2, a_high**2),
            (1 + s_high) / 2 - least,
        )
        cut = _cut(value, low, high, 0.0, 1.0)
        return (cut[0] * half**2, cut[1] * half**2, cut[2] * half**2)

    def _ratio(self, sums: Mapping[str, float], part: Part, beta: float) -> tuple[float, float, float]:
        """Return (S / n, low, high), all within [-1, 1]."""
        total, rounding = sums[part], self.statistic.rounding(self.grid, part)
        if self.statistic.public_count:
            bar = self._bar(beta, 1.0) + self.rows * rounding
            known = max(self.rows, 1)
            return _cut(total / known, (total - bar) / known, (total + bar) / known, -1.0, 1.0)
        count = sums["count"]
        if count <= self._bar(beta, 1.0):  # the group may be empty: nothing is known of its mean
            return (max(-1.0, min(1.0, total / max(count, 1.0))), -1.0, 1.0)
        most = count + self._bar(beta, 1.0)  # rows, at most
        steps = 16
        bars = [self._bar(beta, 1.0, at / steps) + most * rounding for at in range(steps + 1)]

        def bar_at(m: float) -> float:
            """Bound the noise of S - m N: linear between a few points of a convex function, so not less."""
            at = min(int(abs(m) * steps), steps - 1)
            return bars[at] + (abs(m) * steps - at) * (bars[at + 1] - bars[at])

        low = _crossing(lambda m: total - m * count - bar_at(m))
        high = -_crossing(lambda m: -total - m * count - bar_at(m))
        return _cut(total / count, low, high, -1.0, 1.0)


def _crossing(falling: Callable[[float], float]) -> float:
    """Return where a falling function crosses 0 in [-1, 1], rounded down; an end where it does not."""
    low, high = -1.0, 1.0
    if falling(low) <= 0.0:
        return low
    if falling(high) >= 0.0:
        return high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
    return low


def _cut(value: float, low: float, high: float, least: float, most: float) -> tuple[float, float, float]:
    """Return an estimate and its bar, cut at what is possible; the bar holds the estimate."""
    value = min(max(value, least), most)
    return (value, min(max(low, least), value), max(min(high, most), value))
