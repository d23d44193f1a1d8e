"""The grid of a fixed point, and the two ways of rounding to it.

The unit is a power of two, so scaling by it rounds nothing. A vector is rounded half to even, or at random:
x = (k + f) units, 0 <= f < 1, becomes k + 1 with probability f to within 2**-32, else k, and so is kept on
average. A whole number of units stays what it is, zero too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import PlanError

__all__ = ["FixedPoint", "round_at_random"]


@dataclass(frozen=True)
class FixedPoint:
    """The grid on which a stretch of the vector is encoded.

    Attributes:
        value_range: the largest absolute value; larger ones are clamped.
        exponent: k; the unit is 2**-k.
        largest: the most units that an encoded value can have.
    """

    value_range: float
    exponent: int
    largest: int

    @classmethod
    def fit(cls, most: int, value_range: float, *, at_random: bool) -> FixedPoint:
        """Return the finest grid on which +-value_range takes at most `most` units, however it is rounded.

        Raises:
            PlanError: the range is not a positive finite number.
        """
        if not (math.isfinite(value_range) and 1e-30 <= value_range <= 1e30):
            raise PlanError(
                "value_range in [aggregation] must be positive and finite", fix="Give a number such as 1.0"
            )
        # the greatest k with value_range * 2**k <= most, exactly
        highest, highest_exponent = math.frexp(most)
        mantissa, exponent = math.frexp(value_range)
        k = highest_exponent - exponent - (mantissa > highest)
        units = value_range * 2.0**k
        return cls(float(value_range), k, math.ceil(units) if at_random else round(units))

    @property
    def scale(self) -> float:
        """Units in 1.0, a power of two."""
        return 2.0**self.exponent

    @property
    def unit(self) -> float:
        """The distance between neighbouring values, a power of two."""
        return 1.0 / self.scale


def round_at_random(scaled: NDArray[np.float64], random: StreamRandom, work: NDArray[np.float64]) -> None:
    """Round float64[b] in place, each value by itself: floor(x + (w + 1/2) / 2**32), w a word of `random`.

    Args:
        scaled: below 2**20 in size.
        random: the next (b + 1) // 2 words are taken.
        work: float64[b], overwritten.
    """
    words = random.words((scaled.size + 1) // 2).astype("<u8", copy=False).view("<u4")[: scaled.size]
    np.multiply(words, 2.0**-32, out=work)
    work += 2.0**-33
    scaled += work
    np.floor(scaled, out=scaled)
