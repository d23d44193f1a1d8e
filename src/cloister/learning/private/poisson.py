"""Poisson sampling: which rows enter a step, each by its own coin.

A row is kept if a uniform 64-bit number is below T = floor(rate * 2**64), so with probability T / 2**64,
never above the rate that is accounted for, and independently of every other row. The number is looked at
lazily: its first byte decides unless it equals T's first byte, and only then are the other 56 bits drawn.
That is the same law at an eighth of the randomness.

Neither the batch's size nor a row's place in the dataset says anything about another row; a loader that
shuffles, or that takes a fixed number of rows, is another mechanism with another account.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError

__all__ = ["poisson_rows"]


def poisson_rows(count: int, rate: float, random: StreamRandom) -> NDArray[np.int64]:
    """Return the numbers of the rows that enter a step, ascending.

    Args:
        count: rows to choose from, n.
        rate: each row's probability, above 0 and at most 1; it is rounded down to a multiple of 2**-64.
        random: the source of the coins; `StreamRandom.system()` for anything private.

    Returns:
        int64[k], 0 <= k <= n.

    Raises:
        InputError: the rate is out of range, or there is a negative number of rows.
    """
    if not 0.0 < rate <= 1.0 or count < 0:
        raise InputError("a sampling rate must be above 0 and at most 1", fix="Write, say, 0.01")
    threshold = int(rate * 2.0**64)  # exact: a product with a power of two, then floor
    if threshold >> 64:
        return np.arange(count)
    first, rest = threshold >> 56, threshold & (2**56 - 1)
    coins = random.words(-(-count // 8)).view(np.uint8)[:count]
    kept = coins < first
    if rest:
        undecided = (coins == first).nonzero()[0]
        kept[undecided] = (random.words(len(undecided)) >> np.uint64(8)) < rest
    return kept.nonzero()[0]
