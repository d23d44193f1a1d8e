"""What private training asks of a model, and the settings that both a site and a simulation run under.

A private model gives sums of per-example gradients in which no example counts for more than `clip`. Sampling,
rounding, noise and the server's step are the same for every model and live in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.sections import TrainingSection

if TYPE_CHECKING:
    from cloister.privacy.mechanisms import IntegerGrid

__all__ = ["CLIP_RANGE", "Bounded", "PrivateModel", "PrivateSettings", "check_clip"]

CLIP_RANGE = (2.0**-64, 2.0**64)
"""Smallest and largest clip: within it no rounding argument meets an overflow or a subnormal number."""


class Bounded(Protocol):
    """What a claim of privacy needs to know of a model: its size and its float error."""

    @property
    def size(self) -> int:
        """Number of parameters, d."""

    def float_bound(self, microbatch: int) -> float:
        """Return the float error of one microbatch's sum, relative to `clip`, for both neighbours.

        It is twice a bound on |computed sum - exact sum of the same contributions|_2 / clip over at most
        `microbatch` rows, and covers the rounding of the factor K / clip that turns the sum into units.
        """


class PrivateModel(Bounded, Protocol):
    """A model whose examples' gradients are clipped one by one.

    Parameters are one flat vector of `size` entries. X holds one example per entry of its first axis; its
    further axes and dtype are the model's own business. y is float64[b].
    """

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: weights, not biases; bool[d]."""

    def clipped_sums(
        self, params: Array, X: NDArray[Any], y: Array, clip: float, microbatch: int
    ) -> Iterator[Array]:
        """Yield, for each `microbatch` consecutive rows, the sum of their clipped gradients.

        Each example's gradient of its own loss is scaled by min(1, clip / norm), deflated by the norm's
        float error, so that in exact arithmetic on the vectors computed it contributes at most `clip` in L2.
        An example whose gradient is not finite contributes nothing: it never stops the others.

        What is computed for one example depends on the content of no other example.

        Args:
            params: float64[d].
            X: [b, ...], examples.
            y: float64[b], labels.
            clip: L2 norm, in `CLIP_RANGE`.
            microbatch: rows of one sum, at least 1; the last one may have fewer. Memory grows with it at
                most, never with b.

        Yields:
            float64[d], ceil(b / microbatch) times; the caller may keep and change it.
        """


@dataclass(frozen=True)
class PrivateSettings:
    """Distributed DP-SGD as a plan fixes it, for a site and for a simulation alike.

    Args:
        training: `[training]` of the plan; `batch` is the divisor of a step's sum, `local_steps` is not used.
        rate: probability with which a row enters a step.
        clip: L2 norm that an example's gradient may have.
        grid: the integers on which sums and noise live.
        microbatch: rows of the dataset, by position, whose contributions are summed before they are rounded.
        share_variance: variance of each site's noise in units squared; 0 means none.
        present: how many shares of noise a step's sum holds: the sites present.

    Raises:
        InputError: a number is out of range.
    """

    training: TrainingSection
    rate: float
    clip: float
    grid: IntegerGrid
    microbatch: int
    share_variance: float
    present: int

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if not 0.0 < self.rate <= 1.0:
            raise InputError(
                "the sampling rate is not above 0 and at most 1", fix="Write, say, 0.01 for one row in 100"
            )
        if self.microbatch < 1 or self.present < 1 or not 0.0 <= self.share_variance < 2.0**62:
            raise InputError(
                "microbatch and the shares present must be at least 1, a share's variance 0 or more",
                fix="Take them from the plan's privacy terms",
            )

    @property
    def divisor(self) -> float:
        """What a step's sum is divided by: a constant of the plan, never the sampled number of rows."""
        return float(self.training.batch)


def check_clip(clip: float) -> float:
    """Return `clip` if it lies in `CLIP_RANGE`. Raises InputError."""
    low, high = CLIP_RANGE
    if not low <= clip <= high:
        raise InputError("the clip is not a positive number of ordinary size", fix="Write, say, 1.0")
    return float(clip)
