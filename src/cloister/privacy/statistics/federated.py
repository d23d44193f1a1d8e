"""The same queries over several sites: what each of them adds, and what may be read from the sum.

    release = FederatedRelease.plan(queries, declarations, federation)   # alike at hub and sites
    vector = release.contribution(table)                                 # a site: exact sums plus its noise
    answers = release.answers(total, survivors=4, rows=900)              # hub: from the sum of m or more

A site makes one vector of integers, all queries one after the other, and adds to each integer a share of
discrete Gaussian noise. The secure sum (cloister.secagg) adds the vectors of the sites that stayed to the
end, at least m of them, in the ring of 32 bits. So nobody holds anything but the sum, which has the noise of
one trusted collector; with all n sites there, sqrt(n / counted shares) times that.

Invariants:

1. against the hub and outsiders m shares count, against the hub with c sites that tell it theirs m - max(c,
   1); each share has variance sigma**2 / (m - max(c, 1)), or sigma**2 / m where the adversary is "hub", and
   epsilon is the one of the adversary that the plan names. Both are reported;
2. the noise is on before the ring: what a site hands over is its noisy vector, never the exact one;
3. sums cannot leave the ring: the grid is chosen so that all rows with 8 standard deviations of all noise
   stay within it. Would one wrap around all the same, it would spoil the answer and reveal nothing more;
4. a unit that may have rows at k sites counts k times (`sites_per_unit`).

Laplace noise has no shares of this kind, so a federated query needs a delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, PlanError
from cloister.privacy.accounting import Event, IntegerGaussian, calibrate_noise, epsilon
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid, share_variance
from cloister.privacy.statistics.answer import Answer
from cloister.privacy.statistics.declared import Declarations
from cloister.privacy.statistics.noise import GaussianNoise
from cloister.privacy.statistics.query import Query, QueryFile
from cloister.privacy.statistics.release import (
    Question,
    StatisticOf,
    check_rows,
    event_of,
    exact_sums,
    protects,
    statistic_of,
)
from cloister.privacy.statistics.rows import Table
from cloister.types import RandomBytes

__all__ = ["FederatedRelease", "Federation", "one_budget"]

BITS: Final = 32
_GRID: Final = 2**16
_LEAST_GRID: Final = 64
_HEADROOM: Final = 8.0  # standard deviations of all noise together
_DISTANCE: Final = 2.0**-100
"""What is charged for the sampler; its own bound is far below, and refused where it is not."""

Adversary = Literal["hub", "colluders"]


class Federation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who adds up.

    Attributes:
        sites: n, how many vectors are in the sum at most.
        minimum: m, how many at least.
        colluders: c, sites that may tell the hub their noise.
        adversary: whom epsilon is against: the hub with colluders, or the hub alone.
        sites_per_unit: at how many sites one unit may have rows.

    Raises:
        PlanError: they contradict each other.
    """

    sites: int
    minimum: int
    colluders: int
    adversary: Adversary = "colluders"
    sites_per_unit: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.sites:
            raise PlanError(f"a minimum of {self.minimum} of {self.sites} sites", fix="Take 1 to all of them")
        if not 1 <= self.sites_per_unit <= self.sites:
            raise PlanError(
                f"sites_per_unit = {self.sites_per_unit}", fix=f"Take 1 to {self.sites}, the number of sites"
            )
        if self.counted("colluders") < 1:
            raise PlanError(
                f"of {self.minimum} noise shares none is left beside {max(self.colluders, 1)} colluding",
                fix='Add sites, lower the colluders, or write adversary = "hub"',
            )

    def counted(self, adversary: Adversary) -> int:
        """Return how many noise shares an adversary neither drew nor can see."""
        return self.minimum - (max(self.colluders, 1) if adversary == "colluders" else 0)


@dataclass(frozen=True)
class _Planned:
    """One query: its integers, grid, variance of the counted noise and of one share."""

    query: Query
    statistic: StatisticOf
    grid: int
    variance: float
    share: float


