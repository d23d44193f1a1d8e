"""Run an audit: attacks on the mechanism of a plan, put together to a report.

In this order:

1. terms: the claim of the plan for this roster, with its events and epsilon;
2. checks: the mechanism's sums, samples, noise and steps are those that were accounted for;
3. canaries: the mechanism runs with synthetic canaries in or out, and what the hub sees is guessed from;
4. bound: the largest epsilon that the guesses refute, at the claim's delta;
5. membership: shadow models;
6. inversion: rows read back from what the hub sees, with and without masks and noise.

Canaries are nobody's rows, so steps 1 to 4, and with them the verdict, depend on no row. Steps 5 and 6 use
rows drawn from the schema, or rows that their owner gives; a report of those is its owner's and stays there.

The mechanism is run anew from the plan. That the sites of a study ran this code is not shown by it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Literal

import pyarrow as pa

from cloister.crypto import Identity, StreamRandom
from cloister.errors import InputError, PlanError
from cloister.governance.audit import AuditReport, CanaryFacts, ClaimFacts, judge
from cloister.governance.auditmechanism import as_the_study_runs_it
from cloister.governance.privacy import upwards
from cloister.learning import FeatureMap, Model, Plan, SoftmaxHead, initial_model, plan_model
from cloister.learning.attacks import (
    Bound,
    Check,
    Inversion,
    Mechanism,
    Membership,
    Rows,
    claimed_events,
    game_bounds,
    invert,
    lira,
    make_canaries,
    mechanism_of,
    plain_trainer,
    plain_views,
    play,
    private_trainer,
    private_views,
    structural_checks,
    synthetic_rows,
)
from cloister.learning.heads import Array
from cloister.learning.privacy import private_model
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.vault import Schema

__all__ = ["STAGES", "Progress", "Stage", "audit"]

Stage = Literal["checks", "canaries", "membership", "inversion"]
STAGES: tuple[Stage, ...] = ("checks", "canaries", "membership", "inversion")
Progress = Callable[[Stage, int, int], None]
"""Called with the stage, how much of it is done, and how much there is."""

_DEFAULT_CANARIES = 1000
_FEWEST_RUNS, _SECONDS = 20, 12.0  # of a game whose size nobody asked for
_BACKGROUND = 4  # rows of each site beside the canaries
_MOST_ROWS = 100  # of a site that are attacked
_MODELS, _FEWEST_MODELS = 32, 8
_TRIALS = 16


def audit(
    plan: Plan,
    schema: Schema,
    parties: int,
    *,
    created: str,
    rows: Mapping[str, int] | None = None,
    tables: Mapping[str, pa.Table] | None = None,
    canaries: int | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a plan as a roster of `parties` sites runs it.

    Args:
        plan: the plan.
        schema: of its rows.
        parties: sites of the roster.
        created: the time, "2026-01-31T12:00:00Z".
        rows: rows of each site of the roster; synthetic ones are drawn of about that number, at most 100 a
            site. None for 100 each.
        tables: owners' rows to attack instead, by site; the report is then theirs alone.
        canaries: how many coins in all; None for up to 1000, as many as take some seconds.
        confidence: of the bound.
        progress: told how far it is.

    Raises:
        InputError: the model is a torch module, or an argument is out of range.
        PlanError: the plan's claim does not hold for this roster.
    """
    began = time.monotonic()
    if not 0.0 < confidence < 1.0 or (canaries is not None and canaries < 2):
        raise InputError(
            "an audit needs a confidence between 0 and 1 and at least 2 canaries",
            fix="Leave both out for 0.95 and 1000",
        )
    if plan.model.kind == "torch":
        raise _not_a_table()
    tell = progress or (lambda stage, done, total: None)
    features, model = plan_model(plan, schema)
    if not isinstance(model, Model):
        raise _not_a_table()
    start = initial_model(plan, schema)
    found = _Found(plan, features, model, start)
    counts = rows or dict.fromkeys((entry.name for entry in plan.sites[:parties]), _MOST_ROWS)
    if len(counts) != parties:
        raise InputError(f"rows of {len(counts)} sites, of {parties}", fix="Give every member's row count")
    if plan.privacy is not None:
        epoch = _epoch(plan, counts, model)
        found.test_claim(epoch, canaries, confidence, tell)
    found.attack_rows(_parts(features, counts, tables), parties, tell)
    return found.report(confidence, "own" if tables else "synthetic", time.monotonic() - began, created)


