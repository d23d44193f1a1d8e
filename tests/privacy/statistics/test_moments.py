"""Sums of integers: what they say without noise, and the most that one unit moves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privacy.statistics.tables import declarations, table

from cloister.errors import InputError
from cloister.privacy.statistics import GaussianNoise, Query, Rows
from cloister.privacy.statistics.moments import Moments

NO_NOISE = GaussianNoise(1e-6)
GRID = 2**20

ALL = [
    {"statistic": "count"},
    {"statistic": "count", "column": "pressure", "by": ("sex",)},
    {"statistic": "sum", "column": "age"},
    {"statistic": "sum", "column": "income", "by": ("ward", "ill")},
    {"statistic": "mean", "column": "income"},
    {"statistic": "mean", "column": "pressure", "by": ("ward",)},
    {"statistic": "variance", "column": "age"},
    {"statistic": "variance", "column": "pressure", "by": ("sex",)},
    {"statistic": "histogram", "column": "pressure", "bins": 7},
    {"statistic": "histogram", "column": "ward", "by": ("sex",)},
    {"statistic": "contingency", "columns": ("ward", "sex", "ill")},
]


def exact(data: pa.Table, query: Query, *, unit: str | None = None) -> list[Any]:
    declared = declarations(data.num_rows, unit=unit)
    statistic = Moments.of(query, declared)
    vector = statistic.vector(Rows(data, declared, statistic.columns, query.rows_per_unit), GRID)
    return list(statistic.answer(vector, GRID, NO_NOISE, data.num_rows))


def rows_of(data: pa.Table, group: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in data.to_pylist() if all(row[name] == key for name, key in group.items())]


def of(rows: list[dict[str, Any]], column: str) -> np.ndarray:
    return np.array([row[column] for row in rows if row[column] is not None], dtype=float)


@pytest.mark.parametrize("by", [(), ("sex",), ("ward", "ill")])
@pytest.mark.parametrize("column", ["age", "pressure", "income", "ill"])
@pytest.mark.parametrize("statistic", ["sum", "mean", "variance"])
def test_without_noise_the_answer_is_the_tables(statistic: str, column: str, by: tuple[str, ...]) -> None:
    data = table(400)
    compute = {"sum": np.sum, "mean": np.mean, "variance": np.var}[statistic]
    for cell in exact(data, Query(statistic=statistic, column=column, by=by)):  # type: ignore[arg-type]
        values = of(rows_of(data, cell.group), column)
        if len(values) == 0 and statistic != "sum":
            continue
        assert cell.value == pytest.approx(compute(values), rel=1e-5, abs=2e-3)
        assert cell.low - 1e-9 <= compute(values) <= cell.high + 1e-9


@pytest.mark.parametrize(
    "fields",
    [
        {"statistic": "count"},
        {"statistic": "count", "by": ("sex", "ward")},
        {"statistic": "contingency", "columns": ("sex", "ward", "ill")},
        {"statistic": "histogram", "column": "ward"},
    ],
)
def test_without_noise_counts_are_exact(fields: dict[str, Any]) -> None:
    data = table(300)
    cells = exact(data, Query(**fields))
    assert sum(cell.value for cell in cells) == 300
    for cell in cells:
        assert cell.value == len(rows_of(data, cell.group))


def test_a_histogram_counts_each_bin_and_the_missing() -> None:
    data = table(500)
    cells = exact(data, Query(statistic="histogram", column="pressure", bins=8))
    values = of(data.to_pylist(), "pressure")
    counts, _ = np.histogram(values, bins=8, range=(50, 250))
    assert [cell.value for cell in cells] == [*counts.tolist(), 500 - len(values)]


def test_a_count_of_a_column_leaves_out_the_missing() -> None:
    data = table(500)
    (cell,) = exact(data, Query(statistic="count", column="pressure"))
    assert cell.value == 500 - data["pressure"].null_count


def test_of_each_unit_the_first_rows_count() -> None:
    data = table(300, people=60)
    (cell,) = exact(data, Query(statistic="count"), unit="person")
    assert cell.value == len(set(data["person"].to_pylist()))
    (cell,) = exact(data, Query(statistic="count", rows_per_unit=300), unit="person")
    assert cell.value == 300


@pytest.mark.parametrize("fields", ALL, ids=lambda fields: "-".join(map(str, fields.values())))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), k=st.integers(1, 3), grid=st.sampled_from([1, 100, 2**20]))
def test_no_unit_moves_the_vector_further_than_stated(
    fields: dict[str, Any], seed: int, k: int, grid: int
) -> None:
    """Zero out each unit in turn; extreme and missing values are frequent."""
    query = Query(**fields, rows_per_unit=k)
    random = np.random.default_rng(seed)
    data = extreme(random, 12)
    declared = declarations(12, unit="person")
    statistic = Moments.of(query, declared)
    whole = statistic.vector(Rows(data, declared, statistic.columns, k), grid)
    for person in set(data["person"].to_pylist()):
        keep = pa.array([each != person for each in data["person"].to_pylist()])
        left = data.filter(keep)
        without = statistic.vector(
            Rows(left, declarations(left.num_rows, unit="person"), statistic.columns, k), grid
        )
        moved = (whole - without).astype(object)
        assert sum(abs(x) for x in moved) <= statistic.sensitivity(grid, 1)
        assert sum(x * x for x in moved) <= statistic.sensitivity(grid, 2) ** 2 * (1 + 1e-12)


def extreme(random: np.random.Generator, rows: int) -> pa.Table:
    """Values at the bounds, beyond them (a vault would refuse those), and missing; few people."""
    data = table(rows, int(random.integers(2**20)), people=4)
    for name, values in (
        ("age", random.choice(np.array([-(10**6), 0, 60, 120, 10**6]), rows)),
        ("pressure", random.choice(np.array([50.0, 150.0, 250.0, np.inf, -1e300, np.nan]), rows)),
        ("income", random.choice(np.array([-1000.0, 0.0, 9000.0, 1e300, -np.inf]), rows)),
    ):
        data = data.set_column(data.column_names.index(name), name, pa.array(values))
    return data


def test_some_unit_reaches_what_is_stated() -> None:
    """The stated sensitivity is not merely large: a row at a bound moves a mean's two parts by K each."""
    data = table(5).set_column(2, "income", pa.array([9000.0] * 5))
    declared = declarations(5)
    statistic = Moments.of(Query(statistic="mean", column="income", by=("sex",)), declared)
    whole = statistic.vector(Rows(data, declared, statistic.columns), GRID)
    rest = data.slice(1)
    without = statistic.vector(Rows(rest, declarations(4), statistic.columns), GRID)
    assert np.abs(whole - without).sum() == statistic.sensitivity(GRID, 1) == 2 * GRID


