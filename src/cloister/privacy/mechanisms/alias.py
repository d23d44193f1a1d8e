"""An alias table (Walker 1977, Vose 1991) in integers: what it draws has exactly the weights it was given.

The weights are integers that sum to 2**128. With N = 2**bits cells each holds 2**(128 - bits) of that sum:
its own outcome's up to a threshold, one other outcome's above it. Filling the cells moves integers about and
rounds nothing. A draw takes 128 random bits: `bits` of them choose the cell, the others meet its threshold.

    place     64 bits: the cell | the low end of the comparison
    fraction  64 bits: the high end of the comparison, which decides but for one draw in about 2**64

Not done here: constant time. Which cell was read shows in the processor's cache to whoever shares the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError

__all__ = ["BYTES_PER_DRAW", "WEIGHT_BITS", "AliasTable", "Scratch"]

WEIGHT_BITS: Final = 128
BYTES_PER_DRAW: Final = WEIGHT_BITS // 8


class Scratch:
    """Arrays that a block of draws works in, so that they stay in the processor's cache."""

    __slots__ = ("equal", "index", "keep", "outcome", "threshold")

    def __init__(self, size: int) -> None:
        self.index = np.empty(size, np.int64)
        self.threshold = np.empty(size, np.uint64)
        self.keep = np.empty(size, np.bool_)
        self.equal = np.empty(size, np.bool_)
        self.outcome = np.empty(size, np.int32)


class AliasTable:
    """Draws `first + i` with probability weights[i] / 2**128.

    Args:
        weights: integers of 0 or more whose sum is 2**128; 2 to 2**31 of them.
        first: the outcome of weights[0]; all outcomes fit int32.

    Raises:
        InputError: other weights.
    """

    __slots__ = ("_bits", "_high", "_low", "_outcomes")

    def __init__(self, weights: Sequence[int], first: int) -> None:
        if sum(weights) != 1 << WEIGHT_BITS or min(weights) < 0 or len(weights) < 2:
            raise InputError("the weights of a table must sum to 2**128", fix="Round them so that they do")
        self._bits = bits = (len(weights) - 1).bit_length()
        cells = 1 << bits
        full = 1 << (WEIGHT_BITS - bits)
        rest = [*weights, *[0] * (cells - len(weights))]
        other = list(range(cells))
        threshold = [0] * cells  # 0 for a cell of one outcome alone: it is drawn as `other`, which is itself
        short = [i for i, weight in enumerate(rest) if weight < full]
        long = [i for i, weight in enumerate(rest) if weight > full]
        while short:  # the sum of what is not placed is `full` a cell, so a short cell leaves a long one
            low, high = short.pop(), long[-1]
            threshold[low], other[low] = rest[low], high
            rest[high] -= full - rest[low]
            if rest[high] <= full:
                long.pop()
                if rest[high] < full:
                    short.append(high)
        low_bits = 64 - bits
        mask = (1 << low_bits) - 1
        self._high = _frozen(np.array([value >> low_bits for value in threshold], np.uint64))
        self._low = _frozen(np.array([value & mask for value in threshold], np.uint64))
        outcomes = np.empty((cells, 2), np.int32)
        outcomes[:, 0] = np.array(other) + first
        outcomes[:, 1] = np.arange(cells) + first
        self._outcomes = _frozen(outcomes.reshape(-1))

    def draw(self, words: NDArray[np.uint64], scratch: Scratch) -> NDArray[np.int32]:
        """Return int32[n] drawn by the 2 n uniform words: n fractions, then n places.

        The result is a view into `scratch` and lasts until its next use.
        """
        count = len(words) // 2
        fraction, place = words[:count], words[count:]
        index, threshold = scratch.index[:count], scratch.threshold[:count]
        keep, equal, outcome = scratch.keep[:count], scratch.equal[:count], scratch.outcome[:count]
        np.right_shift(place, 64 - self._bits, out=index.view(np.uint64))
        np.take(self._high, index, out=threshold, mode="clip")  # "raise" would copy; no index is out of range
        np.less(fraction, threshold, out=keep)
        np.equal(fraction, threshold, out=equal)
        if equal.any():
            where = np.flatnonzero(equal)
            low = place[where] & np.uint64((1 << (64 - self._bits)) - 1)
            keep[where] = low < self._low[index[where]]
        np.add(index, index, out=index)
        np.add(index, keep, out=index)
        np.take(self._outcomes, index, out=outcome, mode="clip")
        return outcome

    def weights(self) -> dict[int, int]:
        """Return what the cells add up to: outcome and weight out of 2**128, without the weights of 0."""
        full = 1 << (WEIGHT_BITS - self._bits)
        low_bits = 64 - self._bits
        total: dict[int, int] = {}
        pairs = self._outcomes.reshape(-1, 2).tolist()
        for high, low, (other, own) in zip(self._high.tolist(), self._low.tolist(), pairs, strict=True):
            threshold = (high << low_bits) + low
            total[own] = total.get(own, 0) + threshold
            total[other] = total.get(other, 0) + full - threshold
        return {outcome: weight for outcome, weight in sorted(total.items()) if weight}


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
