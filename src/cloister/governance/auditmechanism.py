"""A study's mechanism for an audit, its server's step taken by the very object that hub and sites use.

What comes from a site (sample, clip, grid, noise) is `learning.attacks`' composition of the parts that a
site's worker runs; what becomes of the sum is `runtime`'s `GlobalModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.learning import Plan
from cloister.learning.attacks import Claim, DistributedMechanism, Mechanism, Rows, Run
from cloister.learning.attacks.distributed import DistributedRun
from cloister.learning.attacks.mechanism import Integers
from cloister.learning.heads import Array
from cloister.runtime.epoch import EpochTerms
from cloister.runtime.globalmodel import GlobalModel

__all__ = ["StudyMechanism", "as_the_study_runs_it"]


@dataclass(frozen=True)
class StudyMechanism:
    """A distributed mechanism whose steps are those of a study's hub and sites.

    Args:
        sites: samples, sums and noise.
        plan: the plan.
        terms: of an epoch of its roster.
    """

    sites: DistributedMechanism
    plan: Plan
    terms: EpochTerms

    @property
    def claim(self) -> Claim:
        """What is said of it."""
        return self.sites.claim

    @property
    def size(self) -> int:
        """Parameters of the model, d."""
        return self.sites.size

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters the l2 penalty touches, bool[d]."""
        return self.sites.penalised

    def signals(self, params: Array, rows: Rows, clip: float) -> Array:
        """Return what each row would add to a sum by itself, float64[n, coordinates], in grid units."""
        return self.sites.signals(params, rows, clip)

    def begin(self, start: Array, parts: Sequence[Rows]) -> Run:
        """Return a run over `parts`, one for each counted site."""
        return _StudyRun(self, start, parts)


class _StudyRun(DistributedRun):
    """A run whose model is a `GlobalModel`."""

    def __init__(self, mechanism: StudyMechanism, start: Array, parts: Sequence[Rows]) -> None:
        super().__init__(mechanism.sites, start, parts)
        self._terms = mechanism.terms
        self._global = GlobalModel(mechanism.plan, start, mechanism.penalised)

    @property
    def params(self) -> Array:
        """The model now, float64[d]."""
        return self._global.params

    @property
    def clip(self) -> float:
        """The clip now."""
        return self._global.clip

    def move(self, seen: Integers) -> None:
        """Take the step that hub and sites take on a noisy sum."""
        self._global.apply(self._claim.grid.to_ring(seen), self._terms.roster.names, self._terms)

    def finish(self) -> Array:
        """Return the model that is released."""
        return self._global.released()


def as_the_study_runs_it(mechanism: Mechanism, plan: Plan, terms: EpochTerms) -> Mechanism:
    """Return a distributed mechanism with the study's own step; another one as it is."""
    return (
        StudyMechanism(mechanism, plan, terms) if isinstance(mechanism, DistributedMechanism) else mechanism
    )
