from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, PlanError, ProtocolError
from cloister.secagg import Encoding
from cloister.secagg.encoding import _BLOCK


def by_hand(value: float, encoding: Encoding) -> int:
    """Clamp and round half to even in exact arithmetic; the independent derivation."""
    clamped = max(Fraction(-encoding.value_range), min(Fraction(encoding.value_range), Fraction(value)))
    return round(clamped * Fraction(2) ** encoding.exponent)


ranges = st.floats(1e-6, 1e6)


@given(bits=st.sampled_from([16, 32]), parties=st.integers(1, 100), value_range=ranges)
def test_the_unit_is_the_finest_power_of_two_that_cannot_overflow(bits, parties, value_range):
    encoding = Encoding(bits, parties, value_range)
    limit = 2 ** (bits - 1)
    assert parties * encoding.largest < limit
    assert parties * (Fraction(value_range) * Fraction(2) ** (encoding.exponent + 1)) > limit - 1 - parties
    assert Fraction(encoding.unit) == Fraction(2) ** -encoding.exponent


@given(
    bits=st.sampled_from([16, 32]),
    value_range=ranges,
    rows=st.integers(1, 8).flatmap(
        lambda n: st.lists(st.lists(st.floats(-2, 2), min_size=3, max_size=3), min_size=n, max_size=n)
    ),
)
def test_a_sum_is_exact_bit_by_bit(bits, value_range, rows):
    encoding = Encoding(bits, len(rows), value_range)
    vectors = [np.array(row) * value_range for row in rows]
    total = np.zeros(3, dtype=f"u{bits // 8}")
    for vector in vectors:
        total += encoding.encode(vector)
    integers = [sum(by_hand(v, encoding) for v in column.tolist()) for column in np.array(vectors).T]
    assert total.tolist() == [value % 2**bits for value in integers]
    decoded = encoding.decode_sum(total, len(rows))
    assert [Fraction(v) for v in decoded.tolist()] == [v * Fraction(encoding.unit) for v in integers]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_blocks_and_dtypes_agree_with_exact_arithmetic(bits, dtype):
    encoding = Encoding(bits, 7, 1.0)
    vector = np.random.default_rng(1).normal(0, 0.6, 2 * _BLOCK + 77).astype(dtype)
    vector[_BLOCK : 2 * _BLOCK].clip(
        -0.99, 0.99, out=vector[_BLOCK : 2 * _BLOCK]
    )  # one block without clamping
    before = vector.copy()
    encoded = encoding.encode(vector)
    assert np.array_equal(vector, before)
    some = np.r_[0:50, _BLOCK - 5 : _BLOCK + 5, vector.size - 50 : vector.size]
    signed = encoded.view(f"i{bits // 8}")[some].tolist()
    assert signed == [by_hand(float(v), encoding) for v in vector[some]]
    assert encoding.clamped(vector) == int(np.count_nonzero(np.abs(vector) > 1.0)) > 0


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_the_unit_is_right_at_the_very_edge(step):
    """Where a logarithm would round: a range that fits exactly, and its neighbours."""
    value_range = 32767 / 32
    if step:
        value_range = float(np.nextafter(value_range, step * np.inf))
    encoding = Encoding(16, 1, value_range)
    assert encoding.exponent == (4 if step > 0 else 5)
    assert encoding.largest <= 32767


def test_halves_go_to_even():
    encoding = Encoding(16, 1, 16383.0)
    assert encoding.unit == 0.5
    halves = np.array([0.25, 0.75, 1.25, -0.25, -0.75]) * 1.0
    assert encoding.encode(halves).view(np.int16).tolist() == [0, 2, 2, 0, -2]


def test_the_range_itself_is_not_clamped():
    encoding = Encoding(32, 3, 0.7)
    edge = np.array([0.7, -0.7, np.nextafter(0.7, 1), 5.0])
    assert encoding.clamped(edge) == 2
    assert (
        encoding.encode(edge).view(np.int32).tolist()
        == [encoding.largest, -encoding.largest] + [encoding.largest] * 2
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    vector = np.zeros(_BLOCK + 9)
    vector[-1] = bad
    for method in (Encoding(32, 3, 1.0).encode, Encoding(32, 3, 1.0).clamped):
        with pytest.raises(InputError, match="NaN or an infinity"):
            method(vector)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros(3, dtype=int), np.zeros(3, dtype=np.float16)])
def test_only_float_vectors_are_encoded(wrong):
    with pytest.raises(InputError):
        Encoding(32, 3, 1.0).encode(wrong)


@pytest.mark.parametrize(
    ("bits", "parties", "value_range"),
    [
        (8, 32, 1.0),
        (24, 3, 1.0),
        (64, 3, 1.0),
        (32, 0, 1.0),
        (16, 2**15, 1.0),
        (32, 3, 0.0),
        (32, 3, -1.0),
        (32, 3, np.nan),
        (32, 3, np.inf),
    ],
)
def test_plans_that_overflow_or_make_no_sense_are_refused(bits, parties, value_range):
    with pytest.raises(PlanError):
        Encoding(bits, parties, value_range)


@settings(max_examples=50)
@given(parties=st.integers(1, 20), bits=st.sampled_from([16, 32]))
def test_all_at_the_edge_do_not_overflow(parties, bits):
    encoding = Encoding(bits, parties, 1.0)
    total = sum(
        (encoding.encode(np.array([1.0, -1.0])) for _ in range(parties)), np.zeros(2, dtype=f"u{bits // 8}")
    )
    assert encoding.decode_sum(total, parties).tolist() == [
        parties * encoding.largest * encoding.unit,
        -parties * encoding.largest * encoding.unit,
    ]


def test_a_total_that_cannot_be_is_refused():
    encoding = Encoding(32, 4, 1.0)
    good = encoding.encode(np.array([1.0, -1.0])) * np.uint32(2)
    assert encoding.decode_sum(good, 2).tolist() == [2.0, -2.0]
    for wrong in (good + np.uint32(1), good - np.uint32(1)):
        with pytest.raises(ProtocolError, match="outside what its sites can have sent"):
            encoding.decode_sum(wrong, 2)
    for count in (0, 5):
        with pytest.raises(InputError):
            encoding.decode_sum(good, count)
    with pytest.raises(InputError):
        encoding.decode_sum(good.astype(np.uint16), 2)


def test_bytes_and_back():
    encoding = Encoding(16, 4, 1.0)
    vector = encoding.encode(np.array([0.5, -0.5]))
    data = encoding.to_bytes(vector)
    assert data == vector.astype("<u2").tobytes()
    assert np.array_equal(encoding.from_bytes(data, 2), vector)
    with pytest.raises(ProtocolError):
        encoding.from_bytes(data, 3)
