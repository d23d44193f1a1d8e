"""The integer grid: how a clipped sum becomes integers of a ring, and what rounding costs in sensitivity.

A vector of clip C is multiplied by clip_units / C and rounded, once. From there on everything is exact:
integers are added to integers, noise to integers, all modulo 2**bits. A sum that leaves the ring's range
wraps around; that is a function of the noisy sum and tells nothing more, and nothing here looks whether it
happened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, PlanError

__all__ = ["IntegerGrid"]

_RINGS: Final = {16: (np.uint16, np.int16), 32: (np.uint32, np.int32)}
# sqrt(d) at most clip_units / 200: rounding then costs at most 2 % of epsilon where noise is low, too
_ROUNDING_SHARE: Final = 200
_LARGEST: Final = 2.0**53  # integers beyond are not told apart by float64


@dataclass(frozen=True)
class IntegerGrid:
    """A ring and how many of its units a clip is worth.

    Args:
        bits: of the ring, 16 or 32.
        clip_units: 1 to 2**(bits - 1) - 1.

    Raises:
        PlanError: other values.
    """

    bits: Literal[16, 32]
    clip_units: int

    def __post_init__(self) -> None:
        if self.bits not in _RINGS:
            raise PlanError(f"a ring of {self.bits} bits is not offered", fix="Use 16 or 32 bits")
        if not 1 <= self.clip_units < 1 << (self.bits - 1):
            raise PlanError(
                f"a clip of {self.clip_units} units does not fit a ring of {self.bits} bits",
                fix=f"Use 1 to {(1 << (self.bits - 1)) - 1} units",
            )

    @classmethod
    def fit(cls, bits: Literal[16, 32], *, batch: int, noise: float) -> IntegerGrid:
        """Return the finest grid in which a sum almost never wraps around.

        clip_units is the greatest K with K (q + 8 noise) < 2**(bits - 1), q = batch + 7.5 sqrt(batch) + 30:
        fewer than q rows are sampled but for a chance of 2**-40, and a coordinate's noise stays within 8
        standard deviations but for one of 2**-49.

        Args:
            batch: expected rows of all sites in one sum.
            noise: standard deviation, in clips, of all shares that may be in one sum.

        Raises:
            PlanError: not even one unit fits, or an argument is not a size.
        """
        if batch < 0 or not 0 <= noise < math.inf:
            raise PlanError("a grid needs a batch and a noise of 0 or more", fix="Correct the plan")
        width = Fraction(batch + 7.5 * math.sqrt(batch) + 30) + 8 * Fraction(noise)
        units = math.ceil(Fraction(1 << (bits - 1)) / width) - 1
        if units < 1:
            raise PlanError(
                f"a batch of {batch} rows with its noise does not fit a ring of {bits} bits",
                fix="Widen the ring or shrink the batch",
            )
        return cls(bits, units)

    def sensitivity(self, coordinates: int, float_bound: float = 0.0) -> float:
        """Return the rounded sum's L2 sensitivity: clip_units (1 + float_bound) + sqrt(coordinates) units.

        One row is replaced by nothing, which moves one vector by at most a clip before it is rounded;
        rounding moves each of its coordinates by at most one unit more.

        Args:
            coordinates: length of the vector, 1 or more.
            float_bound: relative to the clip, how much further apart floating-point error may bring the two
                neighbouring vectors that are rounded; the product in `round` included, whose part is 2**-51
                for each row that one vector may hold.

        Raises:
            PlanError: rounding would be more than 0.5 % of the clip, or an argument is not a size.
        """
        if coordinates < 1 or not 0 <= float_bound < math.inf:
            raise PlanError("a sensitivity needs a coordinate and a finite float bound", fix="Correct them")
        if coordinates * _ROUNDING_SHARE**2 > self.clip_units**2:
            raise PlanError(
                f"rounding {coordinates} coordinates adds over 0.5 % to a clip of {self.clip_units} units",
                fix="Widen the ring to 32 bits, shrink the batch, or use a smaller model",
            )
        return self.clip_units * (1.0 + float_bound) + math.sqrt(coordinates)

    def round(self, vector: NDArray[np.float64], clip: float) -> NDArray[np.int64]:
        """Return int64[d], the nearest integers to vector * (clip_units / clip), ties to even.

        Args:
            vector: float64[d]; a clipped sum.
            clip: the L2 norm that is worth clip_units, above 0.

        Raises:
            InputError: a value is not a number or beyond 2**53 units, or the clip is not positive.
        """
        scale = self.clip_units / _positive(clip)
        with np.errstate(over="ignore", invalid="ignore"):
            units = np.multiply(vector, scale, dtype=np.float64)
        if units.size and not (units.min() >= -_LARGEST and units.max() <= _LARGEST):  # NaN compares false
            raise InputError(
                "a vector to be rounded has values that are not finite or far beyond its clip",
                fix="Look for a diverging model; clip before rounding",
            )
        return np.rint(units, out=units).astype(np.int64)

    def to_ring(self, integers: NDArray[np.int64]) -> NDArray[Any]:
        """Return uint16[d] or uint32[d]: the integers modulo 2**bits."""
        if integers.dtype != np.int64:
            raise InputError(f"a ring takes int64, not {integers.dtype}", fix="Round first")
        return integers.astype(_RINGS[self.bits][0])

    def from_ring(self, words: NDArray[Any]) -> NDArray[np.int64]:
        """Return int64[d] in [-2**(bits - 1), 2**(bits - 1)), congruent to the ring's words."""
        unsigned, signed = _RINGS[self.bits]
        if words.dtype != unsigned:
            raise InputError(
                f"a ring of {self.bits} bits has words of {np.dtype(unsigned)}, not {words.dtype}",
                fix="Decode with the grid that encoded",
            )
        return words.view(signed).astype(np.int64)

    def values(self, integers: NDArray[np.int64], clip: float) -> NDArray[np.float64]:
        """Return float64[d]: integers * (clip / clip_units). Raises InputError unless 0 < clip < inf."""
        return np.multiply(integers, _positive(clip) / self.clip_units, dtype=np.float64)


def _positive(clip: float) -> float:
    if not 0 < clip < math.inf:
        raise InputError("a clip must be a finite number above 0", fix="Correct the plan")
    return clip
