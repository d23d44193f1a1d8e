from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.crypto.vectors import read

from cloister.crypto import Keystream, StreamRandom, apply_masks
from cloister.crypto.prg import BLOCK_BYTES, _log
from cloister.errors import InputError

KEY = bytes(range(32))
OTHER = bytes(32)
RINGS = [np.uint8, np.uint16, np.uint32]


def by_ctr(key: bytes, length: int) -> bytes:
    """The definition, by AES-256-CTR alone."""
    output = b""
    block = 0
    while len(output) < length:
        counter = block.to_bytes(12, "big") + b"\x00\x00\x00\x02"
        output += Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(BLOCK_BYTES))
        block += 1
    return output[:length]


def test_published_vector() -> None:
    vector = read("aes_gcm")["keystream"]
    assert Keystream(bytes.fromhex(vector["key"])).bytes(16).hex() == vector["first_block"]


@pytest.mark.parametrize(
    "length", [0, 1, 15, 16, 17, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 5]
)
def test_the_stream_is_aes_ctr(length: int) -> None:
    assert Keystream(KEY).bytes(length) == by_ctr(KEY, length)


@given(st.integers(0, 3 * BLOCK_BYTES), st.integers(0, 2 * BLOCK_BYTES))
@settings(max_examples=30, deadline=None)
def test_offsets_read_the_same_stream(offset: int, length: int) -> None:
    whole = Keystream(KEY).bytes(5 * BLOCK_BYTES)
    assert Keystream(KEY).bytes(length, offset) == whole[offset : offset + length]


def test_the_stream_stays_as_it_is() -> None:
    """Masks of two versions of this package must cancel: these bytes never change."""
    digest = hashlib.sha256(Keystream(KEY).bytes(2 * BLOCK_BYTES + 7)).hexdigest()
    assert digest == hashlib.sha256(by_ctr(KEY, 2 * BLOCK_BYTES + 7)).hexdigest()
    assert digest == "85efe97f1ffc54ddf1a0ac8f5442c3f13e7ec80f22d728004f1f8979902ec133"


def masked(target: Any, keys: list[tuple[bytes, int]]) -> Any:
    """The definition of a mask, in Python integers by numpy's wrap-around."""
    total = target.copy()
    for key, sign in keys:
        stream = np.frombuffer(by_ctr(key, target.nbytes), target.dtype.newbyteorder("<")).astype(
            target.dtype
        )
        total = total + stream if sign == 1 else total - stream
    return total


@pytest.mark.parametrize("dtype", RINGS)
@pytest.mark.parametrize("size", [0, 1, 7, 1000, BLOCK_BYTES, BLOCK_BYTES + 3])
def test_masks_are_added_in_the_ring(dtype: type, size: int) -> None:
    target = np.arange(size).astype(dtype)
    keys = [(KEY, 1), (OTHER, -1), (b"\x05" * 32, -1)]
    expected = masked(target, keys)
    apply_masks(target, keys)
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("dtype", RINGS)
def test_opposite_masks_cancel(dtype: type) -> None:
    target = np.arange(100_000).astype(dtype)
    before = target.copy()
    apply_masks(target, [(KEY, 1), (OTHER, -1)])
    assert not np.array_equal(target, before)
    Keystream(KEY).add_into(target, -1)
    Keystream(OTHER).add_into(target, 1)
    assert np.array_equal(target, before)


@pytest.mark.parametrize("dtype", RINGS)
@given(cuts=st.lists(st.integers(0, 150_000), max_size=4))
@settings(max_examples=15, deadline=None)
def test_a_vector_may_arrive_in_pieces(dtype: type, cuts: list[int]) -> None:
    whole = np.zeros(150_000, dtype)
    pieces = whole.copy()
    apply_masks(whole, [(KEY, 1)])
    edges = [0, *sorted(cuts), 150_000]
    for start, end in itertools.pairwise(edges):
        apply_masks(pieces[start:end], [(KEY, 1)], offset=start)
    assert np.array_equal(pieces, whole)


def test_matrices_are_masked_in_place_without_a_copy() -> None:
    target = np.zeros((30, 50), np.uint32)
    address = target.ctypes.data
    apply_masks(target, [(KEY, 1)])
    assert target.ctypes.data == address
    assert np.array_equal(target.reshape(-1), np.frombuffer(by_ctr(KEY, 6000), "<u4"))


@pytest.mark.parametrize(
    "target",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.uint64),
        np.zeros(4, np.float32),
        np.zeros(8, np.uint32)[::2],
        np.zeros((4, 4), np.uint32).T,
        np.zeros(4, np.dtype(np.uint32).newbyteorder(">")),
    ],
)
def test_other_arrays_are_refused(target: Any) -> None:
    with pytest.raises(InputError, match="uint8, uint16 or uint32"):
        apply_masks(target, [(KEY, 1)])


def test_nothing_is_added_when_an_argument_is_wrong() -> None:
    target = np.zeros(4, np.uint32)
    frozen = target.copy()
    frozen.flags.writeable = False
    with pytest.raises(InputError, match="writeable"):
        apply_masks(frozen, [(KEY, 1)])
    for keys, offset in (([(KEY, 1), (KEY, 2)], 0), ([(KEY, 1), (b"short", 1)], 0), ([(KEY, 1)], -1)):
        with pytest.raises(InputError):
            apply_masks(target, keys, offset)
    assert not target.any()


