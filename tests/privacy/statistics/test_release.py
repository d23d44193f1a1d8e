"""Planning, paying, publishing: budgets are what is stated, and OpenDP says the same."""

from __future__ import annotations

import sys

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.privacy.statistics.tables import declarations, table

from cloister.errors import InputError
from cloister.privacy.accounting import (
    IntegerGaussian,
    IntegerLaplace,
    epsilon,
    read_events,
    renyi,
    write_events,
)
from cloister.privacy.statistics import Answer, GaussianNoise, LaplaceNoise, Query, QueryFile, Release

pytest.importorskip("opendp")

EVERY = [
    Query(statistic="count"),
    Query(statistic="sum", column="age"),
    Query(statistic="mean", column="pressure", by=("sex",)),
    Query(statistic="variance", column="income"),
    Query(statistic="quantiles", column="age"),
    Query(statistic="histogram", column="pressure", bins=5),
    Query(statistic="contingency", columns=("sex", "ill")),
]


def answer(data: pa.Table, query: Query | QueryFile, *, unit: str | None = None) -> tuple[Answer, ...]:
    release = Release.plan(query, declarations(data.num_rows, unit=unit))
    return release.publish(release.measure(data))


@pytest.mark.parametrize("query", EVERY, ids=lambda query: query.title)
def test_a_laplace_answer_costs_what_was_asked_as_opendp_says_too(query: Query) -> None:
    dp = pytest.importorskip("opendp.prelude")
    release = Release.plan(msgspec.structs.replace(query, epsilon=0.3), declarations(50))
    (item,) = release.items
    mechanism = item.event.mechanism
    assert isinstance(mechanism, IntegerLaplace)
    assert isinstance(item.noise, LaplaceNoise)
    assert mechanism.scale == item.noise.scale
    assert 0.3 * (1 - 1e-9) <= item.epsilon <= 0.3
    assert mechanism.sensitivity / mechanism.scale <= 0.3 * (1 + 1e-12)
    measurement = dp.m.make_laplace(
        dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64"), scale=mechanism.scale
    )
    assert measurement.map(int(mechanism.sensitivity)) <= 0.3
    assert mechanism.coordinates == item.statistic.size
    assert (release.epsilon, release.delta) == (item.epsilon, 0.0)


@pytest.mark.parametrize("query", EVERY, ids=lambda query: query.title)
def test_a_gaussian_answer_stays_within_the_accountants_epsilon_and_opendps(query: Query) -> None:
    dp = pytest.importorskip("opendp.prelude")
    release = Release.plan(msgspec.structs.replace(query, epsilon=0.5, delta=1e-6), declarations(50))
    (item,) = release.items
    mechanism = item.event.mechanism
    assert isinstance(mechanism, IntegerGaussian)
    assert isinstance(item.noise, GaussianNoise)
    assert mechanism.variance == pytest.approx(item.noise.sigma**2)
    assert 0.499 <= epsilon(release.events, 1e-6) <= 0.5
    measurement = dp.c.make_zCDP_to_approxDP(
        dp.m.make_gaussian(
            dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=item.noise.sigma
        )
    )
    theirs = measurement.map(mechanism.sensitivity).epsilon(1e-6)
    assert item.epsilon <= theirs <= 1.1 * item.epsilon  # their conversion goes through zCDP


def test_one_budget_for_a_file_is_shared_out() -> None:
    queries = (Query(statistic="count"), Query(statistic="mean", column="age", share=3.0))
    release = Release.plan(QueryFile(queries=queries, epsilon=0.8), declarations(50))
    assert [item.epsilon for item in release.items] == pytest.approx([0.2, 0.6])
    assert release.epsilon == 0.8


def test_gaussian_queries_of_a_file_are_calibrated_together() -> None:
    queries = (*EVERY[:3], msgspec.structs.replace(EVERY[3], share=4.0))
    release = Release.plan(QueryFile(queries=queries, epsilon=1.0, delta=1e-6), declarations(50))
    together = epsilon(release.events, 1e-6)
    assert 0.999 <= together <= 1.0
    multipliers = [
        np.sqrt(event.mechanism.variance) / event.mechanism.sensitivity for event in release.events
    ]
    assert multipliers[0] == pytest.approx(multipliers[1])
    assert multipliers[0] == pytest.approx(2 * multipliers[3])
    # splitting epsilon and delta by hand would need more noise for every one of them
    part = msgspec.structs.replace(EVERY[0], epsilon=1 / 7, delta=1e-6 / 7)
    alone = Release.plan(part, declarations(50)).events[0].mechanism
    assert np.sqrt(alone.variance) / alone.sensitivity > 1.5 * multipliers[0]  # type: ignore[union-attr]


