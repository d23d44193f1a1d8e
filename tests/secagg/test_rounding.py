"""Rounding at random in the ring of 8 bits, and ranges of their own for stretches of the vector."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError, ProtocolError
from cloister.secagg import Encoding
from cloister.secagg.encoding import _BLOCK

KEY = bytes(range(32))
DRAWS = 200_000
BLOCK_WORDS = _BLOCK // 2


def words_of(key: bytes, count: int) -> list[int]:
    """The 32-bit words that rounding reads, low half of each 64-bit word first; an independent derivation."""
    random = StreamRandom(key)
    return [
        half for word in random.words((count + 1) // 2).tolist() for half in (word & 0xFFFFFFFF, word >> 32)
    ]


def by_hand(value: float, word: int, encoding: Encoding) -> int:
    """floor(x + (w + 1/2) / 2**32) in exact arithmetic, x the clamped value in units."""
    clamped = max(Fraction(-encoding.value_range), min(Fraction(encoding.value_range), Fraction(value)))
    return math.floor(clamped * Fraction(2) ** encoding.exponent + Fraction(2 * word + 1, 2**33))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_follows_the_words_that_are_drawn(dtype: type) -> None:
    encoding = Encoding(8, 5, 1.0)
    vector = np.random.default_rng(1).normal(0, 0.5, 2 * _BLOCK + 77).astype(dtype)
    before = vector.copy()
    encoded = encoding.encode(vector, random=StreamRandom(KEY)).view(np.int8)
    assert np.array_equal(vector, before)
    words = words_of(KEY, vector.size)
    some = [*range(300), *range(_BLOCK - 150, _BLOCK + 150), *range(vector.size - 50, vector.size)]
    assert encoded[some].tolist() == [by_hand(float(vector[i]), words[i], encoding) for i in some]
    assert encoding.clamped(vector) == int(np.count_nonzero(np.abs(vector) > 1.0)) > 0


@pytest.mark.parametrize("part", [0.0001, 0.02, 0.25, 0.5, 0.7, 0.96, 0.9999])
@pytest.mark.parametrize("whole", [-16, -1, 0, 1, 15])
def test_a_value_is_kept_on_average(part: float, whole: int) -> None:
    """The number of values that go up is binomial: outside 7 deviations less than once in 10^10 tests, by
    Bernstein's bound."""
    encoding = Encoding(8, 5, 1.0)
    values = np.full(DRAWS, (whole + part) * encoding.unit)
    encoded = encoding.encode(values).view(np.int8)
    assert set(np.unique(encoded).tolist()) <= {whole, whole + 1}
    deviation = math.sqrt(DRAWS * part * (1 - part))
    assert abs(np.count_nonzero(encoded == whole + 1) - DRAWS * part) <= 7 * deviation + 17


def test_neighbours_are_rounded_apart() -> None:
    """Were one word used for two elements, their roundings would agree; they agree half of the time."""
    encoded = Encoding(8, 5, 1.0).encode(np.full(DRAWS, 0.5 / 16)).view(np.int8)
    for distance in (1, 2, BLOCK_WORDS, _BLOCK):
        agreed = np.count_nonzero(encoded[distance:] == encoded[:-distance])
        assert abs(agreed - (DRAWS - distance) / 2) < 7 * math.sqrt(DRAWS) / 2


def test_whole_numbers_of_units_stay() -> None:
    encoding = Encoding(8, 3, 1.0)
    whole = np.tile(np.arange(-encoding.largest, encoding.largest + 1), 500)
    assert np.array_equal(encoding.encode(whole * encoding.unit).view(np.int8), whole)


def test_randomness_is_fresh_in_each_call() -> None:
    encoding, halves = Encoding(8, 3, 1.0), np.full(1000, 0.5 / 32)
    assert not np.array_equal(encoding.encode(halves), encoding.encode(halves))
    again = [encoding.encode(halves, random=StreamRandom(KEY)) for _ in range(2)]
    assert np.array_equal(*again)


@settings(deadline=None)
@given(parties=st.integers(1, 31), value_range=st.floats(1e-6, 1e6), key=st.binary(min_size=32, max_size=32))
def test_all_at_the_edge_do_not_overflow(parties: int, value_range: float, key: bytes) -> None:
    encoding = Encoding(8, parties, value_range)
    assert parties * encoding.largest <= 127
    edge = np.tile([value_range, -value_range, 1e300, -1e300], 64)
    encoded = encoding.encode(edge, random=StreamRandom(key)).view(np.int8)
    assert int(np.abs(encoded.astype(int)).max()) <= encoding.largest
    total = (encoded.astype(int) * parties).astype(np.int8)
    assert np.array_equal(
        encoding.decode_sum(total.view(np.uint8), parties), encoded * (parties * encoding.unit)
    )