class _Found:
    """What has been found so far."""

    def __init__(self, plan: Plan, features: FeatureMap, model: Model, start: Array) -> None:
        self._plan, self._features, self._model, self._start = plan, features, model, start
        self._mechanism: Mechanism | None = None
        self._claim: ClaimFacts | None = None
        self._canaries: CanaryFacts | None = None
        self._bound: float | None = None
        self._bounds: tuple[Bound, ...] = ()
        self._checks: tuple[Check, ...] = ()
        self._membership: Membership | None = None
        self._inversion: tuple[Inversion, ...] = ()
        self._attacked = 0

    def test_claim(
        self,
        epoch: EpochTerms,
        coins: int | None,
        confidence: float,
        tell: Progress,
    ) -> None:
        """Steps 1 to 4."""
        terms = epoch.privacy
        if terms is None:
            raise PlanError("the plan claims no privacy", where="[privacy]", fix="Add the table")
        facts, events = terms.facts, claimed_events(terms)
        mechanism = as_the_study_runs_it(mechanism_of(self._plan, terms, self._model), self._plan, epoch)
        claim = mechanism.claim
        self._mechanism = mechanism
        self._claim = ClaimFacts(
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
        classes = self._model.head.classes if isinstance(self._model.head, SoftmaxHead) else 0
        canaries = make_canaries(
            mechanism, self._start, features=self._features.width, classes=classes, most=coins or 24
        )
        tell("checks", 0, 1)
        self._checks = structural_checks(mechanism, self._start, canaries)
        tell("checks", 1, 1)
        random = StreamRandom.system()
        background = [synthetic_rows(self._features, _BACKGROUND, random) for _ in range(claim.shares)]
        runs = math.ceil((coins or _DEFAULT_CANARIES) / len(canaries))
        if coins is None:
            before = time.monotonic()
            play(mechanism, self._start, canaries, background, runs=1)  # thrown away: it only times
            runs = min(runs, max(_FEWEST_RUNS, int(_SECONDS / max(time.monotonic() - before, 1e-4))))
        game = play(
            mechanism,
            self._start,
            canaries,
            background,
            runs=runs,
            progress=lambda done, total: tell("canaries", done, total),
        )
        self._canaries = CanaryFacts(len(canaries), runs, game.canaries)
        self._bound, self._bounds = game_bounds(game, events, facts.delta, confidence=confidence)

    def attack_rows(self, parts: list[Rows], parties: int, tell: Progress) -> None:
        """Steps 5 and 6."""
        plan, model, start, mechanism = self._plan, self._model, self._start, self._mechanism
        self._attacked = sum(len(y) for _, y in parts)
        if self._attacked >= 8:
            trainer = (
                plain_trainer(model, start, plan.training)
                if mechanism is None
                else private_trainer(mechanism, start)
            )
            before = time.monotonic()
            trainer([parts])  # thrown away: it only times
            fitting = int(_SECONDS / max(time.monotonic() - before, 1e-4)) // 2 * 2
            self._membership = lira(
                trainer,
                model,
                parts,
                models=min(_MODELS, max(_FEWEST_MODELS, fitting)),
                progress=lambda done, total: tell("membership", done, total),
            )
        random = StreamRandom.system()
        views = (
            plain_views(model, start, plan.training, plan.encoding(parties))
            if mechanism is None
            else private_views(mechanism, start)
        )
        tell("inversion", 0, 1)
        self._inversion = invert(
            views,
            model,
            lambda: [_some(part, random) for part in parts],
            lambda count: synthetic_rows(self._features, count, random)[0],
            trials=_TRIALS,
        )
        tell("inversion", 1, 1)

    def report(
        self, confidence: float, rows: Literal["synthetic", "own"], seconds: float, created: str
    ) -> AuditReport:
        """Return the report, with its verdict."""
        claim, bound = self._claim, self._bound
        claimed = None
        if claim is not None:
            claimed = claim.epsilon_hub if claim.adversary == "hub" else claim.epsilon_colluders
        verdict, explanation = judge(claimed, bound, confidence, self._checks)
        return AuditReport(
            claimed=claimed,
            bound=bound,
            confidence=confidence,
            verdict=verdict,
            explanation=explanation,
            study=self._plan.study.name,
            plan=self._plan.digest.hex(),
            hub_view=self._plan.aggregation.hub_view,
            rows=rows,
            claim=claim,
            canaries=self._canaries,
            bounds=self._bounds,
            checks=self._checks,
            membership=self._membership,
            inversion=self._inversion,
            conditions=tuple(self._conditions(rows)),
            seconds=round(seconds, 3),
            created=created,
        )

    def _conditions(self, rows: str) -> list[str]:
        said = ["The plan's mechanism was run anew on this machine; what sites ran is not shown by it."]
        if self._canaries is not None and self._claim is not None:
            said.append(
                f"{self._canaries.each} synthetic canaries in each of {self._canaries.runs} runs of "
                f"{self._claim.steps} steps; the adversary knows all but coins, samples and "
                f"{self._claim.shares} shares of noise."
            )
        whose = (
            "drawn from the schema" if rows == "synthetic" else "of the owner; this report stays with them"
        )
        said.append(f"Membership and inversion attacked {self._attacked} rows {whose}.")
        if self._claim is not None and self._claim.unit != "record":
            said.append("Each row was attacked as a unit of its own.")
        if self._plan.aggregation.hub_view == "none":
            said.append("The plan hides sums from the hub; the views of sums are those of a colluding site.")
        return said


def _epoch(plan: Plan, rows: Mapping[str, int], model: Model) -> EpochTerms:
    """Return the terms of an epoch of such a roster.

    Who its members are is bound into keys and signatures, of which there are none here: each gets a key of
    its own that nobody keeps.
    """
    members = [Identity.generate(name).public for name in rows]
    return terms_of(plan, 0, members, rows, dict.fromkeys(rows, bytes(32)), private_model(model))


def _parts(
    features: FeatureMap, rows: Mapping[str, int], tables: Mapping[str, pa.Table] | None
) -> list[Rows]:
    """Return the rows to attack, by site: owners' own, or synthetic ones of about the sites' sizes."""
    random = StreamRandom.system()
    if tables:
        parts = [features.fit(table).transform(table) for table in tables.values()]
        return [_few(part, random) for part in parts]
    return [synthetic_rows(features, min(_MOST_ROWS, max(1, size)), random) for size in rows.values()]


def _few(part: Rows, random: StreamRandom) -> Rows:
    X, y = part
    if len(y) <= _MOST_ROWS:
        return part
    chosen = random.permutation(len(y))[:_MOST_ROWS]
    return X[chosen], y[chosen]


def _some(part: Rows, random: StreamRandom) -> Rows:
    """Return a random half of a site's rows, at least one: another sample for each trial."""
    X, y = part
    chosen = random.permutation(len(y))[: max(1, len(y) // 2)]
    return X[chosen], y[chosen]


def _not_a_table() -> InputError:
    return InputError(
        "an audit attacks models over tables, not torch modules",
        where="[model] kind",
        fix="Audit a plan with a linear, logistic, softmax or mlp model",
    )