def test_each_query_with_its_own_budget_adds_up() -> None:
    own = (
        Query(statistic="count", epsilon=0.2),
        Query(statistic="mean", column="age", epsilon=0.3, delta=1e-6),
    )
    release = Release.plan(QueryFile(queries=own), declarations(50))
    assert release.epsilon == epsilon(release.events, 1e-6)
    assert 0.45 < release.epsilon <= 0.5  # less than the two in sequence would be charged by addition
    assert release.delta == 1e-6
    assert isinstance(release.items[0].noise, LaplaceNoise)
    assert isinstance(release.items[1].noise, GaussianNoise)


def test_answers_carry_value_bar_cost_and_events() -> None:
    data = table(500)
    answers = answer(data, QueryFile(queries=tuple(EVERY), epsilon=7.0))
    assert [each.query.title for each in answers] == [query.title for query in EVERY]
    for each in answers:
        assert each.epsilon == pytest.approx(1.0)
        assert each.confidence == 0.95
        assert each.protects == "each row"
        assert read_events(write_events(each.events)) == each.events
        assert renyi(each.events, 8).rdp > 0.0
        for cell in each.to_builtins()["cells"]:
            assert cell["low"] <= cell["value"] <= cell["high"]
            assert cell["error"] == max(cell["high"] - cell["value"], cell["value"] - cell["low"])
        msgspec.json.encode(each.to_builtins())
    assert answers[0].value == pytest.approx(500, abs=25)
    with pytest.raises(ValueError, match="unpack"):
        _ = answers[2].value


def test_a_unit_is_counted_once_and_said_so() -> None:
    data = table(400, people=80)
    people = len(set(data["person"].to_pylist()))
    (one,) = answer(data, Query(statistic="count", epsilon=20.0), unit="person")
    assert one.value == pytest.approx(people, abs=3)
    assert one.protects == "each person with all its rows; the first row of each counted"
    few = Query(statistic="count", epsilon=20.0, rows_per_unit=3)
    (three,) = answer(data, few, unit="person")
    assert "first 3 rows" in three.protects
    assert three.events[0].mechanism.sensitivity == 3.0  # type: ignore[union-attr]


def test_sums_are_published_once() -> None:
    data = table(50)
    release = Release.plan(Query(statistic="count", epsilon=1.0), declarations(50))
    measured = release.measure(data)
    assert "50" not in repr(measured)
    release.publish(measured)
    with pytest.raises(InputError, match="published already"):
        release.publish(measured)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (Query(statistic="count", epsilon=1.0, delta=0.02), "not below one in the number of rows"),
        (Query(statistic="mean", column="agee", epsilon=1.0), "Did you mean 'age'"),
        (Query(statistic="mean", column="sex", epsilon=1.0), "category"),
        (Query(statistic="count", by=("income",), epsilon=1.0), "too many values"),
        (Query(statistic="count"), "no epsilon"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_rows_are_read(query: Query, says: str) -> None:
    with pytest.raises(InputError) as caught:
        Release.plan(query, declarations(50))
    assert says in str(caught.value)


def test_without_opendp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    with pytest.raises(InputError, match=r"pip install cloister\[stats\]"):
        Release.plan(Query(statistic="count", epsilon=1.0), declarations(50))


def test_importing_statistics_imports_neither_opendp_nor_an_accountant() -> None:
    import subprocess

    code = "import sys, cloister.privacy.statistics; print([m for m in ('opendp','dp_accounting','scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_published_counts_have_the_stated_distribution() -> None:
    """Chi-square of OpenDP's draws, as this product calls it, against the discrete Laplace masses."""
    from scipy.stats import chisquare

    from cloister.privacy.statistics import central

    scale, trials = 2.0, 40_000
    drawn = central.laplace(np.zeros(trials, dtype=np.int64), scale)
    q = np.exp(-1 / scale)
    span = np.arange(-8, 9)
    masses = (1 - q) / (1 + q) * q ** np.abs(span)
    observed = [(drawn == x).sum() for x in span]
    observed += [trials - sum(observed)]
    expected = np.append(masses, 1 - masses.sum()) * trials
    assert chisquare(observed, expected).pvalue > 1e-6
