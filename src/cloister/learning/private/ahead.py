"""Noise for many steps, drawn in few calls: a call costs more than the samples of a small model.

Each step still has its own fresh samples; what is drawn ahead stays in this process until its step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.types import RandomBytes

__all__ = ["NoiseAhead"]

_AHEAD = 1 << 17  # samples in one call, at most


class NoiseAhead:
    """Sums of `shares` independent noises, step after step.

    Args:
        noise: one share's.
        shares: how many a step has.
        size: of a step's vector, d.
        steps: for how many steps noise is wanted.
        insecure_test_random: noise of a test; otherwise it comes from the operating system.
    """

    def __init__(
        self,
        noise: DiscreteGaussian,
        *,
        shares: int,
        size: int,
        steps: int,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._noise, self._shares, self._random = noise, shares, insecure_test_random
        self._shape = (min(steps, _AHEAD // (shares * size)), shares, size)
        self._drawn = np.empty((0, size), dtype=np.int64)
        self._used = 0

    def add_into(self, target: NDArray[np.int64]) -> None:
        """Add the next step's noise to int64[d], in place."""
        steps, shares, size = self._shape
        if steps < 2:
            for _ in range(shares):
                self._noise.add_into(target, insecure_test_random=self._random)
            return
        if self._used == len(self._drawn):
            drawn = self._noise.sample(steps * shares * size, insecure_test_random=self._random)
            self._drawn, self._used = drawn.reshape(self._shape).sum(axis=1), 0
        target += self._drawn[self._used]
        self._used += 1