def test_more_cells_than_can_be_answered_and_missing_bounds_are_refused() -> None:
    with pytest.raises(InputError, match="no statistic can be asked"):
        Moments.of(Query(statistic="mean", column="wage"), declarations(5))
    with pytest.raises(InputError, match="is a category"):
        Moments.of(Query(statistic="mean", column="sex"), declarations(5))
    with pytest.raises(InputError, match="cells"):
        Moments.of(
            Query(statistic="histogram", column="income", bins=4096, by=("ward", "ill", "age")),
            declarations(5),
        )


def test_whole_numbers_are_not_rounded_on_their_grid() -> None:
    statistic = Moments.of(Query(statistic="sum", column="age"), declarations(5))
    grid = statistic.exact_grid(2**20)
    assert grid % 120 == 0
    assert statistic.rounding(grid, "centred") == 0.0
    assert statistic.rounding(2**20, "centred") > 0.0


def test_rows_that_are_not_bounded_by_unit_would_break_the_statement() -> None:
    """The same tables, read as if every row were a unit: somebody with five rows moves a count by five."""
    data = table(12, people=4).set_column(6, "person", pa.array(["p0"] * 5 + ["p1"] * 7))
    query = Query(statistic="count", column="age")
    statistic = Moments.of(query, declarations(12, unit="person"))
    for unit, broken in (("person", False), (None, True)):
        whole = statistic.vector(Rows(data, declarations(12, unit=unit), statistic.columns), 1)
        rest = data.slice(5)
        without = statistic.vector(Rows(rest, declarations(7, unit=unit), statistic.columns), 1)
        assert (np.abs(whole - without).sum() > statistic.sensitivity(1, 1)) == broken


def test_values_that_are_not_clamped_would_break_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(5).set_column(2, "income", pa.array([1e12, 0.0, 0.0, 0.0, 0.0]))
    statistic = Moments.of(Query(statistic="sum", column="income"), declarations(5))

    def moved() -> int:
        whole = statistic.vector(Rows(data, declarations(5), statistic.columns), GRID)
        without = statistic.vector(Rows(data.slice(1), declarations(4), statistic.columns), GRID)
        return int(np.abs(whole - without).sum())

    assert moved() <= statistic.sensitivity(GRID, 1)
    monkeypatch.setattr(np, "clip", lambda values, *_: values)
    assert moved() > statistic.sensitivity(GRID, 1)
