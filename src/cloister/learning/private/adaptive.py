"""A clip that follows a quantile of the update norms (Andrew et al. 2021, "Differentially private learning
with adaptive clipping", algorithm 1, the geometric update).

Each unit sends one centred bit, +1/2 if its update's norm is at most the clip and -1/2 otherwise, as a
coordinate of the same noisy vector (`unit_sum`). The clip in units of the grid never changes; what a unit is
worth does. The next clip is a function of the noisy bit alone, so it costs nothing further.

Every party that computes it gets the same bits: only + - * / of float64, the exponential by its series.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import InputError
from cloister.learning.private.base import check_clip

__all__ = ["AdaptiveClip"]

_TERMS = 24  # of the series for |x| <= 1: the rest is below 1e-25


@dataclass(frozen=True)
class AdaptiveClip:
    """clip * exp(-rate (share - quantile)), share = units within the clip, kept between floor and ceiling.

    Args:
        quantile: of the norms that the clip should follow, between 0 and 1.
        rate: how fast, above 0 and at most 1; 0.2 is customary.
        floor: the least clip.
        ceiling: the largest.

    Raises:
        InputError: a number is out of range.
    """

    quantile: float
    rate: float = 0.2
    floor: float = 2.0**-10
    ceiling: float = 2.0**10

    def __post_init__(self) -> None:
        if not (0.0 < self.quantile < 1.0 and 0.0 < self.rate <= 1.0):
            raise InputError(
                "an adaptive clip needs a quantile between 0 and 1 and a rate of at most 1",
                fix="Write, say, 0.5 and 0.2",
            )
        if check_clip(self.floor) > check_clip(self.ceiling):
            raise InputError("an adaptive clip's floor lies above its ceiling", fix="Exchange them")

    def after(self, clip: float, noisy_bits: float, divisor: float) -> float:
        """Return the next clip.

        Args:
            clip: of the step that has ended.
            noisy_bits: sum of the units' bits (+-1/2 each) with its noise, of `split_bits`.
            divisor: the expected number of units in a step, a constant of the plan.

        Raises:
            InputError: the divisor is not positive, or the clip is out of range.
        """
        if not divisor > 0.0:
            raise InputError("the expected number of units is not positive", fix="Take it from the plan")
        share = min(1.0, max(0.0, noisy_bits / divisor + 0.5))
        moved = check_clip(clip) * _exp(-self.rate * (share - self.quantile))
        return min(self.ceiling, max(self.floor, moved))


def _exp(x: float) -> float:
    """Return e^x for |x| <= 1 by Horner's scheme on the series, the same bits on every machine."""
    total = 1.0
    for term in range(_TERMS, 0, -1):
        total = 1.0 + total * x / term
    return total
