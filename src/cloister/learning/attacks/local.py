"""Local DP-SGD: one site, whose every local step carries all of its noise.

The claim is about every step, so every step is looked at: `local_steps` is called for one at a time, and the
integers behind it are read back from the parameters before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.attacks.distributed import DistributedMechanism
from cloister.learning.attacks.mechanism import Claim, Integers, Rows
from cloister.learning.heads import Array
from cloister.learning.private import PrivateModel, RowSums, local_steps, server_mean
from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.types import RandomBytes

__all__ = ["LocalMechanism", "LocalRun"]


@dataclass(frozen=True)
class LocalMechanism:
    """Local DP-SGD: one site, whose every local step carries all of its noise and is seen by itself.

    Args as for `DistributedMechanism`; the claim has one share.
    """

    private: PrivateModel
    claim: Claim
    insecure_test_random: RandomBytes | None = None

    @property
    def size(self) -> int:
        """Parameters of the model, d."""
        return self.private.size

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters the l2 penalty touches, bool[d]."""
        return self.private.penalised

    def signals(self, params: Array, rows: Rows, clip: float) -> Array:
        """Return what each row would add to a sum by itself, float64[n, d], in grid units."""
        return DistributedMechanism(self.private, self.claim).signals(params, rows, clip)

    def begin(self, start: Array, parts: Sequence[Rows]) -> LocalRun:
        """Return a run over one part."""
        if len(parts) != 1:
            raise InputError("a local mechanism is one site's", fix="Give one part")
        return LocalRun(self, start, parts[0])


class LocalRun:
    """See `LocalMechanism`."""

    def __init__(self, mechanism: LocalMechanism, start: Array, rows: Rows) -> None:
        self._mechanism, self._claim, self._rows = mechanism, mechanism.claim, rows
        self._params = np.array(start, dtype=np.float64)
        source = mechanism.insecure_test_random
        self._random = StreamRandom.system() if source is None else StreamRandom(source(32))
        self._noise = DiscreteGaussian(self._claim.share_variance)

    @property
    def params(self) -> Array:
        """The model now, float64[d]."""
        return self._params

    @property
    def clip(self) -> float:
        """The clip."""
        return self._claim.clip

    def site_sum(self, site: int) -> Integers:
        """Return the clipped integers of a fresh sample, before noise."""
        claim = self._claim
        if not len(self._rows[1]):
            return np.zeros(self._mechanism.size, dtype=np.int64)
        sums = RowSums(self._mechanism.private, [self._rows], rate=claim.rate, microbatch=claim.microbatch)
        return sums.integers(self._params, clip=claim.clip, grid=claim.grid, random=self._random)

    def site_noise(self, site: int) -> Integers:
        """Return the noise of one step."""
        noise = np.zeros(self._mechanism.size, dtype=np.int64)
        self._noise.add_into(noise, insecure_test_random=self._mechanism.insecure_test_random)
        return noise

    def look(self) -> Integers:
        """Make one local step; return the integers behind it."""
        claim, private, before = self._claim, self._mechanism.private, self._params
        X, y = self._rows
        self._params = local_steps(
            private,
            before,
            X,
            y,
            training=msgspec.structs.replace(claim.training, local_steps=1),
            clip=claim.clip,
            grid=claim.grid,
            rate=claim.rate,
            microbatch=claim.microbatch,
            noise=self._noise,
            divisor=claim.divisor,
            random=self._random,
            insecure_test_random=self._mechanism.insecure_test_random,
        )
        return self._read_back(before, self._params)

    def move(self, seen: Integers) -> None:
        """Take the step that these integers mean."""
        claim = self._claim
        self._params = self._params + server_mean(
            claim.grid.values(seen, claim.clip),
            self._params,
            training=claim.training,
            divisor=claim.divisor,
            penalised=self._mechanism.private.penalised,
        )

    def finish(self) -> Array:
        """Return the final model."""
        return self._params

    def _read_back(self, before: Array, after: Array) -> Integers:
        """Invert the step: (before - after) / rate - l2 penalty, times the divisor, on the grid again."""
        claim, training = self._claim, self._claim.training
        gradient = (before - after) / training.learning_rate
        gradient -= training.l2 * self._mechanism.private.penalised * before
        units = gradient * (claim.divisor * claim.grid.clip_units / claim.clip)
        return np.rint(units).astype(np.int64)
