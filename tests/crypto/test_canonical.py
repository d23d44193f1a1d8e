from __future__ import annotations

import json
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.crypto.vectors import read

from cloister.crypto import canonical_bytes
from cloister.errors import InputError

VECTORS = read("canonical")
SAFE = st.integers(-(2**53), 2**53)
VALUES = st.recursive(
    st.none() | st.booleans() | SAFE | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(("bits", "text"), VECTORS["numbers"])
def test_number_vectors(bits: str, text: str) -> None:
    assert canonical_bytes(struct.unpack(">d", bytes.fromhex(bits))[0]).decode() == text


@pytest.mark.parametrize("bits", VECTORS["not_numbers"])
def test_numbers_without_a_form(bits: str) -> None:
    with pytest.raises(InputError, match="NaN and infinity"):
        canonical_bytes({"x": [struct.unpack(">d", bytes.fromhex(bits))[0]]})


def test_value_vectors() -> None:
    assert canonical_bytes(json.loads(VECTORS["input"])).decode() == VECTORS["output"]
    ordered = json.loads(canonical_bytes(json.loads(VECTORS["sorted_input"])))
    assert list(ordered.values()) == VECTORS["sorted_values"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive(value: float) -> None:
    assert math.copysign(1, value) * float(canonical_bytes(abs(value))) == value
    assert float(canonical_bytes(value)) == value


@given(VALUES)
def test_a_value_survives_and_its_form_is_stable(value: Any) -> None:
    try:
        data = canonical_bytes(value)
    except InputError:
        assert "\\ud" in ascii(value)  # half a surrogate pair
        return
    parsed = json.loads(data, parse_int=float)  # JSON has one kind of number
    assert parsed == value
    assert canonical_bytes(parsed) == data


def test_structs_with_bytes_become_base64() -> None:
    class Inner(msgspec.Struct):
        data: bytes

    class Outer(msgspec.Struct, tag="outer/v1", tag_field="type"):
        b: int
        a: Inner

    assert canonical_bytes(Outer(1, Inner(b"\xff\xfe"))) == b'{"a":{"data":"//4="},"b":1,"type":"outer/v1"}'
    assert canonical_bytes([Inner(b"")]) == b'[{"data":""}]'


@pytest.mark.parametrize(
    "value", [2**53 + 1, -(2**53) - 1, b"x", {1: 2}, {"a": {None: 1}}, object(), {1, 2}, 1j]
)
def test_what_has_no_form_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="canonical form"):
        canonical_bytes(value)


@pytest.mark.parametrize("value", ["\ud800", {"\udc00": 1}])
def test_half_surrogates_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="surrogate"):
        canonical_bytes(value)


def test_depth_is_bounded() -> None:
    value: Any = 1
    for _ in range(64):
        value = [value]
    assert canonical_bytes(value) == b"[" * 64 + b"1" + b"]" * 64
    with pytest.raises(InputError, match="deep"):
        canonical_bytes([value])


def test_integers_and_integral_floats_have_one_form() -> None:
    assert (
        canonical_bytes([1, 1.0, -0.0, 10**15, 1e15, True])
        == b"[1,1,0,1000000000000000,1000000000000000,true]"
    )
