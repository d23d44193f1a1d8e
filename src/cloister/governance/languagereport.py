"""What the audit of a language model found, put together to a report."""

from __future__ import annotations

import time
from typing import Literal

from cloister.governance.audit import AuditReport, CanaryFacts, ClaimFacts, LanguageFindings, judge
from cloister.governance.privacy import upwards
from cloister.learning import Plan
from cloister.learning.attacks import Check, claim_of
from cloister.learning.attacks.languagesecrets import Plant
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime.epoch import EpochTerms

__all__ = ["language_report"]


def language_report(
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
    """Return the report, with its verdict.

    Args:
        plan: that was audited.
        terms: of its roster.
        plant: what was planted.
        findings: what the models have kept; the first run is what the verdict speaks of.
        checks: that were made.
        confidence: of verdict and bound.
        rows: whose rows lay beside what was planted.
        began: `time.monotonic()` at the beginning.
        created: the time now, as certificates state it.
    """
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
        said.append(
            "A secret of k rows is protected by about k times the epsilon of a row."
            if claim.unit == "record"
            else f"All rows of a secret are those of one {claim.unit}, whom the claim is about."
        )
        if findings.source == "rehearsed" and not checks:
            said.append("The mechanism's integers were not checked: too large, by unit, or adapters in turn.")
    return said