@pytest.mark.parametrize(("parties", "left"), [(31, 4), (21, 6), (5, 25), (3, 42)])
def test_so_many_values_are_left(parties: int, left: int) -> None:
    assert Encoding(8, parties, float(left)).largest == left


@pytest.mark.parametrize(
    ("parties", "message"), [(32, "leaves each of 32 sites 3 values"), (100, "1 value on"), (128, "128 vec")]
)
def test_more_than_31_sites_are_refused(parties: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Encoding(8, parties, 1.0)


PIECES = ((3, 0.5), (4, 3.0), (11, 0.01))


def ranged(bits: int, parties: int) -> Encoding:
    return Encoding(bits, parties, 8.0, PIECES)


def grid_at(index: int, encoding: Encoding) -> Encoding:
    """The encoding of one element, as one that knows no pieces."""
    own = next((value_range for stop, value_range in PIECES if index < stop), encoding.value_range)
    return Encoding(encoding.bits, encoding.parties, own)


@settings(deadline=None)
@given(
    bits=st.sampled_from([8, 16, 32]),
    parties=st.integers(1, 6),
    start=st.integers(0, 14),
    length=st.integers(0, 16),
    seed=st.integers(0, 2**32),
)
def test_a_slice_of_a_sum_is_the_sum_of_the_rounded_values(
    bits: int, parties: int, start: int, length: int, seed: int
) -> None:
    encoding = ranged(bits, parties)
    random = np.random.default_rng(seed)
    vectors = [random.normal(0, 1, length) * random.choice([0.01, 1, 10], length) for _ in range(parties)]
    rounded = [encoding.encode(vector, start) for vector in vectors]
    total = np.zeros(length, encoding.dtype)
    for each in rounded:
        total += each
    exact = [
        sum(int(each.view(f"i{bits // 8}")[i]) for each in rounded)
        * Fraction(grid_at(start + i, encoding).unit)
        for i in range(length)
    ]
    assert [Fraction(value) for value in encoding.decode_sum(total, parties, start).tolist()] == exact
    cut = int(random.integers(0, length + 1))
    halves = [
        encoding.decode_sum(total[:cut], parties, start),
        encoding.decode_sum(total[cut:], parties, start + cut),
    ]
    assert np.array_equal(np.concatenate(halves), encoding.decode_sum(total, parties, start))
    for vector, each in zip(vectors, rounded, strict=True):
        for i in range(length):
            alone = grid_at(start + i, encoding)
            kept = np.clip(vector[i], -alone.value_range, alone.value_range)
            assert abs(each.view(f"i{bits // 8}")[i] * alone.unit - kept) < alone.unit
    assert encoding.clamped(vectors[0], start) == sum(
        grid_at(start + i, encoding).clamped(vectors[0][i : i + 1]) for i in range(length)
    )


def test_slices_of_16_and_32_bits_are_encoded_as_the_whole() -> None:
    vector = np.random.default_rng(3).normal(0, 1, 20)
    for bits in (16, 32):
        encoding = ranged(bits, 4)
        parts = [encoding.encode(vector[at : at + 3], at) for at in range(0, 20, 3)]
        assert np.array_equal(np.concatenate(parts), encoding.encode(vector))


def test_pieces_are_what_was_written() -> None:
    found = [(first, end, fixed.value_range) for first, end, fixed in ranged(16, 3).pieces(1, 20)]
    assert found == [(1, 3, 0.5), (3, 4, 3.0), (4, 11, 0.01), (11, 20, 8.0)]
    assert list(ranged(16, 3).pieces(5, 5)) == []


@pytest.mark.parametrize("index", [0, 3, 4, 11])
def test_each_piece_has_its_own_bound_on_a_total(index: int) -> None:
    encoding = ranged(8, 5)
    bound = 2 * grid_at(index, encoding).largest
    total = np.zeros(12, np.int8)
    total[index] = bound
    assert encoding.decode_sum(total.view(np.uint8), 2)[index] > 0
    total[index] = -bound - 1
    with pytest.raises(ProtocolError, match="outside what its sites can have sent"):
        encoding.decode_sum(total.view(np.uint8), 2)


@pytest.mark.parametrize("ranges", [((3, 1.0), (3, 2.0)), ((0, 1.0),), ((5, 1.0), (4, 1.0))])
def test_pieces_out_of_order_are_refused(ranges: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(InputError, match="do not follow"):
        Encoding(16, 3, 1.0, ranges)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_a_piece_without_a_sensible_range_is_refused(wrong: float) -> None:
    with pytest.raises(PlanError, match="positive and finite"):
        Encoding(16, 3, 1.0, ((2, wrong),))
