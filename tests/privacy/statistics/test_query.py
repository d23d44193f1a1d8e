from __future__ import annotations

from typing import Any

import pytest

from cloister.errors import InputError
from cloister.privacy.statistics import Query, QueryFile, load_queries

FILE = b"""
epsilon = 1.0
delta = 1e-6

[[queries]]
statistic = "mean"
column = "age"
by = ["sex"]

[[queries]]
statistic = "contingency"
columns = ["smoker", "sex"]
share = 2
name = "smoking"
"""


def test_a_file_reads_back() -> None:
    file = load_queries(FILE)
    assert (file.epsilon, file.delta) == (1.0, 1e-6)
    assert [query.title for query in file.queries] == ["mean of age by sex", "smoking"]
    assert file.queries[1].share == 2.0


def test_a_file_on_disk_reads_the_same(tmp_path: Any) -> None:
    (tmp_path / "queries.toml").write_bytes(FILE)
    assert load_queries(tmp_path / "queries.toml") == load_queries(FILE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('epsilon = 1.0\n[[queries]]\nstatistic = "mean"\ncolum = "age"', "Did you mean 'column'"),
        ('epsilo = 1.0\n[[queries]]\nstatistic = "mean"\ncolumn = "age"', "Did you mean 'epsilon'"),
        ('epsilon = 1.0\n[[queries]]\nstatistic = "meen"\ncolumn = "age"', "'mean'"),
        ('[[queries]]\nstatistic = "mean"\ncolumn = "age"', "a query has no epsilon"),
        (
            'epsilon = 1.0\n[[queries]]\nstatistic = "mean"\ncolumn = "age"\nepsilon = 0.1',
            "for the file and for a",
        ),
        (
            'epsilon = 1.0\n[[queries]]\nstatistic = "mean"\ncolumn = "age"\ndelta = 1e-6',
            "for the file and for a",
        ),
        ('delta = 1e-6\n[[queries]]\nstatistic = "mean"\ncolumn = "age"\nepsilon = 1.0', "one place"),
        ("epsilon = 1.0\nqueries = []", "0 queries"),
        ("epsilon = ", "not TOML"),
        ('epsilon = "1"\n[[queries]]\nstatistic = "count"', "epsilon"),
    ],
)
def test_a_file_that_is_not_one_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_queries(text.encode())
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"statistic": "mean"},
        {"statistic": "mean", "columns": ("a", "b")},
        {"statistic": "contingency", "columns": ("a",)},
        {"statistic": "contingency", "column": "a"},
        {"statistic": "contingency", "columns": ("a", "a")},
        {"statistic": "histogram", "column": "a", "by": ("a",)},
        {"statistic": "mean", "column": "a", "bins": 3},
        {"statistic": "histogram", "column": "a", "bins": 3, "edges": (0.0, 1.0)},
        {"statistic": "histogram", "column": "a", "bins": 0},
        {"statistic": "histogram", "column": "a", "edges": (1.0, 1.0)},
        {"statistic": "histogram", "column": "a", "edges": (0.0, float("inf"))},
        {"statistic": "mean", "column": "a", "levels": (0.5,)},
        {"statistic": "quantiles", "column": "a", "levels": (0.0,)},
        {"statistic": "quantiles", "column": "a", "levels": (0.5, 0.5)},
        {"statistic": "count", "rows_per_unit": 0},
        {"statistic": "count", "share": 0.0},
        {"statistic": "count", "confidence": 1.0},
        {"statistic": "count", "name": "two\nlines"},
        *({"statistic": "count", "epsilon": bad} for bad in (0.0, -1.0, 20.5, float("nan"), float("inf"))),
        *({"statistic": "count", "delta": bad} for bad in (-1e-6, 1e-16, 0.1, 1.0, float("nan"))),
    ],
)
def test_what_does_not_fit_together_or_is_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Query(**fields)


def test_a_query_is_frozen_and_closed() -> None:
    query = Query(statistic="count", epsilon=1.0)
    with pytest.raises(AttributeError):
        query.epsilon = 20.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Query(statistic="count", exact=True)  # type: ignore[call-arg]


def test_one_budget_or_each_its_own() -> None:
    plain, own = Query(statistic="count"), Query(statistic="count", epsilon=1.0)
    QueryFile(queries=(plain, plain), epsilon=1.0)
    QueryFile(queries=(own, own))
    with pytest.raises(InputError):
        QueryFile(queries=(plain, own))
    with pytest.raises(InputError):
        QueryFile(queries=(plain, own), epsilon=1.0)
