"""The mechanism and the claim of a plan with `[privacy]`, for a roster's terms."""

from __future__ import annotations

from cloister.errors import InputError
from cloister.learning.attacks.distributed import DistributedMechanism
from cloister.learning.attacks.local import LocalMechanism
from cloister.learning.attacks.mechanism import Claim, Mechanism
from cloister.learning.models import Model
from cloister.learning.plan import Plan
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.privacy.accounting import Event, IntegerGaussian, MixedGaussian

__all__ = ["claim_of", "claimed_events", "mechanism_of"]


def claimed_events(terms: PrivacyTerms) -> tuple[Event, ...]:
    """Return the events of the view that `[privacy] epsilon` speaks of."""
    return terms.events_hub if terms.section.adversary == "hub" else terms.events_colluders


def claim_of(plan: Plan, terms: PrivacyTerms) -> Claim:
    """Return what a plan says of its mechanism, in numbers.

    A unit that may be at more sites than have counted noise is put to as many as have.
    """
    section, training = terms.section, plan.training
    (event,) = claimed_events(terms)
    mechanism = event.mechanism
    if not isinstance(mechanism, IntegerGaussian | MixedGaussian):
        raise InputError("the plan's events are not those of a training", fix="Use this version's terms")
    local = section.mode == "local"
    return Claim(
        training=training,
        divisor=float(section.expected_units or training.batch),
        rate=section.rate,
        clip=section.clip,
        grid=terms.grid,
        microbatch=section.microbatch,
        share_variance=terms.share_variance,
        shares=mechanism.shares,
        steps=event.count,
        rounds=training.rounds * (training.local_steps if local else 1),
        sensitivity=mechanism.sensitivity,
        sites_per_unit=min(section.sites_per_unit or 1, mechanism.shares),
        adaptive_quantile=section.adaptive_quantile,
        by_record=section.by_record,
        local=local,
    )


def mechanism_of(plan: Plan, terms: PrivacyTerms, model: Model) -> Mechanism:
    """Return the mechanism that a plan's sites run, for an audit."""
    claim, private = claim_of(plan, terms), private_model(model)
    return LocalMechanism(private, claim) if claim.local else DistributedMechanism(private, claim, model)
