"""Which rows count, and what is made of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privacy.statistics.tables import declarations, table

from cloister.errors import InputError
from cloister.privacy.statistics import Declarations, Declared, Rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 4))
def test_the_first_rows_of_each_unit_stay(units: list[int], most: int) -> None:
    declared = Declarations(
        columns={"x": Declared(kind="integer", bounds=(0, 100))}, rows=len(units), unit="who"
    )
    rows = Rows({"x": np.arange(len(units)), "who": np.array(units)}, declared, ["x"], most)
    seen: dict[int, int] = {}
    expected = []
    for position, unit in enumerate(units):
        seen[unit] = seen.get(unit, 0) + 1
        if seen[unit] <= most:
            expected.append(position)
    assert rows.numbers("x").tolist() == expected
    assert rows.count == len(expected)


def test_values_are_clamped_and_unknown_categories_have_no_code() -> None:
    declared = Declarations(
        columns={
            "x": Declared(kind="number", bounds=(-1.0, 1.0)),
            "c": Declared(kind="category", categories=("u", "v"), missing=True),
            "b": Declared(kind="boolean", missing=True),
        },
        rows=4,
    )
    data = pa.table(
        {"x": [-5.0, 0.25, 1e300, 1.0], "c": ["v", "w", None, "u"], "b": pa.array([True, None, False, True])}
    )
    rows = Rows(data, declared, ["x", "c", "b"])
    assert rows.numbers("x").tolist() == [-1.0, 0.25, 1.0, 1.0]
    assert rows.codes("c").tolist() == [1, -1, -1, 0]
    assert rows.missing("c").tolist() == [False, False, True, False]
    assert rows.codes("b").tolist() == [1, -1, 0, 1]


def test_a_dictionary_a_large_string_and_a_column_of_nothing_are_read() -> None:
    declared = Declarations(
        columns={"c": Declared(kind="category", categories=("u", "v"), missing=True)}, rows=2
    )
    for values in (
        pa.array(["v", "u"]).dictionary_encode(),
        pa.array(["v", "u"], pa.large_string()),
    ):
        assert Rows(pa.table({"c": values}), declared, ["c"]).codes("c").tolist() == [1, 0]
    assert Rows(pa.table({"c": pa.nulls(2)}), declared, ["c"]).codes("c").tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("who", [None, "p1", "p2"], "missing"),
        ("who", [1.5, 2.5, 2.5], "type"),
        ("age", [30, None, 40], "missing values that are not declared"),
        ("income", [1.0, float("nan"), 2.0], "missing values that are not declared"),
        ("age", ["30", "31", "32"], "not of its declared type"),
        ("ill", [0, 1, 1], "not of its declared type"),
        ("sex", [1, 2, 3], "not of its declared type"),
        ("age", [2**60 + 1, 2, 3], "not exact"),
    ],
)
def test_rows_that_break_their_declaration_are_refused_without_a_value(
    column: str, values: list[Any], says: str
) -> None:
    base = table(3, people=3)
    data = base.rename_columns(["who" if name == "person" else name for name in base.column_names])
    data = data.set_column(data.column_names.index(column), column, pa.array(values))
    with pytest.raises(InputError) as caught:
        Rows(data, declarations(3, unit="who"), ["age", "income", "ill", "sex"])
    assert says in str(caught.value)
    assert column in str(caught.value)
    assert not any(str(value) in str(caught.value) for value in values if value is not None)


def test_another_length_and_an_absent_column_are_refused() -> None:
    with pytest.raises(InputError, match="another number of rows"):
        Rows(table(4), declarations(3), ["age"])
    with pytest.raises(InputError, match="no column 'sex'"):
        Rows(table(3).drop_columns(["sex"]), declarations(3), ["sex"])


def test_rows_do_not_show_themselves() -> None:
    assert repr(Rows(table(3), declarations(3), ["age", "sex"])) == "Rows(age, sex)"
