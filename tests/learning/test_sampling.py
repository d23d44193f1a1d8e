from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import StreamRandom
from cloister.learning.sampling import Batches, distinct


def stream(number: int = 0) -> StreamRandom:
    return StreamRandom.from_seed(number, "test")


def draw(counts: list[int], batch: int, steps: int, number: int = 0) -> tuple[np.ndarray, Batches]:
    sizes = np.array(counts, dtype=np.int64)
    batches = Batches(np.cumsum(sizes) - sizes, sizes, batch=batch, steps=steps, random=stream(number))
    return np.stack([index.copy() for index in batches]), batches


@settings(deadline=None, max_examples=80)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    batch=st.integers(1, 12),
    steps=st.integers(1, 12),
    number=st.integers(0, 1000),
)
def test_each_epoch_of_each_client_is_a_permutation(
    counts: list[int], batch: int, steps: int, number: int
) -> None:
    rows, batches = draw(counts, batch, steps, number)
    assert rows.shape == (steps, len(counts), min(batch, max(counts)))
    start = 0
    for client, count in enumerate(counts):
        size = min(batch, count)
        walk = rows[:, client, :size].ravel() - start
        assert ((rows[:, client] >= start) & (rows[:, client] < start + count)).all()
        for at in range(0, len(walk), count):
            epoch = walk[at : at + count]
            assert len(set(epoch.tolist())) == len(epoch)
        if batches.weights is not None:
            assert batches.weights[client].tolist() == pytest.approx(
                [1 / size] * size + [0] * (rows.shape[2] - size)
            )
        else:
            assert size == rows.shape[2]
        start += count


@pytest.mark.parametrize(("count", "batch", "steps"), [(6, 2, 3), (40, 2, 2)])
def test_first_batches_are_uniform_over_ordered_choices(count: int, batch: int, steps: int) -> None:
    """A whole walk (6 rows) and a beginning alone (40 rows, 4 used): all pairs (first, last row) are as likely."""
    draws, table = 6000, np.zeros((count, count))
    random = stream(7)
    counts = np.full(draws, count, dtype=np.int64)
    rows = np.stack(
        [
            i.copy()
            for i in Batches(np.zeros(draws, np.int64), counts, batch=batch, steps=steps, random=random)
        ]
    )
    np.add.at(table, (rows[0, :, 0], rows[-1, :, -1]), 1)
    assert not np.diag(table).any()
    expected = draws / (count * (count - 1))
    off = table[~np.eye(count, dtype=bool)]
    statistic = ((off - expected) ** 2 / expected).sum()
    freedom = len(off) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_clients_of_one_size_get_different_orders() -> None:
    rows, _ = draw([50, 50], 50, 1)
    assert not np.array_equal(rows[0, 0], rows[0, 1] - 50)


def test_unequal_clients_are_shuffled_without_bias() -> None:
    first = [draw([3, 5], 1, 1, number)[0][0, :, 0] for number in range(1500)]
    small = np.bincount([rows[0] for rows in first], minlength=3)
    large = np.bincount([rows[1] - 3 for rows in first], minlength=5)
    assert np.abs(small - 500).max() < 5 * np.sqrt(500)
    assert np.abs(large - 300).max() < 5 * np.sqrt(300)


@settings(deadline=None)
@given(st.lists(st.integers(7, 40), min_size=1, max_size=4), st.integers(0, 7), st.integers(0, 99))
def test_distinct_choices_do_not_repeat_and_stay_below_their_bound(
    highs: list[int], length: int, number: int
) -> None:
    chosen = distinct(np.array(highs, dtype=np.int64), length, stream(number))
    assert chosen.shape == (len(highs), length)
    for row, high in zip(chosen, highs, strict=True):
        assert len(set(row.tolist())) == length
        assert all(0 <= value < high for value in row)