@dataclass(frozen=True)
class FederatedRelease:
    """Queries that several sites answer together. Made by `plan`.

    Args:
        declarations: of the rows of all sites together.
        federation: who adds up.
        items: the queries in their order.
        epsilon: of all together, at `delta`, against the federation's adversary.
        delta: of all together.
    """

    declarations: Declarations
    federation: Federation
    items: tuple[_Planned, ...]
    epsilon: float
    delta: float

    @classmethod
    def plan(
        cls, asked: Query | QueryFile, declarations: Declarations, federation: Federation
    ) -> FederatedRelease:
        """Check queries and calibrate their noise; the same at everybody who gives the same.

        Args:
            asked: one query with epsilon and delta, or a file with one budget.
            declarations: what all sites declare alike; `rows` of all sites together.
            federation: who adds up.

        Raises:
            InputError: a query does not fit, has no delta, or there are too many rows for the ring.
        """
        file = one_budget(asked)
        if file.epsilon is None:
            raise InputError(
                "the queries of a federated file share one budget",
                fix="Give epsilon and delta once, for the file",
            )
        if not file.delta:
            raise InputError(
                "a federated query has no delta",
                fix="Give --delta: the sites' shares of noise are Gaussian, which needs one, such as 1e-6",
            )
        check_rows(file.delta, declarations.rows)
        statistics = [statistic_of(query, declarations) for query in file.queries]
        items = _calibrated(file, file.epsilon, file.delta, statistics, declarations.rows, federation)
        return cls(declarations, federation, tuple(items), file.epsilon, file.delta)

    @property
    def size(self) -> int:
        """Integers in a site's vector."""
        return sum(item.statistic.size for item in self.items)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a site needs, the unit's among them."""
        names = [name for item in self.items for name in item.statistic.columns]
        unit = [self.declarations.unit] if self.declarations.unit is not None else []
        return tuple(dict.fromkeys([*unit, *names]))

    def events(self, adversary: Adversary | None = None) -> tuple[Event, ...]:
        """Return what to charge for one sum, against an adversary; None for the one the plan names."""
        chosen = adversary or self.federation.adversary
        named = self.federation.counted(self.federation.adversary)
        shares = self.federation.counted(chosen)
        return tuple(
            _event(item.statistic, item.grid, item.variance * shares / named, shares, self.federation)
            for item in self.items
        )

    def epsilon_against(self, adversary: Adversary) -> float:
        """Return the epsilon of one sum at `delta` against the hub, or against the hub with colluders."""
        return epsilon(self.events(adversary), self.delta)

    def contribution(
        self, table: Table, *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[np.uint32]:
        """Return uint32[size]: a site's exact sums plus its share of the noise, in the ring.

        Every call draws fresh noise and is charged again.

        Args:
            table: the site's rows, with at least `columns`.
            insecure_test_random: replaces the operating system's randomness, in tests.

        Raises:
            InputError: rows that break their declaration.
        """
        own = msgspec.structs.replace(self.declarations, rows=_length(table))
        return self.noised(exact_sums(self.questions, table, own), insecure_test_random=insecure_test_random)

    @property
    def questions(self) -> tuple[Question, ...]:
        """What is counted: each query with its grid."""
        return tuple((item.query, item.grid) for item in self.items)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many integers each query's exact sums are."""
        return tuple(item.statistic.size for item in self.items)

    def noised(
        self, sums: Sequence[NDArray[np.int64]], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[np.uint32]:
        """Return uint32[size]: exact sums, each of the size of its query, plus this site's share of noise.

        Raises:
            InputError: the noise cannot be drawn exactly enough, or the sums are of other queries.
        """
        if tuple(part.size for part in sums) != self.sizes:
            raise InputError("these are not the sums that these queries ask for")
        parts = []
        for item, part in zip(self.items, sums, strict=True):
            noise = DiscreteGaussian(item.share)
            if noise.distance > _DISTANCE:
                raise InputError("the noise cannot be drawn exactly enough", fix="Ask for less of it")
            noise.add_into(part, insecure_test_random=insecure_test_random)
            parts.append(part)
        ring: NDArray[np.uint32] = IntegerGrid(BITS, 1).to_ring(np.concatenate(parts))
        return ring

    def answers(self, total: NDArray[np.uint32], *, survivors: int, rows: int) -> tuple[Answer, ...]:
        """Turn the ring sum into answers, in the order of the queries.

        Args:
            total: uint32[size], the sum of the survivors' contributions.
            survivors: how many there are, m to n.
            rows: how many rows they have together.
        """
        if total.size != self.size or not self.federation.minimum <= survivors <= self.federation.sites:
            raise InputError("this is not a sum that these queries ask for")
        integers = IntegerGrid(BITS, 1).from_ring(np.ascontiguousarray(total, dtype=np.uint32))
        answers, start = [], 0
        for item, event in zip(self.items, self.events(), strict=True):
            part = integers[start : start + item.statistic.size]
            start += item.statistic.size
            noise = GaussianNoise(math.sqrt(survivors * item.share))
            answers.append(
                Answer(
                    query=item.query,
                    cells=item.statistic.answer(part, item.grid, noise, rows),
                    confidence=item.query.confidence,
                    epsilon=epsilon([event], self.delta),
                    delta=self.delta,
                    noise="discrete Gaussian",
                    protects=protects(item.query, self.declarations.unit),
                    events=(event,),
                )
            )
        return tuple(answers)


def one_budget(asked: Query | QueryFile) -> QueryFile:
    """Return a file with one budget: a file as it is, or one query with its own as the file's.

    Raises:
        InputError: the query has no epsilon.
    """
    if isinstance(asked, QueryFile):
        return asked
    if asked.epsilon is None:
        raise InputError("a query has no epsilon", where=asked.title, fix="Give one")
    plain = msgspec.structs.replace(asked, epsilon=None, delta=None)
    return QueryFile(queries=(plain,), epsilon=asked.epsilon, delta=asked.delta)


def _length(table: Table) -> int:
    return int(table.num_rows) if hasattr(table, "num_rows") else len(next(iter(table.values())))


def _event(statistic: StatisticOf, grid: int, variance: float, shares: int, federation: Federation) -> Event:
    return event_of(
        IntegerGaussian(
            variance=variance,
            sensitivity=_sensitivity(statistic, grid, federation),
            coordinates=statistic.size,
            shares=shares,
            distance=_DISTANCE,
        )
    )


def _sensitivity(statistic: StatisticOf, grid: int, federation: Federation) -> float:
    return float(statistic.sensitivity(grid, 2) * federation.sites_per_unit)


def _calibrated(
    file: QueryFile,
    budget: float,
    delta: float,
    statistics: Sequence[StatisticOf],
    rows: int,
    federation: Federation,
) -> list[_Planned]:
    """Return the queries with a grid that fits the ring and noise that fits the budget."""
    whole = math.fsum(query.share for query in file.queries)
    weights = [math.sqrt(whole / query.share) for query in file.queries]
    counted = federation.counted(federation.adversary)
    grids = [statistic.exact_grid(_GRID) for statistic in statistics]

    def variances(noise: float) -> list[float]:
        return [
            (noise * weight * _sensitivity(statistic, grid, federation)) ** 2
            for statistic, grid, weight in zip(statistics, grids, weights, strict=True)
        ]

    def events(noise: float) -> list[Event]:
        return [
            _event(statistic, grid, variance, counted, federation)
            for statistic, grid, variance in zip(statistics, grids, variances(noise), strict=True)
        ]

    noise = calibrate_noise(budget, delta, events)
    spread = math.sqrt(federation.sites / counted) * 1.01  # a coarser grid needs a little more noise
    fitting = [
        math.floor(
            (2 ** (BITS - 1) - 1)
            / (rows + _HEADROOM * spread * noise * weight * _sensitivity(statistic, 1, federation))
        )
        for statistic, weight in zip(statistics, weights, strict=True)
    ]
    if min(fitting) < _LEAST_GRID:
        raise InputError(
            f"{rows} rows with this noise do not fit a ring of {BITS} bits",
            fix="Ask with a larger epsilon, or of fewer rows",
        )
    if any(grid > most for grid, most in zip(grids, fitting, strict=True)):
        grids = [
            statistic.exact_grid(min(grid, most))
            for statistic, grid, most in zip(statistics, grids, fitting, strict=True)
        ]
        noise = calibrate_noise(budget, delta, events)
    planned = []
    for query, statistic, grid, variance in zip(
        file.queries, statistics, grids, variances(noise), strict=True
    ):
        share = share_variance(
            variance,
            minimum=federation.minimum,
            colluders=federation.colluders,
            adversary=federation.adversary,
        )
        planned.append(_Planned(query, statistic, grid, variance, share))
    return planned
