"""A study of a language model, run on one machine without network and masks, which cancel: for its audit.

Composed of the very parts that sites and hub run: the learner's local steps, `RowSums` or `language_unit_sum`
over book-keeping, `DiscreteGaussian`, the ring's encoding, `GlobalModel`. One learner serves all sites, whose
rows are numbers into one set of examples, so that the base is in memory once.

With privacy there are as many sites as noise shares are counted: those of colluding sites, which the
adversary subtracts, are left out, and survivors beyond the fewest are absent. Rows of sites beyond are dealt
to those that are there. A unit is one row, or all rows of one name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.learning.language.layout import Window
from cloister.learning.learner import Vector
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.private import RowSums, local_steps
from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.runtime.epoch import EpochTerms
from cloister.runtime.globalmodel import GlobalModel
from cloister.secagg import RingVector

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner
    from cloister.learning.torch.language.private import LanguagePrivate

__all__ = ["LanguageStudy", "SiteRows"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SiteRows:
    """The rows of one site.

    Attributes:
        rows: int64[n], their numbers in the examples of all.
        units: int64[n], whose each row is, by any number; rows of one number are a unit's. Another site's
            numbers are others: a site clips what it has of somebody by itself.
    """

    rows: NDArray[np.int64]
    units: NDArray[np.int64]


class _Silence:
    """No noise at all, in the place of noise."""

    def sample(self, count: int, **_: Any) -> NDArray[np.int64]:
        """Return int64[count], zeros."""
        return np.zeros(count, dtype=np.int64)

    def add_into(self, target: NDArray[np.int64], **_: Any) -> None:
        """Leave it as it is."""


class LanguageStudy:
    """The training of a plan over given rows.

    Args:
        plan: of a language model.
        learner: its model.
        facts: of the model, as sites state them.
        terms: of an epoch of its roster.
        examples: rows of all sites.
        sites: which are whose, in the roster's order.
        noise: whether noise is added, where the plan claims privacy; without it nothing is private.
        insecure_test_random: samples and order of rows of a test; otherwise from the operating system.

    Raises:
        InputError: sites do not fit the roster, or one has no rows.
    """

    def __init__(
        self,
        plan: Plan,
        learner: LanguageLearner,
        facts: ModelFacts,
        terms: EpochTerms,
        examples: Examples,
        sites: Sequence[SiteRows],
        *,
        noise: bool = True,
        insecure_test_random: StreamRandom | None = None,
    ) -> None:
        names = terms.roster.names
        if len(sites) != len(names) or not all(len(site.rows) for site in sites):
            raise InputError("every site of the roster needs rows", where="audit", fix="Give each some")
        self._plan, self._learner, self._terms, self._examples = plan, learner, terms, examples
        self._noise, self._random = noise, insecure_test_random
        self._model = GlobalModel.of(plan, facts.initial, facts)
        shared = terms.distributed_noise
        present = len(names) if shared is None else _counted_shares(shared)
        self._sites = _dealt(sites, present)
        self._names = names[:present]
        self._private: dict[Window, tuple[LanguagePrivate, list[RowSums]]] = {}

    def run(self, progress: Progress | None = None) -> Vector:
        """Run all rounds; return the model that is released, float32[d].

        Args:
            progress: told how many sites' parts are done, of those of all rounds; at the beginning 0.

        Raises:
            PlanError: training diverged.
            StorageError: there is not enough memory.
        """
        tell = progress or (lambda done, total: None)
        rounds, sites = self._plan.training.rounds, len(self._sites)
        tell(0, rounds * sites)
        for done in range(rounds):
            params = self._model.params.copy()  # what sites have; theirs does not move under their feet
            total = self._part(0, params)
            tell(done * sites + 1, rounds * sites)
            for site in range(1, sites):
                total += self._part(site, params)
                tell(done * sites + site + 1, rounds * sites)
            self._model.apply(total, self._names, self._terms)
        return self._model.released()

    def _part(self, site: int, params: Vector) -> RingVector:
        """Return a site's part of the round's sum, as it would be masked."""
        terms, window = self._terms, self._model.window
        shared = terms.distributed_noise
        if shared is not None:
            whole = shared.as_sent(self._sum(site, params, window, shared))
            if self._noise:
                shared.noise().add_into(whole)
            return shared.grid.to_ring(whole)
        trained = self._trained(site, params, window)
        vector, _ = self._model.encoded(trained, params, self._names[site], terms)
        return vector

    def _trained(self, site: int, params: Vector, window: Window) -> Vector:
        privacy, plan = self._terms.privacy, self._plan
        if privacy is None:
            examples = self._examples.select(self._sites[site].rows)
            return self._learner.train(
                params, examples, plan.training, window, insecure_test_random=self._random
            )
        section, (start, stop) = privacy.section, window
        model, sums = self._clipping(window)
        model.hold(params)
        rows = self._sites[site].rows
        trained = params.copy()
        trained[start:stop] = local_steps(
            model,
            params[start:stop].astype(np.float64),
            rows,
            np.zeros(len(rows)),
            training=plan.training,
            clip=section.clip,
            grid=privacy.grid,
            rate=section.rate,
            microbatch=section.microbatch,
            noise=privacy.noise() if self._noise else cast(DiscreteGaussian, _Silence()),
            divisor=plan.training.batch,
            random=self._random or StreamRandom.system(),
            sums=sums[site],
        )
        return trained

    def _sum(self, site: int, params: Vector, window: Window, privacy: PrivacyTerms) -> NDArray[np.int64]:
        section, clip = privacy.section, self._model.clip
        random = self._random or StreamRandom.system()
        if section.by_record:
            model, sums = self._clipping(window)
            model.hold(params)
            part = params[window[0] : window[1]].astype(np.float64)
            return sums[site].integers(part, clip=clip, grid=privacy.grid, random=random)
        from cloister.learning.torch.language.units import language_unit_sum

        here = self._sites[site]
        units = [here.rows[here.units == unit] for unit in np.unique(here.units)]
        return language_unit_sum(
            self._learner,
            params,
            self._examples,
            units,
            window,
            training=self._plan.training,
            clip=clip,
            grid=privacy.grid,
            rate=section.rate,
            random=random,
            norm_bit=section.adaptive_quantile is not None,
        )

    def _clipping(self, window: Window) -> tuple[LanguagePrivate, list[RowSums]]:
        """Return what clips single rows in a window, and each site's rows in it; made once."""
        if window not in self._private:
            from cloister.learning.torch.language.private import LanguagePrivate

            section = self._plan.privacy
            assert section is not None  # noqa: S101  # asked for under privacy alone
            model = LanguagePrivate(self._learner, self._examples, window)
            sums = [
                RowSums(
                    model,
                    [(site.rows, np.zeros(len(site.rows)))],
                    rate=section.rate,
                    microbatch=section.microbatch,
                )
                for site in self._sites
            ]
            self._private[window] = model, sums
        return self._private[window]


def _counted_shares(privacy: PrivacyTerms) -> int:
    """Return how many shares of noise the claim counts: sites of the run."""
    from cloister.learning.attacks import claimed_events
    from cloister.privacy.accounting import IntegerGaussian, MixedGaussian

    (event,) = claimed_events(privacy)
    mechanism = event.mechanism
    assert isinstance(mechanism, IntegerGaussian | MixedGaussian)  # noqa: S101  # a training's events are
    return mechanism.shares


def _dealt(sites: Sequence[SiteRows], shares: int) -> list[SiteRows]:
    """Return rows of sites beyond the first `shares` put to those; units stay what they were."""
    groups = [[site for at, site in enumerate(sites) if at % shares == share] for share in range(shares)]
    return [_together(group) for group in groups]


def _together(group: Sequence[SiteRows]) -> SiteRows:
    """Return several sites' rows as one site's. Each numbers units from nought: they are renumbered."""
    units, known = [], 0
    for site in group:
        names, numbers = np.unique(site.units, return_inverse=True)
        units.append(numbers.astype(np.int64) + known)
        known += len(names)
    return SiteRows(np.concatenate([site.rows for site in group]), np.concatenate(units))
