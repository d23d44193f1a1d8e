"""The audit of a language model: of a plan's training, run anew with planted secrets, or of a finished model.

`rehearse`, in this order:

1. terms: the claim of the plan for this roster, where it makes one, and the model's pinned start;
2. plant: secrets and canaries that nobody has, drawn here, beside rows that nobody wrote (or given ones);
3. checks: the mechanism's sums, samples, noise and steps are those that were accounted for, where single rows
   are protected and the model is small enough to ask that often;
4. training: all rounds of the plan; where it claims privacy once more, the same steps without their noise;
5. asking: what each of the models has kept (`learning.attacks.languagememory`).

`ask_model` asks a finished model for what its owner planted before training: step 5 alone.

The bound is that of the coins under the model as planned, and is held against the claim. Exposure has no
claim to be held against: a secret that is planted twenty times is protected by twenty times the epsilon of a
row, so that it falls to chance is measured and not promised. A secret that is remembered is a verdict of its
own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import msgspec
import numpy as np
import pyarrow as pa

from cloister.crypto import Identity, StreamRandom
from cloister.errors import InputError
from cloister.governance.audit import AuditReport, CanaryFacts, ClaimFacts, LanguageFindings, judge
from cloister.governance.auditmechanism import as_the_study_runs_it
from cloister.governance.languagestudy import LanguageStudy, SiteRows
from cloister.governance.privacy import upwards
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
from cloister.learning.attacks.languagerows import synthetic_texts
from cloister.learning.attacks.languagesecrets import KINDS, Kind, Plant, make_plant, text_rows
from cloister.learning.facts import ModelFacts
from cloister.learning.heads import Array
from cloister.learning.learner import Vector
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.languageworker import base_files, plan_texts, preload
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["Planting", "ask_model", "rehearse"]

Stage: TypeAlias = Literal["checks", "training", "asking"]
Progress: TypeAlias = Callable[[str, int, int], None]

_DELTA: Final = 1e-5  # at which a bound is stated where nothing is claimed
_CHECK_SECONDS: Final = 30.0
_CHECK_STEPS: Final = (20, 300)
_ROWS: Final = 100  # of a site, where nobody says how many


@dataclass(frozen=True)
class Planting:
    """What an audit plants.

    Attributes:
        copies: how often secrets are planted.
        each: secrets of each number of copies.
        coins: canaries that a coin puts in once or leaves out.
        kinds: of secrets, taken in turn; a classifier gets phrases.
    """

    copies: tuple[int, ...] = (1, 4, 20)
    each: int = 5
    coins: int = 40
    kinds: tuple[Kind, ...] = KINDS


def rehearse(
    plan: Plan,
    schema: Schema,
    base: Path | None,
    *,
    created: str,
    rows: Mapping[str, int] | None = None,
    tables: Mapping[str, pa.Table] | None = None,
    planting: Planting | None = None,
    confidence: float = 0.95,
    device: str = "auto",
    progress: Progress | None = None,
) -> AuditReport:
    """Audit the training of a plan as a roster of these sites runs it.

    Args:
        plan: of a language model.
        schema: of its rows.
        base: folder of the base.
        created: the time, "2026-01-31T12:00:00Z".
        rows: rows of each site of the roster; None for 100 at each of the plan's sites.
        tables: rows to train on beside what is planted, by site; synthetic ones elsewhere. They may be
            anybody's, and then so is the report.
        planting: what is planted; None for the default.
        confidence: of verdict and bound.
        device: "cpu", "cuda", or "auto" for what is there.
        progress: told how far it is.

    Raises:
        PlanError: the plan's claim does not hold for this roster, its start is another, or training diverged.
        InputError: the base is not given or cannot be trained, or an argument is out of range.
    """
    began = time.monotonic()
    preload()
    if not 0.0 < confidence < 1.0:
        raise InputError("an audit needs a confidence between 0 and 1", fix="Leave it out for 0.95")
    counts = dict(rows or dict.fromkeys((site.name for site in plan.sites), _ROWS))
    asked = planting or Planting()
    with _opened(plan, schema, base, device) as stage:
        terms = stage.terms(counts)  # 1
        plant = make_plant(
            copies=asked.copies,
            each=asked.each,
            coins=asked.coins,
            kinds=asked.kinds,
            classes=stage.learner.classes,
        )
        examples, sites, background = _planted_rows(plan, schema, stage.learner, plant, counts, tables)  # 2
        tell = progress or (lambda name, done, total: None)
        checks = _checks(stage, terms, plant, tell)  # 3
        runs: list[Remembered] = []
        kinds: tuple[Run, ...] = ("as planned",) if terms.privacy is None else ("as planned", "without noise")
        for number, kind in enumerate(kinds):
            study = LanguageStudy(
                plan, stage.learner, stage.facts, terms, examples, sites, noise=kind == "as planned"
            )
            params = study.run(_share(tell, "training", number, len(kinds)))  # 4
            found = stage.ask(
                kind, params, plant, terms, confidence, _share(tell, "asking", number, len(kinds))
            )
            runs.append(found)  # 5
    findings = LanguageFindings(stage.base, stage.kind, "rehearsed", background, tuple(runs))
    whose: Literal["synthetic", "own"] = "own" if tables else "synthetic"
    return _report(plan, terms, plant, findings, checks, confidence, whose, began, created)


def ask_model(
    plan: Plan,
    schema: Schema,
    base: Path | None,
    parameters: Vector,
    plant: Plant,
    *,
    created: str,
    rows: Mapping[str, int],
    confidence: float = 0.95,
    device: str = "auto",
    progress: Progress | None = None,
) -> AuditReport:
    """Ask a finished model for what was planted among its rows.

    Args:
        plan: that it was trained by.
        schema: of its rows.
        base: folder of the base.
        parameters: float32[d], as released.
        plant: what its owner planted before training.
        created: the time.
        rows: rows of each site of the last roster.
        confidence: of verdict and bound.
        device: as `rehearse`.
        progress: told how far it is.

    Raises:
        PlanError, InputError: as `rehearse`; or the plant is one of another kind of model.
    """
    began = time.monotonic()
    preload()
    tell = progress or (lambda name, done, total: None)
    with _opened(plan, schema, base, device) as stage:
        classes = stage.learner.classes
        if any(each.secret.classes != classes for each in plant.canaries):
            raise InputError(
                "these canaries were made for another kind of model, or other classes",
                where="audit",
                fix="Give the list that belongs to this study's rows",
            )
        terms = stage.terms(dict(rows))
        found = stage.ask("the model", parameters, plant, terms, confidence, _share(tell, "asking", 0, 1))
    findings = LanguageFindings(stage.base, stage.kind, "planted", 0, (found,))
    return _report(plan, terms, plant, findings, (), confidence, "synthetic", began, created)


@dataclass(frozen=True)
class _Stage:
    """A plan's model, open."""

    plan: Plan
    learner: LanguageLearner
    facts: ModelFacts

    @property
    def base(self) -> str:
        return self.learner.language.base

    @property
    def kind(self) -> Literal["causal-lm", "text-classifier"]:
        return self.learner.kind

    def terms(self, counts: Mapping[str, int]) -> EpochTerms:
        """Return the terms of an epoch of such a roster, whose members have keys that nobody keeps."""
        members = [Identity.generate(name).public for name in counts]
        digests = dict.fromkeys(counts, bytes(32))
        return terms_of(self.plan, 0, members, counts, digests, self.facts, self.facts)

    def ask(
        self,
        run: Run,
        params: Vector,
        plant: Plant,
        terms: EpochTerms,
        confidence: float,
        progress: Callable[[int, int], None],
    ) -> Remembered:
        privacy = terms.privacy
        return remembered(
            run,
            LearnerListener(self.learner, params),
            plant,
            delta=_DELTA if privacy is None else privacy.section.delta,
            confidence=confidence,
            events=() if privacy is None or run == "without noise" else claimed_events(privacy),
            progress=progress,
        )


