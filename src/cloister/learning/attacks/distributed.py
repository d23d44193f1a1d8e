"""Distributed DP-SGD as a study runs it, without network and masks, which cancel.

Composed of the very parts of a study: `RowSums` or `unit_sum`, `DiscreteGaussian`, `IntegerGrid`,
`server_mean`, `AdaptiveClip`, `Algorithm.step`. It holds as many sites as noise shares are counted: those of
colluding sites, which the adversary subtracts, are left out, and survivors beyond the fewest are absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.algorithms import ServerState, build_algorithm
from cloister.learning.attacks.mechanism import Claim, Integers, Rows
from cloister.learning.heads import Array
from cloister.learning.models import Model
from cloister.learning.private import (
    AdaptiveClip,
    PrivateModel,
    RowSums,
    server_mean,
    split_bits,
    unit_sum,
)
from cloister.learning.training import ClientRows
from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.types import RandomBytes

__all__ = ["DistributedMechanism", "DistributedRun"]


@dataclass(frozen=True)
class DistributedMechanism:
    """Distributed DP-SGD as a study runs it: record level, or a unit's whole update.

    Args:
        private: the model as clipping sees it.
        claim: what the plan says.
        model: the model as a unit trains it; needed where units are not records.
        insecure_test_random: samples and noise of tests; otherwise from the operating system.
    """

    private: PrivateModel
    claim: Claim
    model: Model | None = None
    insecure_test_random: RandomBytes | None = None

    def __post_init__(self) -> None:
        if not self.claim.by_record and self.model is None:
            raise InputError("units train a model of their own", fix="Give the model")

    @property
    def size(self) -> int:
        """Parameters of the model, d."""
        return self.private.size

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters the l2 penalty touches, bool[d]."""
        return self.private.penalised

    def signals(self, params: Array, rows: Rows, clip: float) -> Array:
        """Return what each row would add to a sum by itself, float64[n, coordinates], in grid units."""
        X, y = rows
        if self.claim.by_record:
            scale = self.claim.grid.clip_units / clip
            vectors = list(self.private.clipped_sums(params, X, y, clip, 1))
            return np.array(vectors).reshape(len(y), self.size) * scale
        alone = [self._unit_sum(params, (X[i : i + 1], y[i : i + 1]), clip, 1.0) for i in range(len(y))]
        return np.array(alone, dtype=np.float64).reshape(len(y), self.size + self.claim.with_bit)

    def begin(self, start: Array, parts: Sequence[Rows]) -> DistributedRun:
        """Return a run over `parts`, one for each counted site."""
        if len(parts) != self.claim.shares:
            raise InputError(
                f"{len(parts)} sites where {self.claim.shares} shares are counted", fix="Give one part each"
            )
        return DistributedRun(self, start, parts)

    def random(self) -> StreamRandom:
        """Return a fresh stream for samples."""
        source = self.insecure_test_random
        return StreamRandom.system() if source is None else StreamRandom(source(32))

    def _unit_sum(self, params: Array, rows: Rows, clip: float, rate: float) -> Integers:
        claim = self.claim
        if self.model is None or not len(rows[1]):
            return np.zeros(self.size + claim.with_bit, dtype=np.int64)
        units = ClientRows.stack([(rows[0][i : i + 1], rows[1][i : i + 1]) for i in range(len(rows[1]))])
        return unit_sum(
            self.model,
            params,
            units,
            training=claim.training,
            clip=clip,
            grid=claim.grid,
            rate=rate,
            random=self.random(),
            norm_bit=claim.with_bit,
        )


class DistributedRun:
    """See `DistributedMechanism`."""

    def __init__(self, mechanism: DistributedMechanism, start: Array, parts: Sequence[Rows]) -> None:
        claim = mechanism.claim
        self._mechanism, self._claim, self._parts = mechanism, claim, tuple(parts)
        self._algorithm = build_algorithm(claim.training)
        self._state: ServerState = self._algorithm.start(start)
        self._clip, self._steps = claim.clip, 0
        self._samples = [mechanism.random() for _ in parts]
        self._noise = DiscreteGaussian(claim.share_variance)
        self._sums = [
            RowSums(mechanism.private, [part], rate=claim.rate, microbatch=claim.microbatch)
            if claim.by_record and len(part[1])
            else None
            for part in parts
        ]

    @property
    def params(self) -> Array:
        """The model now, float64[d]."""
        return self._state.params

    @property
    def clip(self) -> float:
        """The clip now."""
        return self._clip

    def site_sum(self, site: int) -> Integers:
        """Return one site's clipped integers of a fresh sample, before noise."""
        mechanism, claim = self._mechanism, self._claim
        if not claim.by_record:
            return mechanism._unit_sum(self.params, self._parts[site], self.clip, claim.rate)
        sums = self._sums[site]
        if sums is None:
            return np.zeros(mechanism.size, dtype=np.int64)
        return sums.integers(self.params, clip=self.clip, grid=claim.grid, random=self._samples[site])

    def site_noise(self, site: int) -> Integers:
        """Return one fresh share of a site's noise."""
        noise = np.zeros(self._mechanism.size + self._claim.with_bit, dtype=np.int64)
        self._noise.add_into(noise, insecure_test_random=self._mechanism.insecure_test_random)
        return noise

    def look(self) -> Integers:
        """Make one step; return the integers that the adversary sees."""
        grid = self._claim.grid
        words = grid.to_ring(np.zeros(self._mechanism.size + self._claim.with_bit, dtype=np.int64))
        for site in range(len(self._parts)):
            words += grid.to_ring(self.site_sum(site) + self.site_noise(site))
        seen = grid.from_ring(words)
        if self._steps < self._claim.rounds:  # a burnt attempt is seen, and moves nothing
            self.move(seen)
        self._steps += 1
        return seen

    def move(self, seen: Integers) -> None:
        """Take the server's step on a noisy sum, and set the next clip where it adapts."""
        claim, clip = self._claim, self._clip
        divisor = claim.divisor
        integers = seen
        if claim.adaptive_quantile is not None:
            integers, bits = split_bits(seen, claim.grid)
            self._clip = AdaptiveClip(claim.adaptive_quantile).after(clip, bits, divisor)
        values = claim.grid.values(integers, clip)
        mean = values / divisor
        if claim.by_record:
            mean = server_mean(
                values,
                self.params,
                training=claim.training,
                divisor=divisor,
                penalised=self._mechanism.private.penalised,
            )
        self._state = self._algorithm.step(self._state, mean)

    def finish(self) -> Array:
        """Return the final model."""
        return self._algorithm.final(self._state)
