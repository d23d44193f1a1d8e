from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import SchemaError
from cloister.vault import Column
from cloister.vault.columns import MAX_TEXT_BYTES, check_values, consents, storage_type


def check(column: Column, *values: Any, kind: pa.DataType | None = None) -> tuple[list[Any], list[list[str]]]:
    """Return stored values and the reasons of each row; str values come as a CSV's bytes."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    checked = check_values("x", column, pa.array(raw, kind or pa.binary()))
    assert checked.values.type == storage_type(Column(column.type))
    reasons = [
        [reason for reason, mask in checked.faults.items() if mask[index]] for index in range(len(values))
    ]
    return checked.values.to_pylist(), reasons


NUMBER, INTEGER, BOOLEAN, TEXT = Column("number"), Column("integer"), Column("boolean"), Column("text")
SEX = Column("category", categories=("female", "male"))


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        (NUMBER, "1", 1.0),
        (NUMBER, "-1.5e3", -1500.0),
        (NUMBER, "+2", 2.0),
        (NUMBER, " 3.25 ", 3.25),
        (NUMBER, ".5", 0.5),
        (NUMBER, "5.", 5.0),
        (NUMBER, "1e-400", 0.0),
        (INTEGER, "63", 63),
        (INTEGER, "63.0", 63),
        (INTEGER, "-7", -7),
        (INTEGER, "+7", 7),
        (INTEGER, "1e3", 1000),
        (INTEGER, "007", 7),
        (INTEGER, "123456789012345678", 123456789012345678),
        (BOOLEAN, "TRUE", True),
        (BOOLEAN, "no", False),
        (BOOLEAN, "1", True),
        (BOOLEAN, " 0 ", False),
        (SEX, "male", "male"),
        (SEX, " male ", "male"),
        (TEXT, " kept as it is ", " kept as it is "),
        (TEXT, "病历", "病历"),
        (TEXT, "a\nb", "a\nb"),
    ],
)
def test_good_values(column: Column, text: str, value: object) -> None:
    assert check(column, text) == ([value], [[]])


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        (NUMBER, "abc", "not a number"),
        (NUMBER, "1,5", "not a number"),
        (NUMBER, "0x10", "not a number"),
        (NUMBER, "1_000", "not a number"),
        (NUMBER, "١", "not a number"),
        (NUMBER, "?", "not a number"),
        (NUMBER, "NaN", "not finite"),
        (NUMBER, "nan", "not finite"),
        (NUMBER, "-inf", "not finite"),
        (NUMBER, "Infinity", "not finite"),
        (NUMBER, "1e400", "not finite"),
        (INTEGER, "0x10", "not a number"),
        (INTEGER, "63.5", "whole number"),
        (INTEGER, "1e300", "whole number"),
        (INTEGER, "9223372036854775808", "whole number"),
        (INTEGER, "9007199254740993.0", "whole number"),
        (INTEGER, "NaN", "not finite"),
        (BOOLEAN, "maybe", "true or false"),
        (BOOLEAN, "2", "true or false"),
        (SEX, "Male", "categories"),
        (SEX, "x", "categories"),
        (TEXT, "x" * (MAX_TEXT_BYTES + 1), "longer"),
        (NUMBER, "", "missing"),
        (INTEGER, "  ", "missing"),
        (TEXT, "", "missing"),
        (SEX, "", "missing"),
        (BOOLEAN, "", "missing"),
        (Column("number", bounds=(0, 1)), "1.0000001", "bounds"),
        (Column("number", bounds=(0, 1)), "-1e-300", "bounds"),
        (Column("integer", bounds=(0, 1)), "2", "bounds"),
    ],
)
def test_bad_values_have_one_reason_and_are_taken_out(column: Column, text: str, reason: str) -> None:
    good = {"number": "0.5", "integer": "1", "boolean": "yes", "category": "male", "text": "t"}[column.type]
    values, reasons = check(column, good, text, good)
    assert [len(r) for r in reasons] == [0, 1, 0]
    assert reason in reasons[1][0]
    assert values[1] is None
    assert values[0] == values[2] is not None


def test_bounds_are_part_of_the_range() -> None:
    column = Column("number", bounds=(-1.5, 1.5))
    assert check(column, "-1.5", "1.5")[1] == [[], []]


def test_missing_may_be_allowed() -> None:
    column = Column("number", bounds=(0, 1), missing="allow")
    assert check(column, "", "0.5", " ") == ([None, 0.5, None], [[], [], []])
    assert check(Column("boolean", missing="allow"), "", "no") == ([None, False], [[], []])
    assert check(Column("category", categories=("a",), missing="allow"), "", "a") == ([None, "a"], [[], []])


def test_bytes_that_are_not_utf8() -> None:
    for column in (NUMBER, INTEGER, SEX, TEXT, BOOLEAN):
        _, reasons = check(column, b"\xff\xfe", b"caf\xe9")
        assert reasons == [["the value is not UTF-8 text"]] * 2


@pytest.mark.parametrize(
    ("column", "kind", "given_values", "stored"),
    [
        (NUMBER, pa.float32(), [1.5, 2.0], [1.5, 2.0]),
        (NUMBER, pa.int16(), [1, 2], [1.0, 2.0]),
        (NUMBER, pa.decimal128(5, 2), [decimal.Decimal("1.25")], [1.25]),
        (NUMBER, pa.string(), ["1.5", " 2"], [1.5, 2.0]),
        (NUMBER, pa.large_string(), ["1.5"], [1.5]),
        (INTEGER, pa.float64(), [63.0], [63]),
        (INTEGER, pa.uint8(), [200], [200]),
        (INTEGER, pa.int64(), [2**62], [2**62]),
        (BOOLEAN, pa.bool_(), [True, False], [True, False]),
        (BOOLEAN, pa.int8(), [1, 0], [True, False]),
        (SEX, pa.dictionary(pa.int8(), pa.string()), ["male", "female"], ["male", "female"]),
        (Column("category", categories=("1", "2")), pa.int32(), [1, 2], ["1", "2"]),
        (TEXT, pa.int64(), [7], ["7"]),
        (TEXT, pa.date32(), [datetime.date(2026, 1, 2)], ["2026-01-02"]),
    ],
)
def test_typed_values(column: Column, kind: pa.DataType, given_values: list[Any], stored: list[Any]) -> None:
    checked = check_values(
        "x",
        column,
        pa.array(given_values).cast(kind)
        if "dict" not in str(kind)
        else pa.array(given_values).dictionary_encode(),
    )
    assert checked.values.to_pylist() == stored
    assert not checked.faults


@pytest.mark.parametrize(
    ("column", "array", "reason"),
    [
        (NUMBER, pa.array([1.0, float("nan")]), "not finite"),
        (NUMBER, pa.array([1.0, float("inf")]), "not finite"),
        (NUMBER, pa.array([1.0, None]), "missing"),
        (INTEGER, pa.array([1.0, 1.5]), "whole"),
        (INTEGER, pa.array([1, 2**64 - 1], pa.uint64()), "whole"),
        (BOOLEAN, pa.array([1, 5]), "true or false"),
        (SEX, pa.array(["male", "other"]), "categories"),
    ],
)
def test_bad_typed_values(column: Column, array: pa.Array, reason: str) -> None:
    faults = check_values("x", column, array).faults
    assert [(reason in name, mask.tolist()) for name, mask in faults.items()] == [(True, [False, True])]


@pytest.mark.parametrize(
    ("column", "array"),
    [
        (NUMBER, pa.array([[1.0]])),
        (NUMBER, pa.array([{"a": 1}])),
        (NUMBER, pa.array([True])),
        (NUMBER, pa.array([datetime.date(2026, 1, 2)])),
        (TEXT, pa.array([1.5])),
        (TEXT, pa.array([[1]])),
        (SEX, pa.array([1.5])),
        (BOOLEAN, pa.array([1.5])),
    ],
)
def test_types_that_do_not_fit_are_refused_with_the_column(column: Column, array: pa.Array) -> None:
    with pytest.raises(SchemaError) as caught:
        check_values("x", column, array)
    assert caught.value.column == "x"


def test_consent_is_a_clear_yes() -> None:
    raw = [b"yes", b"YES", b" true ", b"1", b"no", b"", b"y", b"ok", b"0", b"true!", b"\xff"]
    assert consents(pa.array(raw, pa.binary())).tolist() == [True] * 4 + [False] * 7
    assert consents(pa.array([True, False, None])).tolist() == [True, False, False]
    assert consents(pa.array([1, 0, 2])).tolist() == [True, False, False]
    assert consents(pa.array([[1]])).tolist() == [False]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_written_by_python_are_read_exactly(values: list[float]) -> None:
    stored, reasons = check(NUMBER, *map(repr, values))
    assert [value.hex() for value in stored] == [value.hex() for value in values]
    assert not any(reasons)


@given(st.lists(st.integers(-(2**53) + 1, 2**53 - 1)))
def test_integers_are_read_exactly(values: list[int]) -> None:
    assert check(INTEGER, *map(str, values))[0] == values


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=12)),
    st.sampled_from([NUMBER, INTEGER, BOOLEAN, SEX]),
)
def test_whatever_the_text_a_value_stands_or_has_one_reason(texts: list[str], column: Column) -> None:
    values, reasons = check(column, *texts)
    for value, why in zip(values, reasons, strict=True):
        assert (value is None) == (len(why) == 1)
        assert len(why) < 2


@given(st.lists(st.one_of(st.none(), st.floats(), st.floats(0, 1))), st.booleans())
def test_typed_numbers_agree_with_a_plain_loop(values: list[float | None], allowed: bool) -> None:
    column = Column("number", bounds=(0.0, 1.0), missing="allow" if allowed else "refuse")
    checked = check_values("x", column, pa.array(values, pa.float64()))
    bad = np.any([*checked.faults.values(), np.zeros(len(values), dtype=bool)], axis=0)
    expected = [not allowed if value is None else not 0 <= value <= 1 for value in values]
    assert bad.tolist() == expected