class _opened:  # noqa: N801  # reads as what it does, in a `with`
    """Opens a plan's base for the length of a `with`."""

    def __init__(self, plan: Plan, schema: Schema, base: Path | None, device: str) -> None:
        self._plan, self._device = plan, device
        self._language, _ = plan_texts(plan, schema)
        self._files = base_files(plan, base)

    def __enter__(self) -> _Stage:
        from cloister.learning.torch.language.facts import facts_of
        from cloister.learning.torch.language.learner import LanguageLearner

        with closing(self._files), tempfile.TemporaryDirectory(prefix="cloister-audit-") as scratch:
            learner = LanguageLearner(
                self._plan.model, self._language, self._files, scratch=Path(scratch), device=self._device
            )
        facts = facts_of(self._plan, learner)
        facts.require_pinned(self._plan)
        return _Stage(self._plan, learner, facts)

    def __exit__(self, *error: object) -> None:
        self._files.close()


def _planted_rows(
    plan: Plan,
    schema: Schema,
    learner: LanguageLearner,
    plant: Plant,
    counts: Mapping[str, int],
    tables: Mapping[str, pa.Table] | None,
) -> tuple[Examples, list[SiteRows], int]:
    """Return the rows of all sites as tokens, which are whose, and how many were not planted.

    Each secret is at one site, with all its copies; a site has about as many rows as it is said to have.
    """
    language, texts = plan_texts(plan, schema)
    cut = msgspec.structs.replace(language, overlong="truncate")
    random = StreamRandom.system()
    parts: list[Examples] = []
    sites: list[SiteRows] = []
    at = background = 0
    for number, (name, count) in enumerate(counts.items()):
        here = [each for place, each in enumerate(plant.canaries) if place % len(counts) == number]
        told = [each.secret for each in here for _ in range(each.copies)]
        whose = [owner for owner, each in enumerate(here) for _ in range(each.copies)]
        table = None if tables is None else tables.get(name)
        others = (
            synthetic_texts(
                max(1, count - len(told)),
                language.format,
                learner.classes,
                random,
                most_words=language.context // 12,
            )
            if table is None
            else texts.rows(table)
        )
        rows = [learner.words.encode(others, cut, learner.kind, site=name)]
        if told:
            rows.append(encoded(learner, text_rows(told, language.format)))
        own = len(rows[0])
        background += own
        parts += rows
        total = own + len(told)
        units = np.array([*range(own), *(own + owner for owner in whose)], dtype=np.int64)
        sites.append(SiteRows(np.arange(at, at + total), units))
        at += total
    return _together(parts), sites, background


