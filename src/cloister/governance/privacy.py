"""What a certificate states about differential privacy, and how a reader recomputes it.

The claim rests on events: frozen descriptions of what was done to the rows. Verification takes none of the
stated figures on trust:

a. the events follow from plan, roster and model, and are the same in every epoch (for a module of the user's
   own, and for a language model, its float error, which this reader cannot know, is taken as stated, and its
   size where the model is sealed);
b. both epsilons are calculated again from the events, and are not above what is stated;
c. what the plan promised its sites is kept: epsilon <= [privacy] epsilon;
d. every site's ledger signed a debit for this plan, of at least the blocks that its rounds needed, at a cost
   that is not below what the events cost at that ledger's order;
e. an audit, where one is stated, found a bound that does not contradict the claim.

A debit says what a ledger's owner signed; that the owner keeps one ledger and not two is out of reach of any
reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from cloister.crypto import PublicIdentity, keyring, sha256
from cloister.governance.case import Case, require
from cloister.governance.certificate import Audited, Privacy
from cloister.governance.folder import debit_path
from cloister.governance.study import TrainedStudy
from cloister.learning import PrivacySection, plan_model
from cloister.learning.privacy import PrivacyFacts, PrivacyTerms, private_model
from cloister.learning.private.ladder import tokens_float_bound
from cloister.privacy.accounting import IntegerGaussian, MixedGaussian, renyi
from cloister.privacy.ledger import open_debit

__all__ = ["check_privacy", "privacy_of", "upwards"]

_DIGITS = 4
_CLOSE = 1e-9  # square roots may differ in the last bit between machines


def privacy_of(study: TrainedStudy, audit: Audited | None) -> Privacy | None:
    """Return what a release of this study states, None where its plan claims nothing."""
    claim = study.privacy
    if claim is None:
        return None
    return Privacy(
        claim=claim,
        epsilon_hub=upwards(claim.epsilon_hub),
        epsilon_colluders=upwards(claim.epsilon_colluders),
        debits={member.name: sha256(study.debits[member.name]).hex() for member in study.members},
        audit=audit,
    )


def check_privacy(case: Case) -> str:
    """Return in words what was recomputed.

    Raises:
        VerificationError, IntegrityError, PlanError: something does not hold.
    """
    stated, plan = case.facts.privacy, case.plan
    if plan.privacy is None or stated is None:
        require(
            plan.privacy is None and stated is None,
            "plan and certificate disagree whether differential privacy is claimed",
        )
        return "none claimed, nothing to recompute: no differential privacy was applied"
    claim = stated.claim
    _check_events(case, plan.privacy, claim)  # a
    hub, colluders = upwards(claim.epsilon_hub), upwards(claim.epsilon_colluders)  # b
    require(
        hub <= stated.epsilon_hub and colluders <= stated.epsilon_colluders,
        f"the events give epsilon {hub} and {colluders}, the certificate states less",
    )
    promised = plan.privacy.epsilon  # c
    require(
        promised is None or claim.epsilon_claimed <= promised,
        f"the plan promised epsilon {promised}, the events give {claim.epsilon_claimed:.4f}",
    )
    for member in case.members:  # d
        _check_debit(case, member, claim, stated.debits[member.name])
    if stated.audit is None:  # e
        case.unchecked.append("audit: no attack was run against the claim of privacy")
    else:
        require(stated.audit.bound <= colluders, "the audit's bound is above the claim")
    case.unchecked.append("privacy: that each site added its noise, and keeps one ledger, is its word")
    return (
        f"epsilon {hub} against the hub, {colluders} with colluding sites, at delta {claim.delta:g}, "
        f"recomputed; {len(case.members)} debits"
    )


def _check_events(case: Case, section: PrivacySection, claim: PrivacyFacts) -> None:
    """Require the events to follow from plan and model, alike for the roster of every epoch."""
    if case.plan.model.kind == "torch" or case.plan.model.is_language:
        size, error = _stated_shape(case, section, claim)
    else:
        _, learned = plan_model(case.plan, case.schema)
        model = private_model(learned)
        size, error = model.size, model.float_bound(section.microbatch)
    for params in dict.fromkeys(case.params):
        due = PrivacyTerms.derive(case.plan, params, size, error)
        require(
            _same(msgspec.to_builtins(due.facts), msgspec.to_builtins(claim)),
            "the events do not follow from plan, roster and model",
        )


def _stated_shape(case: Case, section: PrivacySection, claim: PrivacyFacts) -> tuple[int, float]:
    """Return size and float error of a module, or a language model, that this reader does not run.

    Its size, where the model is sealed, and a module's float error are taken as stated; all else follows, a
    language model's error from the plan's context. Sums by unit round what was clipped already, and have no
    such error.
    """
    stated = claim.events_hub[0].mechanism if claim.events_hub else None
    known = IntegerGaussian if section.by_record else IntegerGaussian | MixedGaussian
    require(
        isinstance(stated, known) and claim.clip_units >= 1,
        f"the events are not those of private training by {'records' if section.by_record else 'units'}",
    )
    assert isinstance(stated, IntegerGaussian | MixedGaussian)  # noqa: S101  # required above
    size = stated.coordinates - (section.adaptive_quantile is not None)
    if case.size is None:
        case.unchecked.append("privacy: the number of parameters of the sealed model is taken as stated")
    require(case.size in (None, size), "the events have another number of coordinates than the model")
    if not section.by_record:
        return size, 0.0
    if case.plan.language is not None:
        return size, tokens_float_bound(case.plan.language.context, section.microbatch)
    case.unchecked.append("privacy: the float error of the user's own module is taken as stated")
    error = (stated.sensitivity - math.sqrt(size)) / claim.clip_units - 1.0
    require(error >= -_CLOSE, "the events have a sensitivity below the clip")
    return size, max(error, 0.0)


def _check_debit(case: Case, member: PublicIdentity, claim: PrivacyFacts, digest: str) -> None:
    path = debit_path(member.name)
    require(path in case.files, f"{path} is missing")
    envelope = case.files[path]
    require(sha256(envelope).hex() == digest, f"{member.name}'s debit is not the one the certificate names")
    debit = open_debit(envelope, keyring([member]))
    require(debit.study == case.plan.digest.hex(), f"{member.name}'s ledger debited another study")
    per_block = case.plan.block_attempts
    needed = len(
        {
            block
            for epoch, run in case.facts.aggregation.runs()
            if member.name in epoch.members and member.name not in run.dropped
            for block in range(run.attempt // per_block, (run.attempt + run.count - 1) // per_block + 1)
        }
    )
    require(
        debit.started >= needed,
        f"{member.name}'s ledger debited {debit.started} blocks, its rounds needed {needed}",
    )
    whole = renyi(claim.events_colluders, debit.order)
    due = whole.rdp * per_block * debit.started / case.plan.attempts
    extra = whole.delta * per_block * debit.started / case.plan.attempts
    require(
        debit.rdp >= due * (1 - _CLOSE) and debit.delta >= extra * (1 - _CLOSE),
        f"{member.name}'s ledger debited less than the events cost",
    )


def upwards(value: float) -> float:
    """Round an epsilon up to four digits: what is stated is never below what was calculated."""
    steps = 10.0**_DIGITS
    return math.ceil(value * steps * (1 - _CLOSE)) / steps


def _same(one: Any, other: Any) -> bool:
    """Whether two decoded records are equal, floats within rounding."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_CLOSE)
    return bool(one == other)
