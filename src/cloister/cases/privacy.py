"""What the report of a private case says of privacy: the claim, every owner's budget, accuracy by epsilon.

Accuracy against epsilon is computed from rows in the open, which is possible only because a case declares its
rows public; each point runs the study's own mechanism without network and masks, several times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cloister.learning import Model, Plan, evaluate, initial_model, plan_model
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.learning.private import PrivateModel, simulate
from cloister.learning.private import PrivateSettings as Mechanism
from cloister.report import Budget, EpsilonPoint, Privacy

if TYPE_CHECKING:
    from cloister.cases.base import CaseData
    from cloister.privacy.ledger import Ledger
    from cloister.runtime import StudyResult
    from cloister.vault import Schema

__all__ = ["budget_of", "privacy_of_case"]

_NOISE_FACTORS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
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
        curve=_curve(plan, terms, data, schema),
    )


def _curve(plan: Plan, terms: PrivacyTerms, data: CaseData, schema: Schema) -> tuple[EpsilonPoint, ...]:
    """Return accuracy at several levels of noise."""
    features, model = plan_model(plan, schema)
    parts = [features.transform(rows.train) for rows in data.sites.values()]
    tests = [features.transform(rows.test) for rows in data.sites.values()]
    X, y = (np.concatenate(arrays) for arrays in zip(*tests, strict=True))
    start = initial_model(plan, schema)

    def accuracies(at: PrivacyTerms) -> list[float]:
        mechanism = _mechanism(plan, at, len(parts))
        return [
            evaluate(model, simulate(private_model(model), start, parts, mechanism), X, y)["accuracy"]
            for _ in range(_RUNS)
        ]

    points = []
    for factor in _NOISE_FACTORS:
        at = terms if factor == 1.0 else _at_noise(plan, terms.noise_multiplier * factor, len(parts), model)
        found = accuracies(at)
        points.append(
            EpsilonPoint(at.facts.epsilon_claimed, float(np.mean(found)), float(np.std(found)), _RUNS)
        )
    return tuple(points)


def _mechanism(plan: Plan, terms: PrivacyTerms, sites: int) -> Mechanism:
    return Mechanism(
        training=plan.training,
        rate=terms.section.rate,
        clip=terms.section.clip,
        grid=terms.grid,
        microbatch=terms.section.microbatch,
        share_variance=terms.share_variance,
        present=sites,
    )


def _at_noise(plan: Plan, noise_multiplier: float, sites: int, model: Model | PrivateModel) -> PrivacyTerms:
    """Return the terms of the same plan with another noise."""
    if plan.privacy is None:
        raise TypeError("the plan claims no privacy")
    other = msgspec.structs.replace(plan.privacy, epsilon=None, noise_multiplier=noise_multiplier)
    changed = msgspec.structs.replace(plan, privacy=other)
    return PrivacyTerms.of(changed, changed.params(sites), private_model(model))