@pytest.mark.parametrize(("length", "offset"), [(-1, 0), (1, -1), (2**62, 1)])
def test_ranges_are_checked(length: int, offset: int) -> None:
    with pytest.raises(InputError):
        Keystream(KEY).bytes(length, offset)


def test_a_random_stream_depends_only_on_its_key() -> None:
    one, two = StreamRandom(KEY), StreamRandom(KEY)
    assert np.array_equal(one.uniform(10), two.uniform(10))
    assert np.array_equal(one.normal((3, 4)), two.normal((3, 4)))
    assert np.array_equal(one.permutation(50), two.permutation(50))
    assert not np.array_equal(StreamRandom.system().uniform(4), StreamRandom.system().uniform(4))


def test_draws_do_not_depend_on_how_they_are_grouped() -> None:
    single = StreamRandom(KEY)
    assert np.array_equal(
        StreamRandom(KEY).words(5000), np.concatenate([single.words(n) for n in (1, 0, 4000, 999)])
    )


def test_words_are_the_stream() -> None:
    assert StreamRandom(KEY).words(100_000).tobytes() == by_ctr(KEY, 800_000)


def test_seeds_and_purposes_are_separate() -> None:
    draws = [StreamRandom.from_seed(seed, purpose).uniform(4) for seed in (0, 1) for purpose in ("a", "b")]
    assert len({draw.tobytes() for draw in draws}) == 4
    for seed, purpose in ((-1, "a"), (2**64, "a"), (1, "")):
        with pytest.raises(InputError):
            StreamRandom.from_seed(seed, purpose)


def test_the_numbers_stay_as_they_are() -> None:
    """An initial model is pinned by its digest: one key gives the same bits on every machine and in every version."""
    random = StreamRandom(KEY)
    state = hashlib.sha256()
    for draw in (
        random.uniform((10, 3)),
        random.normal(1000),
        random.integers(7, 100),
        random.permutation(100),
    ):
        state.update(draw.tobytes())
    assert state.hexdigest() == "7aa4d1c0b2ab647bc2cf609b84292bfd05fb587661b434e95fc63604bf309434"


def test_uniform_is_uniform() -> None:
    draws = StreamRandom(KEY).uniform(100_000)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    assert 40 < ((counts - 1000) ** 2 / 1000).sum() < 180  # chi-square, 99 degrees of freedom
    assert StreamRandom(KEY).uniform().shape == ()


def test_normal_is_normal() -> None:
    draws = StreamRandom(KEY).normal(100_001)
    assert draws.shape == (100_001,)
    normal = statistics.NormalDist()
    ordered = np.sort(draws)
    empirical = (np.arange(draws.size) + 0.5) / draws.size
    exact = np.array([normal.cdf(x) for x in ordered[::100]])
    assert np.abs(exact - empirical[::100]).max() < 0.006  # Kolmogorov-Smirnov at 0.1 %
    assert StreamRandom(KEY).normal((0, 3)).shape == (0, 3)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.015


def test_the_logarithm_is_accurate() -> None:
    values = np.concatenate(
        [np.geomspace(1e-300, 1e300, 5000), 1 + np.linspace(-1e-3, 1e-3, 1001), [2.0**-106]]
    )
    exact = np.array([math.log(value) for value in values])
    assert (np.abs(_log(values) - exact) <= 1e-15 * np.maximum(1.0, np.abs(exact))).all()


def test_integers_are_uniform_and_in_range() -> None:
    draws = StreamRandom(KEY).integers(7, 70_000)
    counts = np.bincount(draws, minlength=7)
    assert counts.size == 7
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 25
    bounds = np.array([1, 2, 1000, 2**63 - 1])
    several = StreamRandom(KEY).integers(bounds, (500, 4))
    assert several.dtype == np.int64
    assert (several >= 0).all()
    assert (several < bounds).all()
    assert not several[:, 0].any()


def test_biased_words_are_drawn_again() -> None:
    high = 2**62 + 1  # of 2**64 words, 2**62 - 3 are left over and redrawn
    random, words = StreamRandom(KEY), StreamRandom(KEY).words(4000)
    limit = 2**64 - 2**64 % high
    accepted = [int(word) % high for word in words[:1000] if int(word) < limit]
    draws = random.integers(high, 1000)
    assert len(accepted) < 900
    assert [int(draw) for draw, word in zip(draws, words, strict=False) if int(word) < limit] == accepted


@pytest.mark.parametrize("high", [0, -1, np.array([3, 0])])
def test_bounds_are_checked(high: Any) -> None:
    with pytest.raises(InputError, match="bound"):
        StreamRandom(KEY).integers(high, 2)
    with pytest.raises((InputError, OverflowError)):
        StreamRandom(KEY).integers(2**63, 2)


def test_a_permutation_is_one() -> None:
    order = StreamRandom(KEY).permutation(1000)
    assert sorted(order) == list(range(1000))
    assert list(order) != list(range(1000))
    assert StreamRandom(KEY).permutation(0).size == 0
