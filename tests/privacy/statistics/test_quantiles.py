"""Quantiles from trees: exact without noise, bounded by unit, covered whatever the rows look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privacy.statistics.tables import declarations, laplace_noise, table
from tests.privacy.statistics.test_moments import extreme

from cloister.errors import InputError
from cloister.privacy.statistics import Declarations, Declared, GaussianNoise, LaplaceNoise, Query, Rows
from cloister.privacy.statistics.quantiles import Quantiles

GRID = 1024
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.99)


def column(values: np.ndarray, low: float, high: float, kind: Any = "number") -> Declarations:
    return Declarations(columns={"x": Declared(kind=kind, bounds=(low, high))}, rows=len(values))


def true_quantile(values: np.ndarray, level: float) -> float:
    """The least value with at least level N rows at or below it."""
    return float(np.quantile(values, level, method="inverted_cdf"))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.sampled_from([1, 5, 40, 401]))
def test_without_noise_the_bin_of_the_quantile_is_found(values: list[int], bins: int) -> None:
    array = np.array(values)
    declared = column(array, 0, 400, "integer")
    statistic = Quantiles.of(Query(statistic="quantiles", column="x", levels=LEVELS, bins=bins), declared)
    vector = statistic.vector(Rows({"x": array}, declared, ["x"]), GRID)
    cells = statistic.answer(vector, GRID, GaussianNoise(1e-9), len(values))
    for cell in cells:
        assert cell.level is not None
        assert cell.low <= true_quantile(array, cell.level) <= cell.high
        assert cell.low <= cell.value <= cell.high
        if bins == 401:
            assert cell.value == true_quantile(array, cell.level)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 600), st.integers(0, 2**20))
def test_ways_through_the_tree_give_the_rows_below_every_edge(bins: int, seed: int) -> None:
    """And the draws they are said to hold are what they are made of: counted by noise of 1 on one node."""
    random = np.random.default_rng(seed)
    values = random.random(50) * bins
    declared = column(values, 0, float(bins))
    statistic = Quantiles.of(Query(statistic="quantiles", column="x", bins=bins), declared)
    assert statistic.levels[0] <= 16
    tree = statistic.vector(Rows({"x": values}, declared, ["x"]), 1).astype(float)
    below, draws = statistic._below(tree)
    counts = np.histogram(values, bins=bins, range=(0, bins))[0]
    np.testing.assert_array_equal(below, np.concatenate([[0], np.cumsum(counts)]))
    # a way is a signed sum of nodes: its squared weights add up to its draws
    sample = random.integers(0, bins + 1, 3)
    weights = np.stack([statistic._below(unit)[0][sample] for unit in np.eye(statistic.nodes)])
    assert set(np.unique(weights)) <= {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(np.square(weights[: statistic.levels[0]]).sum(axis=0), draws[sample, 0])
    np.testing.assert_array_equal(np.square(weights[statistic.levels[0] :]).sum(axis=0), draws[sample, 1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), k=st.integers(1, 3), by=st.sampled_from([(), ("sex",), ("ward", "ill")]))
def test_no_unit_moves_the_tree_further_than_stated(seed: int, k: int, by: tuple[str, ...]) -> None:
    query = Query(statistic="quantiles", column="pressure", by=by, rows_per_unit=k)
    data = extreme(np.random.default_rng(seed), 12)
    statistic = Quantiles.of(query, declarations(12, unit="person"))
    whole = statistic.vector(Rows(data, declarations(12, unit="person"), statistic.columns, k), GRID)
    for person in set(data["person"].to_pylist()):
        left = data.filter(pa.array([each != person for each in data["person"].to_pylist()]))
        declared = declarations(left.num_rows, unit="person")
        moved = whole - statistic.vector(Rows(left, declared, statistic.columns, k), GRID)
        assert np.abs(moved).sum() <= statistic.sensitivity(GRID, 1)
        assert np.square(moved.astype(float)).sum() <= statistic.sensitivity(GRID, 2) ** 2 * (1 + 1e-12)


SHAPES = {
    "spread": lambda random: random.normal(50, 15, 400).clip(0, 100),
    "one value": lambda random: np.full(400, 37.5),
    "sixty percent zero": lambda random: np.where(random.random(400) < 0.6, 0.0, random.random(400) * 100),
    "two ends": lambda random: np.where(random.random(400) < 0.5, 0.0, 100.0),
    "nobody": lambda random: np.zeros(0),
    "three rows": lambda random: np.array([20.0, 50.0, 80.0]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_bars_hold_the_true_quantile_as_often_as_stated(shape: str, kind: str) -> None:
    random = np.random.default_rng(7)
    values = SHAPES[shape](random)
    declared = column(values, 0.0, 100.0)
    query = Query(statistic="quantiles", column="x", levels=(0.1, 0.5, 0.9), confidence=0.9)
    statistic = Quantiles.of(query, declared)
    vector = statistic.vector(Rows({"x": values}, declared, ["x"]), GRID)
    scale = statistic.sensitivity(GRID, 1) / 2.0
    noise = LaplaceNoise(scale) if kind == "laplace" else GaussianNoise(scale)
    trials, held = 150, np.zeros(3)
    for _ in range(trials):
        if kind == "laplace":
            drawn = laplace_noise(random, scale, vector.shape)
        else:
            drawn = np.rint(random.normal(0, scale, vector.shape)).astype(np.int64)
        for index, cell in enumerate(statistic.answer(vector + drawn, GRID, noise, len(values))):
            assert 0.0 <= cell.low <= cell.value <= cell.high <= 100.0
            true = true_quantile(values, cell.level or 0.0) if len(values) else cell.value
            held[index] += cell.low <= true <= cell.high
    # 150 trials at 0.90: fewer than 122 would happen once in 3,000 times
    assert (held >= 122).all(), held / trials


def test_bars_are_no_wider_than_they_need_be() -> None:
    """On spread rows, three times the middle 90 % of what estimates do is the most a bar should be."""
    random = np.random.default_rng(3)
    values = random.normal(50, 15, 2000).clip(0, 100)
    declared = column(values, 0.0, 100.0)
    statistic = Quantiles.of(Query(statistic="quantiles", column="x", levels=(0.5,)), declared)
    vector = statistic.vector(Rows({"x": values}, declared, ["x"]), GRID)
    scale = statistic.sensitivity(GRID, 1) / 1.0
    cells = [
        statistic.answer(
            vector + laplace_noise(random, scale, vector.shape), GRID, LaplaceNoise(scale), 2000
        )[0]
        for _ in range(100)
    ]
    spread = np.quantile([cell.value for cell in cells], [0.025, 0.975])
    assert np.median([cell.high - cell.low for cell in cells]) < 3.0 * (spread[1] - spread[0])


def test_given_edges_are_the_bins_and_must_reach_the_bounds() -> None:
    declared = declarations(100)
    query = Query(statistic="quantiles", column="age", edges=(0, 18, 65, 120), levels=(0.5,))
    statistic = Quantiles.of(query, declared)
    data = table(100)
    vector = statistic.vector(Rows(data, declared, ["age"]), GRID)
    (cell,) = statistic.answer(vector, GRID, GaussianNoise(1e-9), 100)
    assert (cell.low, cell.high) == (18, 64)
    with pytest.raises(InputError, match="from bound to bound"):
        Quantiles.of(Query(statistic="quantiles", column="age", edges=(18, 65)), declared)


def test_missing_values_and_groups() -> None:
    data = table(600)
    declared = declarations(600)
    query = Query(statistic="quantiles", column="pressure", by=("sex",), levels=(0.5,))
    statistic = Quantiles.of(query, declared)
    vector = statistic.vector(Rows(data, declared, statistic.columns), GRID)
    for cell in statistic.answer(vector, GRID, GaussianNoise(1e-9), 600):
        rows = [row["pressure"] for row in data.to_pylist() if row["sex"] == cell.group["sex"]]
        values = np.array([value for value in rows if value is not None])
        assert cell.low <= true_quantile(values, 0.5) <= cell.high
        assert cell.high - cell.low <= 2 * 200 / 1024 + 1e-9  # two bins where an edge is met exactly


def test_why_a_private_selection_of_one_candidate_is_not_used() -> None:
    """Sixty in a hundred rows are 0, so the median is 0; the score of OpenDP's selection prefers 1."""
    dp = pytest.importorskip("opendp.prelude")
    dp.enable_features("contrib")
    values = [0] * 60 + list(range(61, 101))
    select = dp.m.make_private_quantile(
        dp.vector_domain(dp.atom_domain(T="i64")),
        dp.symmetric_distance(),
        dp.max_divergence(),
        candidates=list(range(101)),
        alpha=0.5,
        scale=0.05,
    )
    assert np.median(values) == 0
    assert min(select(values) for _ in range(20)) > 0
    declared = column(np.array(values), 0, 100, "integer")
    statistic = Quantiles.of(Query(statistic="quantiles", column="x", levels=(0.5,)), declared)
    vector = statistic.vector(Rows({"x": np.array(values)}, declared, ["x"]), GRID)
    (cell,) = statistic.answer(vector, GRID, GaussianNoise(1e-9), 100)
    assert cell.value == 0
