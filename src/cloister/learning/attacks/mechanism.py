"""The mechanism that is audited, cut where an auditor may look: sums, noise, ring, step.

    mechanism.begin(start, parts) -> Run
    run.look()      one step: every site's clipped integers and share of noise, summed in the ring; returns
                    what the adversary of the claim sees, and moves the model by it
    run.finish()    the final model

`Claim` is what the plan says of it in numbers; attacks and structural checks measure against it. What is
audited is in `distributed` and `local`; nothing here draws a conclusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.sections import TrainingSection
from cloister.privacy.mechanisms import IntegerGrid

__all__ = ["Claim", "Integers", "Mechanism", "Rows", "Run", "deal"]

Rows = tuple[Array, Array]
"""X float64[n, f] and y float64[n] of one site; in user level each row is a unit of its own."""

Integers = NDArray[np.int64]
"""int64[coordinates]: a vector of the grid."""


@dataclass(frozen=True)
class Claim:
    """What a plan says its mechanism is.

    Args:
        training: `[training]`.
        divisor: what a step's sum is divided by, a constant.
        rate: each unit's probability to be in a step.
        clip: most that a unit adds, in L2, in units of the gradient (or update).
        grid: the integers.
        microbatch: rows that are summed before they are rounded.
        share_variance: variance of one site's noise, grid units squared.
        shares: how many shares the claim counts.
        steps: noisy vectors that somebody may see, attempts that were burnt included.
        rounds: those of them that move the model, the first ones.
        sensitivity: most that a unit moves a vector, in grid units, rounding included.
        sites_per_unit: at how many sites a unit may be.
        adaptive_quantile: of the norm bit, or None where the clip is fixed.
        by_record: whether a unit is one row; else a unit trains by itself and its update is clipped.
        local: whether each site noises its own steps; then there is no server between a sum and the model.
    """

    training: TrainingSection
    divisor: float
    rate: float
    clip: float
    grid: IntegerGrid
    microbatch: int
    share_variance: float
    shares: int
    steps: int
    rounds: int
    sensitivity: float
    sites_per_unit: int = 1
    adaptive_quantile: float | None = None
    by_record: bool = True
    local: bool = False

    def __post_init__(self) -> None:
        if not (
            0.0 < self.rate <= 1.0
            and self.divisor > 0.0
            and 1 <= self.rounds <= self.steps
            and 1 <= self.sites_per_unit <= self.shares
        ):
            raise InputError("the claim does not describe a mechanism", fix="Take it from the plan's terms")

    @property
    def variance(self) -> float:
        """Variance of the noise on a coordinate that the adversary does not know, grid units squared."""
        return self.share_variance * self.shares

    @property
    def with_bit(self) -> bool:
        """Whether the vector carries the norm bit as its last coordinate."""
        return self.adaptive_quantile is not None


class Run(Protocol):
    """One run over given rows."""

    @property
    def params(self) -> Array:
        """The model now, float64[d], which the adversary knows."""

    @property
    def clip(self) -> float:
        """The clip now, which the adversary knows."""

    def site_sum(self, site: int) -> Integers:
        """Return one site's clipped integers of a fresh sample, before noise. For structural checks."""

    def site_noise(self, site: int) -> Integers:
        """Return one fresh share of a site's noise. For structural checks."""

    def move(self, seen: Integers) -> None:
        """Take the server's step on a noisy sum."""

    def look(self) -> Integers:
        """Make one step; return the integers that the adversary sees."""

    def finish(self) -> Array:
        """Return the final model."""


class Mechanism(Protocol):
    """What is audited."""

    @property
    def claim(self) -> Claim:
        """What is said of it."""

    @property
    def size(self) -> int:
        """Parameters of the model, d."""

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters the l2 penalty touches, bool[d]."""

    def signals(self, params: Array, rows: Rows, clip: float) -> Array:
        """Return what each row would add to a sum by itself, float64[n, coordinates], in grid units."""

    def begin(self, start: Array, parts: Sequence[Rows]) -> Run:
        """Return a run; one part for each counted site, which may have no rows."""


def deal(parts: Sequence[Rows], shares: int) -> list[Rows]:
    """Return the sites' rows dealt to `shares` sites, in turn; a site beyond the number of parts has none."""
    empty = (parts[0][0][:0], parts[0][1][:0])
    hands = [list(parts[at::shares]) or [empty] for at in range(shares)]
    return [(np.concatenate([X for X, _ in hand]), np.concatenate([y for _, y in hand])) for hand in hands]
