"""Many queries of one table, planned, measured and published by its owner alone.

    release = Release.plan(queries, declarations)     # refuses, calibrates; no row is looked at
    release.events                                    # what to charge for, before anything is shown
    measured = release.measure(table)                 # exact sums; private
    answers = release.publish(measured)               # noise, estimates, error bars

Invariants:

1. `plan` depends on declarations alone, so what a release costs is known, and charged, before rows are read;
2. noise is added once: a `Measured` is published once, since two noisy versions of one sum cost twice;
3. each query is one mechanism on one vector of integers, and one event. Without a delta the noise is discrete
   Laplace, calibrated by L1 sensitivity; with one it is discrete Gaussian, calibrated by L2.

One budget for many queries: epsilon is split by shares for Laplace noise. Gaussian queries are calibrated
together, with variances in inverse proportion to their shares, so that the accountant's epsilon of all of
them is the budget: that is less noise than splitting would need. The epsilon of a single answer is then what
it would cost alone, and these do not add up to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.accounting import (
    Event,
    Everyone,
    IntegerGaussian,
    IntegerLaplace,
    calibrate_noise,
    epsilon,
)
from cloister.privacy.statistics import central
from cloister.privacy.statistics.answer import Answer
from cloister.privacy.statistics.declared import Declarations
from cloister.privacy.statistics.moments import Moments
from cloister.privacy.statistics.noise import GaussianNoise, LaplaceNoise, Noise
from cloister.privacy.statistics.quantiles import Quantiles
from cloister.privacy.statistics.query import Query, QueryFile
from cloister.privacy.statistics.rows import Rows, Table

__all__ = [
    "Measured",
    "Planned",
    "Question",
    "Release",
    "StatisticOf",
    "check_rows",
    "exact_sums",
    "statistic_of",
]

GRID: Final = 2**20
"""Units of a full contribution: rounding a value moves it by 2**-21 of its bounds' half width."""

StatisticOf = Moments | Quantiles

Question = tuple[Query, int]
"""A query, and the units of a full contribution in which it is counted."""


def statistic_of(query: Query, declarations: Declarations) -> StatisticOf:
    """Return what a query asks of a table with these declarations. Raises InputError where it cannot."""
    kind = Quantiles if query.statistic == "quantiles" else Moments
    return kind.of(query, declarations)


def check_rows(delta: float, rows: int) -> None:
    """Raise InputError where delta is not below 1 / rows: publishing a row at random would pass."""
    if delta * rows >= 1.0:
        raise InputError(
            f"delta = {delta:g} is not below one in the number of rows",
            fix=f"Take less than {1.0 / rows:.1e}; a tenth of that is usual",
        )


@dataclass(frozen=True)
class Planned:
    """One query with everything that decides about its privacy.

    Args:
        query: what is asked.
        statistic: how rows become integers, and noisy integers an answer.
        grid: units of a full contribution.
        noise: what is added to each integer.
        epsilon: what it costs, alone.
        delta: likewise.
        event: what an accountant interprets.
    """

    query: Query
    statistic: StatisticOf
    grid: int
    noise: Noise
    epsilon: float
    delta: float
    event: Event


@dataclass
class Measured:
    """Exact sums over the rows, for one `publish`. Private: it has no representation and is not written."""

    vectors: list[NDArray[np.int64]] = field(repr=False)


@dataclass(frozen=True)
class Release:
    """Queries that are answered together. Made by `plan`.

    Args:
        declarations: of the table.
        items: the queries in their order.
        epsilon: of all together, at `delta`.
        delta: of all together.
    """

    declarations: Declarations
    items: tuple[Planned, ...]
    epsilon: float
    delta: float

    @classmethod
    def plan(cls, asked: Query | QueryFile, declarations: Declarations) -> Release:
        """Check queries against declarations and calibrate their noise.

        Args:
            asked: one query with an epsilon, or a file of them.
            declarations: of the table.

        Raises:
            InputError: a query does not fit the table, a budget is missing or out of range, or OpenDP is not
                installed.
        """
        file = asked if isinstance(asked, QueryFile) else QueryFile(queries=(asked,))
        central.require_opendp()
        statistics = [statistic_of(query, declarations) for query in file.queries]
        if file.epsilon is not None:
            delta = file.delta or 0.0
            check_rows(delta, declarations.rows)
            items = _plan_together(file.queries, statistics, file.epsilon, delta)
            return cls(declarations, tuple(items), file.epsilon, delta)
        items = []
        for query, statistic in zip(file.queries, statistics, strict=True):
            check_rows(query.delta or 0.0, declarations.rows)
            items += _plan_together((query,), [statistic], query.epsilon or 0.0, query.delta or 0.0)
        delta = math.fsum(item.delta for item in items)
        # epsilons of pure mechanisms add up at delta 0, and no bound is better; else the accountant says
        total = (
            epsilon([item.event for item in items], delta) if delta else math.fsum(i.epsilon for i in items)
        )
        return cls(declarations, tuple(items), total, delta)

    @property
    def events(self) -> tuple[Event, ...]:
        """What an accountant or a ledger charges for."""
        return tuple(item.event for item in self.items)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `measure` needs, the unit's among them."""
        names = [name for item in self.items for name in item.statistic.columns]
        unit = [self.declarations.unit] if self.declarations.unit is not None else []
        return tuple(dict.fromkeys([*unit, *names]))

    def measure(self, table: Table) -> Measured:
        """Return the exact sums.

        Args:
            table: the rows, with at least `columns`; as many as were declared.

        Raises:
            InputError: rows that break their declaration; see `Rows`.
        """
        return Measured(exact_sums(self.questions, table, self.declarations))

    @property
    def questions(self) -> tuple[Question, ...]:
        """What is counted: each query with its grid."""
        return tuple((item.query, item.grid) for item in self.items)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many integers each query's exact sums are."""
        return tuple(item.statistic.size for item in self.items)

    def publish(self, measured: Measured) -> tuple[Answer, ...]:
        """Return the answers, in the order of the queries. Raises InputError the second time."""
        if len(measured.vectors) != len(self.items):
            raise InputError(
                "these sums were published already", fix="A second answer costs again: measure and pay anew"
            )
        vectors, measured.vectors = measured.vectors, []
        answers = []
        for item, vector in zip(self.items, vectors, strict=True):
            noisy = _noisy(vector, item.noise)
            cells = item.statistic.answer(noisy, item.grid, item.noise, self.declarations.rows)
            answers.append(
                Answer(
                    query=item.query,
                    cells=cells,
                    confidence=item.query.confidence,
                    epsilon=item.epsilon,
                    delta=item.delta,
                    noise="discrete Laplace" if isinstance(item.noise, LaplaceNoise) else "discrete Gaussian",
                    protects=protects(item.query, self.declarations.unit),
                    events=(item.event,),
                )
            )
        return tuple(answers)


