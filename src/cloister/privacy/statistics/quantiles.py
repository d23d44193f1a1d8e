"""Quantiles from a tree of noisy counts over declared bins.

The bounds are cut into bins, the bins grouped by up to 16, these groups grouped again, until at most 16 are
left. A kept row adds K to its bin and to each group that holds it: h integers, one a level, so that a unit of
at most k rows moves the vector by at most k K h in L1 and k K sqrt(h) in L2. From the noisy counts follows
the number of rows below any edge, by the shortest way through the tree: from the left or the right end of
every group. All levels of quantiles come from the one tree, at no further cost.

The q-quantile is the least value x with at least q N rows at or below x. Its bin is that between the last
edge with fewer than q N rows below and the first edge with at least as many.

Error bars, in values. Let T(e) = (rows below e) - q N, whose noise is a known weighted sum of draws, at most
t(e) on either side but for beta each. Scanning from the left, the lower end is the last edge before the first
one with T(e) + t(e) >= 0. It is too high only if T(e*) + t(e*) < 0 at e*, the first edge with truly q N rows
below; e* does not depend on the noise, so that happens with probability at most beta, whatever the number of
edges. The upper end likewise, from the right. No assumption on the rows is made: many equal values, gaps and
empty groups are covered. (The score that a private selection maximises, as in OpenDP's private quantile,
prefers a neighbour of the median where many rows share one value; and it gives no bar.)

A quantile is no finer than a bin; the bar holds the whole of its bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.statistics.answer import Cell
from cloister.privacy.statistics.axes import Axis, bin_axis, cells_of, count_cells, group_axis
from cloister.privacy.statistics.declared import Declarations
from cloister.privacy.statistics.moments import MAX_CELLS
from cloister.privacy.statistics.noise import Noise
from cloister.privacy.statistics.query import MAX_BINS, Query
from cloister.privacy.statistics.rows import Rows

__all__ = ["Quantiles"]

_BRANCHES: Final = 16  # more make levels fewer and ways longer; 8 to 16 are best for 100 to 4,000 bins
_NUMBER_BINS: Final = 1024
_QUARTILES: Final = (0.25, 0.5, 0.75)

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Quantiles:
    """One query of quantiles. Made by `of`.

    Args:
        query: what is asked.
        declarations: of the table.
        axes: the groups.
        bins: the bins, without a cell for missing values.
        branches: children of each node of the tree.
        height: levels of the tree, the bins' included.
    """

    query: Query
    declarations: Declarations
    axes: tuple[Axis, ...]
    bins: Axis
    branches: int
    height: int

    @classmethod
    def of(cls, query: Query, declarations: Declarations) -> Quantiles:
        """Return the statistic that `query` asks of such a table; its rows are not looked at.

        Raises:
            InputError: a column is unknown, has no bounds or categories, or there are too many cells.
        """
        axes = tuple(group_axis(declarations, name) for name in query.by)
        low, high = declarations.bounds(query.column)
        fine = _NUMBER_BINS if declarations.column(query.column).kind == "number" else int(high - low) + 1
        bins = bin_axis(
            declarations, query.column, query.bins or min(fine, MAX_BINS), query.edges, missing=False
        )
        if query.edges and (query.edges[0] > low or query.edges[-1] < high):
            raise InputError(
                "edges of quantiles must reach from bound to bound",
                where=query.column,
                fix=f"Begin them at {low:g} and end them at {high:g}",
            )
        height = max(1, math.ceil(math.log(len(bins.keys), _BRANCHES) - 1e-9))
        branches = max(2, math.ceil(len(bins.keys) ** (1 / height) - 1e-9))
        statistic = cls(query, declarations, axes, bins, branches, height)
        count_cells(axes, MAX_CELLS // statistic.nodes)
        return statistic

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns whose values are needed."""
        return tuple(dict.fromkeys([self.query.column, *(axis.column for axis in self.axes)]))

    @property
    def levels(self) -> tuple[int, ...]:
        """Nodes of each level of the tree, from the top, 2 to 16 of them, to the bins."""
        count, sizes = len(self.bins.keys), []
        for _ in range(self.height):
            sizes.append(count)
            count = -(-count // self.branches)
        return tuple(reversed(sizes))

    @property
    def nodes(self) -> int:
        """Nodes of one tree."""
        return sum(self.levels)

    @property
    def size(self) -> int:
        """Integers in the vector: one tree for each group."""
        return math.prod(len(axis.keys) for axis in self.axes) * self.nodes

    @property
    def whole(self) -> bool:
        """False: ways through the tree add many draws, and a fine grid keeps their half units small."""
        return False

    def sensitivity(self, grid: int, norm: Literal[1, 2]) -> float:
        """Return the most that a unit changes the vector, in L1 or L2 norm, in units of the grid."""
        return self.query.rows_per_unit * grid * (self.height if norm == 1 else math.sqrt(self.height))

    def exact_grid(self, grid: int) -> int:
        """Return `grid`: counts need no rounding on any."""
        return grid

    def vector(self, rows: Rows, grid: int) -> NDArray[np.int64]:
        """Return int64[size]: exact counts of all nodes, before any noise. Private: nobody may see it."""
        groups, leaves = cells_of(self.axes, rows), self.bins.cells(rows)
        counted = (groups >= 0) & (leaves >= 0)
        groups, leaves = groups[counted], leaves[counted]
        out = np.zeros((self.size // self.nodes, self.nodes), dtype=np.int64)
        start = 0
        for depth, width in enumerate(self.levels):
            node = leaves // self.branches ** (self.height - 1 - depth)
            np.add.at(out, (groups, start + node), grid)
            start += width
        return out.reshape(-1)

    def answer(self, noisy: NDArray[np.int64], grid: int, noise: Noise, rows: int) -> tuple[Cell, ...]:
        """Turn noisy counts into quantiles with error bars; post-processing, which costs nothing.

        Args:
            noisy: int64[size], what `vector` returned plus noise.
            grid: the same as there.
            noise: what was added to each integer.
            rows: the public row count of whoever is in the counts; not needed.
        """
        keys = [axis.keys for axis in self.axes]
        names = [axis.column for axis in self.axes]
        cells = []
        for index, tree in enumerate(noisy.reshape(-1, self.nodes) / grid):
            at = np.unravel_index(index, [len(own) for own in keys]) if keys else ()
            group = {name: own[int(i)] for name, own, i in zip(names, keys, at, strict=True)}
            below, draws = self._below(tree)
            total = float(tree[: self.levels[0]].sum())
            for level in self.query.levels or _QUARTILES:
                excess = below - level * total
                value, low, high = self._quantile(excess, draws, level, grid, noise)
                cells.append(Cell(group=group, level=level, value=value, low=low, high=high))
        return tuple(cells)

    # --- inside -----------------------------------------------------------------------------------

    def _below(self, tree: Counts) -> tuple[Counts, NDArray[np.int64]]:
        """Return rows below each edge, float64[b + 1], and int64[b + 1, 2]: draws in it, of the top level and
        of all others."""
        parts = np.split(tree, np.cumsum(self.levels)[:-1])
        sums = np.concatenate([[0.0], np.cumsum(parts[0])])
        draws = np.stack([np.arange(len(sums)), np.zeros(len(sums))], axis=1).astype(np.int64)
        for children in parts[1:]:
            edges = np.arange(len(children) + 1)
            left, ends = edges // self.branches, np.concatenate([[0.0], np.cumsum(children)])
            right = np.minimum(left + 1, len(sums) - 1)
            starts, stops = left * self.branches, np.minimum(right * self.branches, len(children))
            from_left, from_right = edges - starts, stops - edges
            shorter = from_right + draws[right].sum(axis=1) < from_left + draws[left].sum(axis=1)
            base = np.where(shorter, right, left)
            own = np.where(shorter, from_right, from_left)
            sums = sums[base] + ends[edges] - ends[np.where(shorter, stops, starts)]
            draws = draws[base] + np.stack([np.zeros_like(own), own], axis=1)
        return sums, draws

    def _quantile(
        self, excess: Counts, draws: NDArray[np.int64], level: float, grid: int, noise: Noise
    ) -> tuple[float, float, float]:
        """Return (value, low, high) from T(e) at every edge."""
        beta, top = (1.0 - self.query.confidence) / 2.0, self.levels[0]
        kinds, which = np.unique(draws, axis=0, return_inverse=True)
        bounds = [
            noise.bound(((1.0 - level, int(i)), (level, top - int(i)), (1.0, int(m))), beta) for i, m in kinds
        ]
        inner = slice(1, len(excess) - 1)  # nothing is below the first edge, and everything below the last
        real, bar = excess[inner], (np.asarray(bounds)[which.reshape(-1)] / grid)[inner]
        reached = np.flatnonzero(real + bar >= 0.0)
        not_yet = np.flatnonzero(real - bar < 0.0)
        first = int(reached[0]) if len(reached) else len(real)
        last = int(not_yet[-1]) + 1 if len(not_yet) else 0
        low, high = self._ends(min(first, last))[0], self._ends(max(first, last))[1]
        rising = np.maximum.accumulate(real)
        value = self._within(int(np.searchsorted(rising, 0.0, side="left")), excess)
        return (min(max(value, low), high), low, high)

    def _ends(self, index: int) -> tuple[float, float]:
        return cast("tuple[float, float]", self.bins.keys[index])

    def _within(self, index: int, excess: Counts) -> float:
        """Return where in its bin the quantile is, as if the bin's rows were spread evenly."""
        low, high = self._ends(index)
        before, after = float(excess[index]), float(excess[index + 1])
        part = -before / (after - before) if before < 0.0 <= after else 0.5
        value = low + (high - low) * min(max(part, 0.0), 1.0)
        return value if self.declarations.column(self.query.column).kind == "number" else float(round(value))
