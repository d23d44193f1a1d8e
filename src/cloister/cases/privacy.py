"""What the report of a private case says of privacy: the claim, every owner's budget, accuracy by epsilon.

Two comparisons are computed from rows in the open, which is possible only because a case declares its rows
public: accuracy against epsilon, and what others would reach at the study's own epsilon (one collector of all
rows, each site alone). Both run the study's own mechanism without network and masks, several times each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cloister.learning import Model, Plan, evaluate, initial_model, plan_model
from cloister.learning.heads import Array
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.learning.private import PrivateSettings as Mechanism
from cloister.learning.private import simulate
from cloister.privacy.accounting import IntegerGaussian
from cloister.report import Audit, Baselines, Budget, EpsilonPoint, Privacy

if TYPE_CHECKING:
    from cloister.cases.base import CaseData
    from cloister.governance.audit import AuditReport
    from cloister.privacy.ledger import Ledger
    from cloister.runtime import StudyResult
    from cloister.vault import Schema

__all__ = ["audit_facts", "budget_of", "privacy_of_case"]

_NOISE_FACTORS = (8.0, 4.0, 2.0, 1.0, 0.6, 0.4)
_RUNS = 10


def budget_of(site: str, ledger: Ledger, population: str) -> Budget:
    """Return what an owner's ledger says of its rows now."""
    status = ledger.status(population)
    return Budget(
        site=site,
        cap_epsilon=status.cap.epsilon,
        cap_delta=status.cap.delta,
        spent_epsilon=status.epsilon_spent,
        left_epsilon=status.worth.epsilon,
        spent_share=min(status.share_spent, 1.0),
    )


def audit_facts(report: AuditReport) -> Audit | None:
    """Return what a report shows of an audit, None where there was no claim to audit."""
    if report.claimed is None or report.bound is None or report.verdict is None:
        return None
    return Audit(
        claimed=report.claimed,
        bound=report.bound,
        confidence=report.confidence,
        canaries=0 if report.canaries is None else report.canaries.total,
        verdict=report.verdict,
    )


def privacy_of_case(
    plan: Plan, result: StudyResult, data: CaseData, schema: Schema, budgets: tuple[Budget, ...]
) -> Privacy:
    """Return the privacy part of a case's report, without an audit.

    Args:
        plan: the plan that ran, with `[privacy]`.
        result: the finished study.
        data: the public rows.
        schema: of the rows.
        budgets: of all owners.
    """
    terms = result.privacy
    if terms is None:
        raise TypeError("the study claims no privacy")
    facts, section = terms.facts, terms.section
    shown = _Comparisons.of(plan, terms, data, schema)
    return Privacy(
        epsilon=section.epsilon,
        epsilon_hub=facts.epsilon_hub,
        epsilon_colluders=facts.epsilon_colluders,
        delta=section.delta,
        adversary=section.adversary,
        colluders=max(plan.params(len(result.members)).colluders, 1),
        unit=section.unit,
        mode=section.mode,
        clip=section.clip,
        rate=section.rate,
        noise_multiplier=terms.noise_multiplier,
        budgets=budgets,
        curve=() if shown is None else shown.curve(),
        baselines=None if shown is None else shown.baselines(),
    )


@dataclass(frozen=True)
class _Comparisons:
    """The rows in the open, and the study's mechanism over them."""

    plan: Plan
    terms: PrivacyTerms
    model: Model
    start: Array
    parts: dict[str, tuple[Array, Array]]
    tests: tuple[Array, Array]

    @classmethod
    def of(cls, plan: Plan, terms: PrivacyTerms, data: CaseData, schema: Schema) -> _Comparisons | None:
        """Return None where rows are not public, or where another mechanism ran than is simulated here."""
        section = terms.section
        if not plan.data.public_rows or section.mode != "distributed" or not section.by_record:
            return None
        features, model = plan_model(plan, schema)
        if not isinstance(model, Model):
            return None
        held_out = [features.transform(rows.test) for rows in data.sites.values()]
        X, y = (np.concatenate(arrays) for arrays in zip(*held_out, strict=True))
        parts = {name: features.transform(rows.train) for name, rows in data.sites.items()}
        return cls(plan, terms, model, initial_model(plan, schema), parts, (X, y))

    def curve(self) -> tuple[EpsilonPoint, ...]:
        """Return accuracy at several levels of noise."""
        parts = list(self.parts.values())
        points = []
        for factor in _NOISE_FACTORS:
            at = self.terms if factor == 1.0 else self._at_noise(factor)
            found = self._accuracies(parts, self._mechanism(at))
            deviation = float(np.std(found, ddof=1))
            points.append(EpsilonPoint(at.facts.epsilon_claimed, float(np.mean(found)), deviation, _RUNS))
        return tuple(points)

    def baselines(self) -> Baselines:
        """Return what one collector, and each site alone, would reach at the claimed epsilon."""
        total = sum(len(y) for _, y in self.parts.values())
        variance = _claimed_variance(self.terms)

        def reach(*parts: tuple[Array, Array]) -> float:
            # the divisor is what a step's sum is expected to hold: a site alone has its own rows only
            batch = max(1, round(self.plan.training.batch * sum(len(y) for _, y in parts) / total))
            training = msgspec.structs.replace(self.plan.training, batch=batch)
            mechanism = dataclasses.replace(
                self._mechanism(self.terms), training=training, share_variance=variance, present=1
            )
            X, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            return float(np.mean(self._accuracies([(X, y)], mechanism)))

        local = {name: reach(part) for name, part in self.parts.items()}
        return Baselines(reach(*self.parts.values()), local, _RUNS)

    def _accuracies(self, parts: Sequence[tuple[Array, Array]], mechanism: Mechanism) -> list[float]:
        private = private_model(self.model)
        models = (simulate(private, self.start, parts, mechanism) for _ in range(_RUNS))
        return [evaluate(self.model, params, *self.tests)["accuracy"] for params in models]

    def _mechanism(self, terms: PrivacyTerms) -> Mechanism:
        section = terms.section
        return Mechanism(
            training=self.plan.training,
            rate=section.rate,
            clip=section.clip,
            grid=terms.grid,
            microbatch=section.microbatch,
            share_variance=terms.share_variance,
            present=len(self.parts),
        )

    def _at_noise(self, factor: float) -> PrivacyTerms:
        """Return the terms of the same plan with so many times its noise."""
        noise = self.terms.noise_multiplier * factor
        other = msgspec.structs.replace(self.terms.section, epsilon=None, noise_multiplier=noise)
        changed = msgspec.structs.replace(self.plan, privacy=other)
        return PrivacyTerms.of(changed, changed.params(len(self.parts)), private_model(self.model))


def _claimed_variance(terms: PrivacyTerms) -> float:
    """Return the variance of all the noise that the claimed epsilon counts."""
    events = terms.events_hub if terms.section.adversary == "hub" else terms.events_colluders
    mechanism = events[0].mechanism
    if not isinstance(mechanism, IntegerGaussian):
        raise TypeError("the study's noise is not one Gaussian on integers")
    return mechanism.variance