def _together(parts: Sequence[Examples]) -> Examples:
    """Return the rows of all parts, one after the other."""
    from cloister.learning.torch.language.examples import Examples

    starts, at = [np.zeros(1, dtype=np.int64)], 0
    for part in parts:
        starts.append(part.starts[1:] + at)
        at += len(part.ids)
    places = None
    if any(part.places is not None for part in parts):
        places = np.concatenate([_places(part) for part in parts])
    return Examples(
        ids=np.concatenate([part.ids for part in parts]),
        starts=np.concatenate(starts),
        counted=np.concatenate([part.counted for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        pad=parts[0].pad,
        places=places,
    )


def _places(part: Examples) -> Any:
    """Return each token's place in its own text, of rows that are one text each too."""
    if part.places is not None:
        return part.places
    return np.concatenate([np.arange(n, dtype=np.int32) for n in part.lengths.tolist()])


def _checks(stage: _Stage, terms: EpochTerms, plant: Plant, tell: Progress) -> tuple[Check, ...]:
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


def _report(
    plan: Plan,
    terms: EpochTerms,
    plant: Plant,
    findings: LanguageFindings,
    checks: tuple[Check, ...],
    confidence: float,
    rows: Literal["synthetic", "own"],
    began: float,
    created: str,
) -> AuditReport:
    first, privacy = findings.runs[0], terms.privacy
    claim = None if privacy is None else _claim_facts(plan, privacy)
    claimed = bound = None
    if claim is not None:
        claimed = claim.epsilon_hub if claim.adversary == "hub" else claim.epsilon_colluders
        bound = first.bounds[0].epsilon if first.bounds else 0.0
    verdict, said = judge(claimed, bound, confidence, checks, first)
    coins = len(plant.coins)
    return AuditReport(
        claimed=claimed,
        bound=bound,
        confidence=confidence,
        verdict=verdict,
        explanation=said,
        study=plan.study.name,
        plan=plan.digest.hex(),
        hub_view=plan.aggregation.hub_view,
        rows=rows,
        claim=claim,
        canaries=CanaryFacts(coins, 1, coins) if claim is not None else None,
        bounds=first.bounds if claim is not None else (),
        checks=checks,
        membership=None,
        inversion=(),
        conditions=tuple(_conditions(findings, plant, claim, checks)),
        seconds=round(time.monotonic() - began, 3),
        created=created,
        language=findings,
    )


def _claim_facts(plan: Plan, terms: PrivacyTerms) -> ClaimFacts:
    facts, claim = terms.facts, claim_of(plan, terms)
    return ClaimFacts(
        upwards(facts.epsilon_hub),
        upwards(facts.epsilon_colluders),
        facts.delta,
        facts.adversary,
        facts.unit,
        facts.mode,
        facts.noise_multiplier,
        claim.rate,
        claim.steps,
        claim.shares,
    )


def _conditions(
    findings: LanguageFindings, plant: Plant, claim: ClaimFacts | None, checks: tuple[Check, ...]
) -> list[str]:
    planted = sum(each.copies for each in plant.canaries)
    said = []
    if findings.source == "rehearsed":
        said.append("The plan's training was run anew on this machine; what sites ran is not shown by it.")
        said.append(f"{planted} planted rows lay among {findings.rows} others; each secret at one site.")
    else:
        said.append(f"The finished model was asked for {len(plant.canaries)} secrets of its owner's list.")
    if plant.coins:
        said.append(f"The bound rests on {len(plant.coins)} canaries of one run and on losses alone.")
    said.append("A secret that is not remembered says nothing of rows that are easier to remember.")
    if claim is not None:
        said.append("A secret of k rows is protected by about k times the epsilon of a row.")
        if findings.source == "rehearsed" and not checks:
            said.append("The mechanism's integers were not checked: too large, by unit, or adapters in turn.")
    return said


def _share(tell: Progress, stage: Stage, number: int, runs: int) -> Callable[[int, int], None]:
    """Return progress of one of several runs of a stage."""
    return lambda done, total: tell(stage, number * total + done, runs * total)
