"""A plan's language model opened for its audit: its terms, its mechanism's checks, and what it is asked.

The base is open for the length of a `with opened(...)`, and its model must be the plan's pinned start. What
is planted and trained is `governance.auditlanguage`'s.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import numpy as np

from cloister.crypto import Identity
from cloister.governance.auditmechanism import as_the_study_runs_it
from cloister.learning import Plan
from cloister.learning.attacks import (
    Canaries,
    Check,
    DistributedMechanism,
    LocalMechanism,
    Mechanism,
    claim_of,
    claimed_events,
    structural_checks,
)
from cloister.learning.attacks.languagelistener import LearnerListener, encoded
from cloister.learning.attacks.languagememory import Remembered, Run, remembered
from cloister.learning.attacks.languagesecrets import Plant, text_rows
from cloister.learning.facts import ModelFacts
from cloister.learning.heads import Array
from cloister.learning.learner import Vector
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.languageworker import base_files, plan_texts
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["Progress", "Stage", "checks_of", "opened"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told a stage's name, what is done of it, and of how much."""

_DELTA: Final = 1e-5  # at which a bound is stated where nothing is claimed
_CHECK_SECONDS: Final = 30.0
_CHECK_STEPS: Final = (20, 300)


@dataclass(frozen=True)
class Stage:
    """A plan's model, open: what is trained and asked."""

    plan: Plan
    learner: LanguageLearner
    facts: ModelFacts

    @property
    def base(self) -> str:
        """Digest of the base."""
        return self.learner.language.base

    @property
    def kind(self) -> Literal["causal-lm", "text-classifier"]:
        """Kind of the model."""
        return self.learner.kind

    def terms(self, counts: Mapping[str, int]) -> EpochTerms:
        """Return the terms of an epoch of such a roster, whose members have keys that nobody keeps."""
        members = [Identity.generate(name).public for name in counts]
        digests = dict.fromkeys(counts, bytes(32))
        return terms_of(self.plan, 0, members, counts, digests, self.facts, self.facts)

    def ask(
        self,
        others: int,
        run: Run,
        params: Vector,
        plant: Plant,
        terms: EpochTerms,
        confidence: float,
        progress: Callable[[int, int], None],
    ) -> Remembered:
        """Ask the model with these parameters for what was planted; raises as `remembered`."""
        privacy = terms.privacy
        return remembered(
            run,
            LearnerListener(self.learner, params),
            plant,
            delta=_DELTA if privacy is None else privacy.section.delta,
            confidence=confidence,
            others=others,
            events=() if privacy is None or run == "without noise" else claimed_events(privacy),
            progress=progress,
        )


class opened:  # noqa: N801  # reads as what it does, in a `with`
    """Opens a plan's base for the length of a `with`."""

    def __init__(self, plan: Plan, schema: Schema, base: Path | None, device: str) -> None:
        self._plan, self._device = plan, device
        self._language, _ = plan_texts(plan, schema)
        self._files = base_files(plan, base)

    def __enter__(self) -> Stage:
        from cloister.learning.torch.language.facts import facts_of
        from cloister.learning.torch.language.learner import LanguageLearner

        with closing(self._files), tempfile.TemporaryDirectory(prefix="cloister-audit-") as scratch:
            learner = LanguageLearner(
                self._plan.model, self._language, self._files, scratch=Path(scratch), device=self._device
            )
        facts = facts_of(self._plan, learner)
        facts.require_pinned(self._plan)
        return Stage(self._plan, learner, facts)

    def __exit__(self, *error: object) -> None:
        self._files.close()


def checks_of(stage: Stage, terms: EpochTerms, plant: Plant, tell: Progress) -> tuple[Check, ...]:
    """Return the structural checks, none where a step is no sum of clipped rows or takes too long."""
    privacy, learner = terms.privacy, stage.learner
    if privacy is None or not privacy.section.by_record or len(stage.facts.windows) > 1:
        return ()
    from cloister.learning.torch.language.private import LanguagePrivate

    tell("checks", 0, 1)
    some = [each.secret for each in plant.canaries[:3]]
    examples = encoded(learner, text_rows(some, learner.language.format))
    private = LanguagePrivate(learner, examples)
    numbers = Canaries(cast(Array, np.arange(len(some))), np.zeros(len(some)))
    claim = claim_of(stage.plan, privacy)
    kind = LocalMechanism if claim.local else DistributedMechanism
    mechanism: Mechanism = as_the_study_runs_it(kind(private, claim), stage.plan, terms)
    start = stage.facts.initial.astype(np.float64)
    rows = np.zeros(32, dtype=np.int64)
    before = time.monotonic()
    list(private.clipped_sums(start, rows, np.zeros(32), claim.clip, 32))
    steps = int(_CHECK_SECONDS / max(time.monotonic() - before, 1e-6))
    least, most = _CHECK_STEPS
    found = () if steps < least else structural_checks(mechanism, start, numbers, steps=min(most, steps))
    tell("checks", 1, 1)
    return found
