"""The discrete Laplace: P(x) is proportional to exp(-|x| / scale), the two-sided geometric distribution.

(Ghosh, Roughgarden, Sundararajan: Universally utility-maximizing privacy mechanisms, STOC 2009.) It is the
difference of two geometric variables. One table serves scales of up to 180. A larger one is written in a base
k: a geometric variable's last digit and what is before it are independent, and that is geometric with scale /
k. So x = k a + b with a discrete Laplace `a` of scale / k and b a difference of two digits, which has a
closed form. Nothing is approximated there; `distance` holds the tables' rounding alone.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Final

from cloister.errors import InputError
from cloister.privacy.mechanisms.masses import laplace, laplace_digit, make_table
from cloister.privacy.mechanisms.sampling import IntegerNoise, Levels

__all__ = ["DiscreteLaplace"]

_SMALLEST: Final = 0.05
_LARGEST: Final = 2.0**32
_WIDEST: Final = 180  # scale of one table: 2**15 cells
_CELLS_PER_SCALE: Final = 180  # a table's width in units of its scale, about 2 ln(2) 129


class DiscreteLaplace(IntegerNoise):
    """Samples the discrete Laplace distribution, from the operating system's randomness.

    Args:
        scale: 0.05 to 2**32, in units of the integers. A query of L1 sensitivity D (an integer) is
            (D / scale)-differentially private, but for the distance.

    Raises:
        InputError: another scale.
    """

    __slots__ = ("_scale",)

    def __init__(self, scale: float) -> None:
        if not _SMALLEST <= scale <= _LARGEST:
            raise InputError(
                f"a discrete Laplace's scale must be {_SMALLEST} to 2**32, not {scale}",
                fix="Change the noise, or the grid it is measured on",
            )
        self._scale = float(scale)
        super().__init__(*_levels(self._scale))

    @property
    def scale(self) -> float:
        """The parameter, as asked for."""
        return self._scale

    def __repr__(self) -> str:
        return f"DiscreteLaplace(scale={self._scale!r})"


@functools.lru_cache(maxsize=16)
def _levels(scale: float) -> tuple[Levels, float]:
    """Return tables whose sum has this scale, all of about as many cells, and the distance of their sum."""
    count, base = 1, 1
    while scale / base ** (count - 1) > _WIDEST:
        count += 1
        cells = (_CELLS_PER_SCALE * scale * 2.0 ** (count - 1)) ** (1 / count)
        base = min(math.ceil(cells / 2), 2**14)
    return compose(Fraction(scale), [base] * (count - 1))


def compose(scale: Fraction, bases: list[int]) -> tuple[Levels, float]:
    """Return the levels of x = k a + b for every base k, the last one first, and the distance of the sum."""
    if not bases:
        table, distance = make_table(laplace(scale))
        return ((1, table),), distance
    *others, base = bases
    upper, distance = compose(scale / base, others)
    table, moved = make_table(laplace_digit(scale, base))
    return (*upper, (base, table)), math.nextafter(distance + moved, math.inf)
