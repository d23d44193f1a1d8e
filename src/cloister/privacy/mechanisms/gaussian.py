"""The discrete Gaussian N_Z(0, variance): P(x) is proportional to exp(-x**2 / (2 variance)).

(Canonne, Kamath, Steinke: The discrete Gaussian for differential privacy, NeurIPS 2020.) One table serves
standard deviations of up to 1200. A larger one is put together, x = k a + b, from a, b with N_Z of variances
A and B, k**2 A + B = variance. Given x, a is a Gaussian of variance A B / variance around a multiple of x; so
x has the wanted mass times a sum over all integers a, which hardly depends on x: by a factor of
1 +- 2 exp(-2 pi**2 A B / variance) and smaller terms, below 2**-140 for B = 5 k**2. It is part of `distance`.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Final

from cloister.errors import InputError
from cloister.privacy.mechanisms.masses import gaussian, make_table
from cloister.privacy.mechanisms.sampling import IntegerNoise, Levels

__all__ = ["DiscreteGaussian"]

_SMALLEST: Final = 0.05
_LARGEST: Final = 2.0**56
_WIDEST: Final = 1200  # standard deviation of one table: 2**15 cells, which take 0.5 MB
_LOW_VARIANCE: Final = 5  # of b, in units of k**2
_TWO_PI_SQUARED: Final = 19.739  # less than 2 pi**2


class DiscreteGaussian(IntegerNoise):
    """Samples N_Z(0, variance), from the operating system's randomness.

    Tables of recent variances are kept (they are public); making those of a new one takes milliseconds to a
    tenth of a second.

    Args:
        variance: 0.05 to 2**56, in squared units of the integers.

    Raises:
        InputError: another variance.
    """

    __slots__ = ("_variance",)

    def __init__(self, variance: float) -> None:
        if not _SMALLEST <= variance <= _LARGEST:
            raise InputError(
                f"a discrete Gaussian's variance must be {_SMALLEST} to 2**56, not {variance}",
                fix="Change the noise, or the grid it is measured on",
            )
        self._variance = float(variance)
        super().__init__(*_levels(self._variance))

    @property
    def variance(self) -> float:
        """The parameter, as asked for. (The distribution's own variance is a little less below 1.)"""
        return self._variance

    def __repr__(self) -> str:
        return f"DiscreteGaussian(variance={self._variance!r})"


@functools.lru_cache(maxsize=16)
def _levels(variance: float) -> tuple[Levels, float]:
    """Return tables whose sum has this variance, all about equally wide, and the distance of their sum."""
    exact = Fraction(variance)
    deviation = math.sqrt(variance)
    count = 1
    while (width := _balanced(deviation, count)) > _WIDEST:
        count += 1
    return compose(exact, [math.floor(width / math.sqrt(_LOW_VARIANCE))] * (count - 1))


def _balanced(deviation: float, count: int) -> float:
    """Return the standard deviation of each of `count` tables that together make `deviation`."""
    return float((deviation * math.sqrt(_LOW_VARIANCE) ** (count - 1)) ** (1 / count))


def compose(
    variance: Fraction, multipliers: list[int], low: Fraction = Fraction(_LOW_VARIANCE)
) -> tuple[Levels, float]:
    """Return the levels of x = k a + b, for every multiplier k from the last on, and the sum's distance.

    Args:
        variance: of x.
        multipliers: empty for one table.
        low: the variance of b, in units of k**2.
    """
    if not multipliers:
        table, distance = make_table(gaussian(variance))
        return ((1, table),), distance
    *others, k = multipliers
    low_variance = low * k * k
    upper, distance = compose((variance - low_variance) / (k * k), others, low)
    table, moved = make_table(gaussian(low_variance))
    posterior = float((variance - low_variance) * low_variance / (k * k * variance))
    return (*upper, (k, table)), math.nextafter(distance + moved + _unevenness(posterior), math.inf)


def _unevenness(posterior: float) -> float:
    """Bound the distance that the sum over `a` adds, whose variance given x is `posterior`.

    The sum is constant but for a factor in 1 +- e, e = 2 (q + q**4 + q**9 + ...), q = exp(-2 pi**2
    posterior); after dividing by the total the distance is at most e / (1 - e).
    """
    q = math.exp(-_TWO_PI_SQUARED * posterior)
    e = 2 * q / (1 - q)
    return 1.0 if e >= 0.5 else e / (1 - e) * (1 + 1e-9)
