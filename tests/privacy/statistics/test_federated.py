"""Several sites, one sum: what each adds, what it costs, and that the sum is one collector's answer."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.privacy.statistics.tables import declarations, table
from tests.privacy.statistics.test_quantiles import true_quantile

from cloister.errors import InputError, PlanError
from cloister.privacy.accounting import IntegerGaussian, epsilon
from cloister.privacy.statistics import FederatedRelease, Federation, Query, QueryFile

FOUR = Federation(sites=4, minimum=3, colluders=1)
QUERIES = (
    Query(statistic="count", by=("sex",)),
    Query(statistic="sum", column="income"),
    Query(statistic="mean", column="pressure", by=("ward",)),
    Query(statistic="variance", column="age"),
    Query(statistic="histogram", column="age", bins=6),
    Query(statistic="contingency", columns=("sex", "ill")),
    Query(statistic="quantiles", column="income", levels=(0.5,)),
)


def plan(
    rows: int = 800,
    federation: Federation = FOUR,
    *,
    queries: tuple[Query, ...] = QUERIES,
    budget: float = 8.0,
    delta: float = 1e-5,
) -> FederatedRelease:
    file = QueryFile(queries=queries, epsilon=budget, delta=delta)
    return FederatedRelease.plan(file, declarations(rows), federation)


def mechanism(event: Any) -> IntegerGaussian:
    assert isinstance(event.mechanism, IntegerGaussian)
    return event.mechanism


def test_the_sum_answers_as_one_collector_would() -> None:
    data = table(800)
    release = plan()
    total = np.zeros(release.size, dtype=np.uint32)
    for number in range(4):
        total += release.contribution(data.slice(number * 200, 200))
    answers = {answer.query.title: answer for answer in release.answers(total, survivors=4, rows=800)}
    rows = data.to_pylist()
    truth = {
        "count by sex": [sum(row["sex"] == sex for row in rows) for sex in ("female", "male")],
        "sum of income": [sum(row["income"] for row in rows)],
        "variance of age": [np.var([row["age"] for row in rows])],
        "quantiles of income": [true_quantile(np.array([row["income"] for row in rows]), 0.5)],
    }
    for title, real in truth.items():
        for cell, value in zip(answers[title].cells, real, strict=True):
            wide = 3 * (cell.high - cell.low)  # three bars: a failure is not to be expected in a lifetime
            assert cell.low - wide <= value <= cell.high + wide
    assert all(answer.noise == "discrete Gaussian" for answer in answers.values())


@pytest.mark.parametrize("adversary", ["hub", "colluders"])
@pytest.mark.parametrize(("sites", "minimum", "colluders"), [(3, 3, 1), (4, 3, 1), (10, 7, 3)])
def test_both_epsilons_and_the_variance_of_a_share(
    adversary: Any, sites: int, minimum: int, colluders: int
) -> None:
    federation = Federation(sites=sites, minimum=minimum, colluders=colluders, adversary=adversary)
    release = plan(federation=federation, queries=QUERIES[:2], budget=1.0)
    hub, both = release.events("hub"), release.events("colluders")
    for item, with_hub, with_colluders in zip(release.items, hub, both, strict=True):
        assert mechanism(with_hub).shares == minimum
        assert mechanism(with_colluders).shares == minimum - colluders
        for event in (with_hub, with_colluders):
            assert mechanism(event).variance / mechanism(event).shares == pytest.approx(item.share)
    named = release.epsilon_against(adversary)
    assert 0.999 <= named <= 1.0
    assert release.epsilon_against("hub") < release.epsilon_against("colluders")
    assert release.events() == release.events(adversary)
    assert epsilon(release.events(), 1e-5) == named


def test_a_share_is_on_every_integer_before_it_leaves() -> None:
    """What a site hands over differs from its exact sums by N_Z(0, share) on each integer."""
    release = plan(
        queries=(Query(statistic="histogram", column="age"), Query(statistic="mean", column="income"))
    )
    data = table(200)
    repeated = np.stack([release.contribution(data).view(np.int32).astype(float) for _ in range(400)])
    start = 0
    for item in release.items:
        part = repeated[:, start : start + item.statistic.size]
        start += item.statistic.size
        ratio = part.var(axis=0, ddof=1).mean() / item.share
        deviation = math.sqrt(2.0 / (400 * item.statistic.size))
        assert abs(ratio - 1.0) < 6 * deviation
        correlation = np.corrcoef(part.T)[0, 1] if item.statistic.size > 1 else 0.0
        assert abs(correlation) < 6 / math.sqrt(400)


def test_the_sum_of_survivors_has_the_noise_that_bars_assume() -> None:
    release = plan(queries=(Query(statistic="count", column="age", by=("ill",)),), budget=1.0)
    errors, widths, held = [], [], 0
    data = table(600)
    exact = [sum(row["ill"] == ill for row in data.to_pylist()) for ill in (False, True)]
    for _ in range(200):
        total = np.zeros(release.size, dtype=np.uint32)
        for number in range(3):  # the fourth has dropped out
            total += release.contribution(data.slice(number * 200, 200))
        (answer,) = release.answers(total, survivors=3, rows=600)
        for cell, real in zip(answer.cells, exact, strict=True):
            errors.append(cell.value - real)
            widths.append((cell.high - cell.low) / 2)
            held += cell.low <= real <= cell.high
    assert held / 400 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 400)
    assert np.median(widths) == pytest.approx(1.96 * np.std(errors), rel=0.2)


def test_a_unit_at_several_sites_needs_as_much_more_noise() -> None:
    one = plan(queries=QUERIES[:1], budget=1.0)
    three = plan(queries=QUERIES[:1], budget=1.0, federation=msgspec.structs.replace(FOUR, sites_per_unit=3))
    assert mechanism(three.events()[0]).sensitivity == 3 * mechanism(one.events()[0]).sensitivity
    assert three.items[0].share == pytest.approx(9 * one.items[0].share, rel=1e-2)


def test_the_grid_gets_coarser_until_all_rows_fit_the_ring() -> None:
    few, many = plan(1000), plan(10_000_000, delta=1e-9)
    assert few.items[0].grid == 2**16
    for item in many.items:
        noise = math.sqrt(4 * item.share)
        assert 64 <= item.grid < 2**16
        assert 10_000_000 * item.grid + 8 * noise < 2**31
    with pytest.raises(InputError, match="do not fit a ring"):
        plan(200_000_000, delta=1e-9)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epsilon": 1.0}, "no delta"),
        ({"epsilon": 1.0, "delta": 0.0}, "no delta"),
        ({"delta": 1e-6}, "no epsilon"),
        ({"epsilon": 1.0, "delta": 0.01}, "not below one in the number of rows"),
    ],
)
def test_a_budget_that_is_not_one_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        FederatedRelease.plan(Query(statistic="count", **fields), declarations(800), FOUR)


def test_budgets_by_query_are_refused_over_sites() -> None:
    file = QueryFile(queries=(Query(statistic="count", epsilon=1.0, delta=1e-6),))
    with pytest.raises(InputError, match="one budget"):
        FederatedRelease.plan(file, declarations(800), FOUR)


@pytest.mark.parametrize(
    "fields",
    [
        {"sites": 3, "minimum": 4, "colluders": 1},
        {"sites": 3, "minimum": 0, "colluders": 0},
        {"sites": 3, "minimum": 1, "colluders": 1},
        {"sites": 3, "minimum": 3, "colluders": 1, "sites_per_unit": 4},
    ],
)
def test_a_federation_that_leaves_no_noise_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(PlanError):
        Federation(**fields)  # type: ignore[arg-type]


def test_a_sum_of_too_few_or_of_another_size_is_not_read() -> None:
    release = plan()
    total = np.zeros(release.size, dtype=np.uint32)
    for wrong, survivors in ((total, 2), (total, 5), (total[1:], 4)):
        with pytest.raises(InputError):
            release.answers(wrong, survivors=survivors, rows=800)


def test_everybody_who_is_given_the_same_derives_the_same() -> None:
    assert plan() == plan()
