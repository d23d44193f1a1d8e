"""The declared grid of a bounded quantity: its values as whole numbers 0 .. steps, before any noise.

Whatever a value is, its number lies in 0 .. steps, so two people's numbers differ by at most `steps`: that
is the sensitivity, exactly. Values beyond the bounds are moved to them. Values between two grid points go to
one of them at random, so that the mean over many is not shifted; the choice draws nothing from the value but
the fraction.

Released values are low + step * number, a public function of a whole number, so that the low bits of a
floating-point number tell nothing (Mironov 2012).
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError

__all__ = ["DEFAULT_STEPS", "MAX_STEPS", "ValueGrid"]

DEFAULT_STEPS: Final = 1024
MAX_STEPS: Final = 2**16


class ValueGrid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Points low, low + step, ..., high.

    Attributes:
        low: lowest value, declared.
        high: highest value, declared.
        steps: how many steps lie between them; 1 to 65,536.
    """

    low: float
    high: float
    steps: int = DEFAULT_STEPS

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high - self.low) and self.high - self.low > 0):
            raise InputError("a grid needs two finite bounds, the lower one first", fix="Declare the bounds")
        if not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"a grid has 1 to {MAX_STEPS} steps", fix="Choose a coarser or a finer grid")

    @classmethod
    def of(cls, low: float, high: float, *, step: float | None = None, whole: bool = False) -> ValueGrid:
        """Return the grid of a declared quantity.

        Args:
            low: lowest value.
            high: highest value.
            step: distance of its points; must divide high - low. None: the whole numbers themselves where
                `whole` and there are at most 65,536 of them, else 1,024 steps.
            whole: whether the quantity counts.

        Raises:
            InputError: bounds or step do not fit.
        """
        if step is None:
            steps = round(high - low) if whole and 1 <= high - low <= MAX_STEPS else DEFAULT_STEPS
            return cls(float(low), float(high), steps)
        if not (math.isfinite(step) and step > 0 and (high - low) / step <= MAX_STEPS + 1):
            raise InputError(
                f"a grid's step must be positive and at least 1/{MAX_STEPS} of the range",
                fix="Choose a coarser one",
            )
        steps = round((high - low) / step)
        if steps < 1 or abs(steps * step - (high - low)) > 1e-9 * (high - low):
            raise InputError("the grid's step does not divide the range", fix="Choose one that does")
        return cls(float(low), float(high), steps)

    @property
    def step(self) -> float:
        """Distance of two neighbouring points, in the quantity's unit."""
        return (self.high - self.low) / self.steps

    def accept(self, values: Any) -> NDArray[np.float64]:
        """Return float64[n]. Raises InputError where these are not numbers, or one is NaN."""
        given = np.asarray(values, np.float64)
        if given.ndim != 1 or np.isnan(given).any():
            raise InputError(
                "values must be a list of numbers, none of them missing", fix="Say what stands for missing"
            )
        return given

    def numbers(self, values: NDArray[Any], random: StreamRandom) -> NDArray[np.int64]:
        """Return int64[n] in 0 .. steps, with the mean of the values (moved into the bounds).

        Args:
            values: float64[n] or integers.
            random: decides between two neighbouring points.

        Raises:
            InputError: a value is NaN.
        """
        given = self.accept(values)
        scaled = (np.clip(given, self.low, self.high) - self.low) * (self.steps / (self.high - self.low))
        below = np.floor(scaled)
        up = random.uniform(len(given)) < scaled - below
        return np.clip(below.astype(np.int64) + up, 0, self.steps)

    def values(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return float64[n], the values of n points; beyond 0 .. steps too, where noise has carried them."""
        return self.low + np.asarray(numbers, np.float64) * self.step

    def read(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return int64[n], the numbers of n released values. Raises InputError where one is no point."""
        given = np.asarray(values, np.float64)
        if given.ndim != 1 or not np.isfinite(given).all():
            raise InputError("released values must be finite numbers", fix="Check that the file is whole")
        scaled = (given - self.low) / self.step
        numbers = np.rint(scaled)
        if np.any(np.abs(scaled - numbers) > 1e-3) or np.any(np.abs(numbers) > 2.0**52):
            raise InputError(
                "a released value is no point of its grid",
                fix="Give the file and the mechanism it was made with",
            )
        return numbers.astype(np.int64)