def exact_sums(
    questions: Sequence[Question], table: Table, declarations: Declarations
) -> list[NDArray[np.int64]]:
    """Return int64[size] for each query: the exact sums over a table. Private: nobody may see them.

    Args:
        questions: queries, each with its grid.
        table: the rows; as many as were declared.
        declarations: of the table.

    Raises:
        InputError: a query does not fit, or rows break their declaration.
    """
    sums = []
    for query, grid in questions:
        statistic = statistic_of(query, declarations)
        rows = Rows(table, declarations, statistic.columns, query.rows_per_unit)
        sums.append(statistic.vector(rows, grid))
    return sums


def protects(query: Query, unit: str | None) -> str:
    """Say whose presence an answer hides."""
    if unit is None:
        return "each row"
    kept = "the first row" if query.rows_per_unit == 1 else f"the first {query.rows_per_unit} rows"
    return f"each {unit} with all its rows; {kept} of each counted"


def _noisy(vector: NDArray[np.int64], noise: Noise) -> NDArray[np.int64]:
    if isinstance(noise, LaplaceNoise):
        return central.laplace(vector, noise.scale)
    return central.gaussian(vector, noise.sigma)


def _plan_together(
    queries: Sequence[Query], statistics: Sequence[StatisticOf], budget: float, delta: float
) -> list[Planned]:
    """Return queries that share a budget, each with its noise."""
    total = math.fsum(query.share for query in queries)
    shares = [query.share / total for query in queries]
    if delta == 0.0:
        return [
            _with_laplace(query, statistic, budget * share)
            for query, statistic, share in zip(queries, statistics, shares, strict=True)
        ]
    grids = [statistic.exact_grid(GRID) for statistic in statistics]

    def mechanisms(noise: float) -> list[IntegerGaussian]:
        return [
            gaussian_mechanism(statistic, grid, noise / math.sqrt(share))
            for statistic, grid, share in zip(statistics, grids, shares, strict=True)
        ]

    noise = calibrate_noise(budget, delta, lambda noise: [event_of(each) for each in mechanisms(noise)])
    planned = []
    for query, statistic, grid, mechanism in zip(queries, statistics, grids, mechanisms(noise), strict=True):
        event, drawn = event_of(mechanism), GaussianNoise(math.sqrt(mechanism.variance))
        planned.append(Planned(query, statistic, grid, drawn, epsilon([event], delta), delta, event))
    return planned


def _with_laplace(query: Query, statistic: StatisticOf, budget: float) -> Planned:
    grid = 1 if statistic.whole else statistic.exact_grid(GRID)
    sensitivity = statistic.sensitivity(grid, 1)
    scale, cost = central.laplace_scale(sensitivity, budget)
    mechanism = IntegerLaplace(
        scale=scale, sensitivity=float(sensitivity), coordinates=statistic.size, distance=0.0
    )
    return Planned(query, statistic, grid, LaplaceNoise(scale), cost, 0.0, event_of(mechanism))


def event_of(mechanism: IntegerGaussian | IntegerLaplace) -> Event:
    """Return the event of one release in which every row takes part."""
    return Event(mechanism=mechanism, sampler=Everyone(), relation="zero-out", count=1)


def gaussian_mechanism(statistic: StatisticOf, grid: int, noise: float) -> IntegerGaussian:
    """Return the mechanism whose standard deviation is `noise` times the statistic's L2 sensitivity."""
    sensitivity = float(statistic.sensitivity(grid, 2))
    return IntegerGaussian(
        variance=(noise * sensitivity) ** 2,
        sensitivity=sensitivity,
        coordinates=statistic.size,
        shares=1,
        distance=0.0,
    )
