from __future__ import annotations

import numpy as np
import pytest
from tests.learning.private.checks import check_poisson
from tests.learning.private.worlds import Array, stream

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.private import poisson_rows


class Scripted:
    """A stream whose words a test writes."""

    def __init__(self, *answers: list[int]) -> None:
        self._answers = [np.array(words, dtype=np.uint64) for words in answers]

    def words(self, count: int) -> Array:
        words = self._answers.pop(0)
        assert len(words) == count
        return words


def test_is_poisson() -> None:
    check_poisson(poisson_rows)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.25, 2.0**-9, 0.3, 1e-3, 1 - 2.0**-40, 1e-9])
def test_the_law_is_exact(rate: float) -> None:
    """Count, over all first bytes and the threshold's own 56 bits, how many 64-bit numbers are kept."""
    threshold = int(rate * 2**64)
    assert threshold == (threshold / 2**64) * 2**64
    assert threshold / 2**64 <= rate
    if threshold == 2**64:
        assert poisson_rows(5, rate, Scripted()).tolist() == list(range(5))  # type: ignore[arg-type]
        return
    first, rest = divmod(threshold, 2**56)
    every_byte = np.arange(256, dtype=np.uint8).view(np.uint64).tolist()
    kept = 0
    if rest:
        for tail, inside in ((rest - 1, True), (rest, False)):  # the last one below, the first one not
            found = poisson_rows(256, rate, Scripted(every_byte, [tail << 8])).tolist()  # type: ignore[arg-type]
            assert found == list(range(first + inside))
        kept = rest
    else:
        assert poisson_rows(256, rate, Scripted(every_byte)).tolist() == list(range(first))  # type: ignore[arg-type]
    assert first * 2**56 + kept == threshold


def test_rows_are_ascending_and_the_end_is_not_forgotten() -> None:
    for count in (0, 1, 7, 8, 9, 1000):
        rows = poisson_rows(count, 0.9, stream(count))
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert len(rows) == 0 or (rows[0] >= 0 and rows[-1] < count)
    assert any(9 in poisson_rows(10, 0.5, stream(number)) for number in range(20))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, np.nan])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        poisson_rows(5, rate, stream())


# --- what is not Poisson sampling fails the check


def fixed_size(count: int, rate: float, random: StreamRandom) -> Array:
    return np.sort(random.permutation(count)[: round(count * rate)])


class Shuffled:
    """Batches of a loader that walks through a permutation, with a coin for the remainder."""

    def __init__(self) -> None:
        self._left: Array = np.empty(0, dtype=np.int64)

    def __call__(self, count: int, rate: float, random: StreamRandom) -> Array:
        size = len(poisson_rows(count, rate, random))  # not even a random size helps
        if len(self._left) < size:
            self._left = random.permutation(count)
        batch, self._left = self._left[:size], self._left[size:]
        return np.sort(batch)


def pairs(count: int, rate: float, random: StreamRandom) -> Array:
    """Neighbours share a coin."""
    chosen = poisson_rows(count // 2, rate, random)
    return np.sort(np.concatenate((chosen * 2, chosen * 2 + 1)))


def favourites(count: int, rate: float, random: StreamRandom) -> Array:
    """The right size on average, but not the same chance for all."""
    middle = count // 2
    low = poisson_rows(middle, rate * 0.8, random)
    return np.concatenate((low, poisson_rows(count - middle, rate * 1.2, random) + middle))


def eager(count: int, rate: float, random: StreamRandom) -> Array:
    return poisson_rows(count, rate * 1.05, random)


@pytest.mark.parametrize("sampler", [fixed_size, Shuffled(), pairs, favourites, eager])
def test_another_sampler_is_not(sampler: object) -> None:
    with pytest.raises(AssertionError, match="not Poisson"):
        check_poisson(sampler)  # type: ignore[arg-type]
