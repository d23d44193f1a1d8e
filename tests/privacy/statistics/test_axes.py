"""Cells come from declarations, and every value has exactly its own."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privacy.statistics.tables import declarations, table

from cloister.errors import InputError
from cloister.privacy.statistics import Declarations, Declared, Rows
from cloister.privacy.statistics.axes import bin_axis, cells_of, count_cells, group_axis, histogram_axis


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-20, 30), min_size=1, max_size=30),
    st.integers(1, 60),
)
def test_each_whole_number_is_in_the_bin_that_says_so(values: list[int], bins: int) -> None:
    declared = Declarations(columns={"x": Declared(kind="integer", bounds=(-20, 30))}, rows=len(values))
    axis = bin_axis(declared, "x", bins, (), missing=False)
    cells = axis.cells(Rows({"x": np.array(values)}, declared, ["x"]))
    assert axis.keys[0][0] == -20
    assert axis.keys[-1][1] == 30
    assert all(b[0] == a[1] + 1 for a, b in zip(axis.keys, axis.keys[1:], strict=False))
    assert len(axis.keys) == min(bins, 51)
    for value, cell in zip(values, cells, strict=True):
        low, high = axis.keys[cell]
        assert low <= value <= high


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=30), st.integers(1, 20))
def test_each_number_is_in_the_bin_that_says_so(values: list[float], bins: int) -> None:
    declared = Declarations(columns={"x": Declared(kind="number", bounds=(-1.0, 2.0))}, rows=len(values))
    axis = bin_axis(declared, "x", bins, (), missing=False)
    for value, cell in zip(values, axis.cells(Rows({"x": np.array(values)}, declared, ["x"])), strict=True):
        low, high = axis.keys[cell]
        clamped = min(max(value, -1.0), 2.0)
        assert low <= clamped < high or (cell == bins - 1 and clamped == high)


def test_given_edges_are_kept_and_what_is_outside_is_in_no_bin() -> None:
    declared = declarations(4)
    axis = histogram_axis(declared, "income", None, (0.0, 100.0, 1000.0))
    data = table(4).set_column(2, "income", pa.array([-5.0, 0.0, 1000.0, 1000.5]))
    assert axis.keys == ((0.0, 100.0), (100.0, 1000.0))
    assert axis.cells(Rows(data, declared, ["income"])).tolist() == [-1, 0, 1, -1]
    ages = histogram_axis(declared, "age", None, (0, 18, 65, 120))
    assert ages.keys == ((0, 17), (18, 64), (65, 120))
    with pytest.raises(InputError, match="outside its bounds"):
        histogram_axis(declared, "age", None, (-1, 18))
    with pytest.raises(InputError, match="no value between"):
        histogram_axis(declared, "age", None, (18.2, 18.7))


def test_groups_come_from_declarations_though_no_row_has_them() -> None:
    declared = declarations(5)
    ward = group_axis(declared, "ward")
    assert ward.keys == ("a", "b", "c", "empty", None)
    data = table(5).set_column(4, "ward", pa.array(["b", "z", None, "a", "b"]))
    assert ward.cells(Rows(data, declared, ["ward"])).tolist() == [1, -1, 4, 0, 1]
    assert group_axis(declared, "ill").keys == (False, True)
    small = Declarations(columns={"n": Declared(kind="integer", bounds=(-1, 1))}, rows=3)
    axis = group_axis(small, "n")
    assert axis.keys == (-1, 0, 1)
    assert axis.cells(Rows({"n": np.array([1, -1, 0])}, small, ["n"])).tolist() == [2, 0, 1]


def test_what_cannot_be_enumerated_is_refused() -> None:
    declared = Declarations(
        columns={
            "x": Declared(kind="number", bounds=(0.0, 1.0)),
            "n": Declared(kind="integer", bounds=(0, 5000)),
            "open": Declared(kind="category"),
            "c": Declared(kind="category", categories=("u",)),
        },
        rows=3,
    )
    for name, says in (("x", "too many values"), ("n", "too many values"), ("open", "no categories")):
        with pytest.raises(InputError, match=says):
            group_axis(declared, name)
    with pytest.raises(InputError, match="no bins"):
        histogram_axis(declared, "c", 3, ())
    with pytest.raises(InputError, match="5001 cells"):
        count_cells((bin_axis(declared, "n", 5001, (), missing=False),), 5000)


def test_combinations_run_with_the_last_axis_fastest() -> None:
    declared, data = declarations(200), table(200)
    axes = (group_axis(declared, "ward"), group_axis(declared, "sex"))
    joint = cells_of(axes, Rows(data, declared, ["ward", "sex"]))
    for cell, ward, sex in zip(joint, data["ward"].to_pylist(), data["sex"].to_pylist(), strict=True):
        assert (axes[0].keys[cell // 2], axes[1].keys[cell % 2]) == (ward, sex)
    assert math.prod(len(axis.keys) for axis in axes) == 10
