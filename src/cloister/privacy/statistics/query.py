"""What is asked: one statistic of one table, and files that ask for many at once.

    epsilon = 1.0                 # one budget for the whole file, shared out; or epsilon in every query
    delta = 1e-6                  # with a delta the noise is Gaussian, without one it is Laplace

    [[queries]]
    statistic = "mean"
    column = "age"
    by = ["sex"]

    [[queries]]
    statistic = "contingency"
    columns = ["smoker", "sex"]
    share = 2                     # twice the budget of a query that does not say

A query is frozen and complete in itself; whether it fits a table is found out against the table's
declarations (`Release.plan`), and never against its rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from cloister.errors import InputError
from cloister.policy import decode_toml, load_toml

__all__ = ["MAX_EPSILON", "STATISTICS", "Query", "QueryFile", "Statistic", "load_queries"]

Statistic = Literal["count", "sum", "mean", "variance", "quantiles", "histogram", "contingency"]
STATISTICS: Final[tuple[str, ...]] = get_args(Statistic)

MAX_EPSILON: Final = 20.0
"""Beyond it the guarantee says nothing: e**20 is half a billion."""
MAX_BINS: Final = 4096
MAX_QUERIES: Final = 1000
_MAX_ROWS_PER_UNIT: Final = 10_000
_MAX_NAME: Final = 200
_WITH_BINS: Final = ("histogram", "quantiles")


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One question.

    Attributes:
        statistic: count (rows, or values that are not missing), sum, mean, variance (of the rows as they are,
            no n - 1), quantiles, histogram, contingency (counts over all combinations of columns).
        column: whose values; all statistics but contingency, which takes `columns`, and count, which may do
            without.
        columns: of a contingency table.
        by: one answer for every combination of the declared values of these columns.
        levels: of quantiles, each between 0 and 1; default the quartiles.
        bins: equal bins within the bounds; histogram and quantiles. None: ten, or one for each value of an
            integer with few; for quantiles as fine as is useful.
        edges: bins by their edges, in place of `bins`.
        rows_per_unit: where units have several rows, how many of each count: the first ones, in the order of
            the table. The noise grows with it.
        epsilon: what this question may cost; None inside a file with one budget.
        delta: the failure probability it may add: 0 for Laplace noise, above 0 for Gaussian.
        share: of a file's one budget, relative to the other queries.
        confidence: of the error bars, each on its own.
        name: what to call the answer.

    Raises:
        InputError: fields that do not fit each other, or are out of range.
    """

    statistic: Statistic
    column: str = ""
    columns: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    levels: tuple[float, ...] = ()
    bins: int | None = None
    edges: tuple[float, ...] = ()
    rows_per_unit: int = 1
    epsilon: float | None = None
    delta: float | None = None
    share: float = 1.0
    confidence: float = 0.95
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what no table can answer; which fields a statistic takes, then their ranges."""
        where = self.name or self.statistic
        self._check_columns(where)
        self._check_bins(where)
        if self.levels and self.statistic != "quantiles":
            raise InputError("levels are for quantiles", where=where, fix="Leave them out")
        if not all(0.0 < level < 1.0 for level in self.levels) or len(set(self.levels)) < len(self.levels):
            raise InputError(
                "levels must lie between 0 and 1, each once", where=where, fix="0.5 is the median"
            )
        if not 1 <= self.rows_per_unit <= _MAX_ROWS_PER_UNIT:
            raise InputError(
                f"rows_per_unit = {self.rows_per_unit}", where=where, fix=f"Take 1 to {_MAX_ROWS_PER_UNIT}"
            )
        if self.epsilon is not None:
            check_epsilon(self.epsilon, where)
        if self.delta is not None:
            check_delta(self.delta, where)
        if not 0.0 < self.share <= 1e6:
            raise InputError(f"share = {self.share:g}", where=where, fix="Take a positive number such as 1")
        if not 0.5 <= self.confidence <= 0.9999:
            raise InputError(
                f"confidence = {self.confidence:g}", where=where, fix="Take 0.5 to 0.9999, such as 0.95"
            )
        if len(self.name) > _MAX_NAME or not self.name.isprintable():
            raise InputError("the name of a query is too long or not printable", fix="Shorten it")

    def _check_columns(self, where: str) -> None:
        if self.statistic == "contingency":
            if self.column or len(self.columns) < 2:
                raise InputError(
                    "a contingency table has two or more columns",
                    where=where,
                    fix='Write columns = ["one", "other"]',
                )
        elif self.columns:
            raise InputError(
                f"{self.statistic} takes one column",
                where=where,
                fix='Write column = "NAME", and by for groups',
            )
        elif not self.column and self.statistic != "count":
            raise InputError(
                f"{self.statistic} of which column is not said",
                where=where,
                fix=f'Write `{self.statistic} COLUMN`, in a file column = "NAME"',
            )
        named = [*self.columns, *self.by, *([self.column] if self.statistic == "histogram" else [])]
        if len(set(named)) < len(named):
            raise InputError("a column is named twice", where=where, fix="Name each once")

    def _check_bins(self, where: str) -> None:
        if (self.bins is not None or self.edges) and self.statistic not in _WITH_BINS:
            raise InputError("bins are for histogram and quantiles", where=where, fix="Leave them out")
        if self.bins is not None and self.edges:
            raise InputError("bins and edges are given", where=where, fix="Give one of the two")
        if self.bins is not None and not 1 <= self.bins <= MAX_BINS:
            raise InputError(f"bins = {self.bins}", where=where, fix=f"Take 1 to {MAX_BINS}")
        if self.edges:
            rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
            if not (2 <= len(self.edges) <= MAX_BINS + 1 and rising and all(map(math.isfinite, self.edges))):
                raise InputError(
                    "edges must be two or more numbers that rise", where=where, fix="As in [0, 18, 65, 120]"
                )

    @property
    def title(self) -> str:
        """What the query is called: its name, or what it asks in words."""
        if self.name:
            return self.name
        of = f" of {self.column or ' and '.join(self.columns)}" if self.column or self.columns else ""
        return f"{self.statistic}{of}{' by ' if self.by else ''}{' and '.join(self.by)}"


class QueryFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Many questions, answered together.

    Attributes:
        queries: at least one.
        epsilon: one budget for all, shared out by `share`; None where every query has its own.
        delta: likewise.

    Raises:
        InputError: both or neither kind of budget.
    """

    queries: tuple[Query, ...]
    epsilon: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.queries) <= MAX_QUERIES:
            raise InputError(f"{len(self.queries)} queries", fix=f"Ask 1 to {MAX_QUERIES} at a time")
        own = [query for query in self.queries if query.epsilon is not None]
        if self.epsilon is None:
            if len(own) < len(self.queries):
                raise InputError(
                    "a query has no epsilon",
                    fix="Give epsilon once for the whole file, or in every query",
                )
            if self.delta is not None:
                raise InputError(
                    "delta is given for the file and epsilon for each query", fix="Give both in one place"
                )
            return
        check_epsilon(self.epsilon, "epsilon")
        check_delta(self.delta or 0.0, "delta")
        if own or any(query.delta is not None for query in self.queries):
            raise InputError(
                "epsilon or delta is given for the file and for a query",
                fix="Give both in one place; share = 2 doubles a query's part of the file's budget",
            )


def check_epsilon(epsilon: float, where: str) -> None:
    """Raise InputError unless epsilon is above 0 and at most 20."""
    if not 0.0 < epsilon <= MAX_EPSILON:
        raise InputError(
            f"epsilon = {epsilon:g} is out of range",
            where=where,
            fix=f"Take a number above 0, up to {MAX_EPSILON:g}",
        )


def check_delta(delta: float, where: str) -> None:
    """Raise InputError unless delta is 0 or a number from 1e-15 up to, but not including, 0.1."""
    if delta != 0.0 and not 1e-15 <= delta < 0.1:
        raise InputError(
            f"delta = {delta:g} is out of range",
            where=where,
            fix="Take 0, or a small number such as 1e-6, below one in the number of rows",
        )


def load_queries(source: Path | bytes) -> QueryFile:
    """Read a file of queries, or its bytes.

    Raises:
        InputError: not TOML, an unknown key (the nearest known one is named), a wrong type or range.
    """
    if isinstance(source, bytes):
        return decode_toml(source, QueryFile, "file of queries")
    return load_toml(source, QueryFile, "file of queries")
