"""The terms of an epoch: what hub and sites derive alike from plan, roster, and what the members bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.crypto import PublicIdentity
from cloister.learning import Plan
from cloister.runtime.globalmodel import weights_by_site
from cloister.runtime.roster import Countersignature
from cloister.secagg import Encoding, EpochContext, Roster

__all__ = ["EpochTerms", "terms_of"]


@dataclass(frozen=True)
class EpochTerms:
    """What all members of an epoch agree on.

    Attributes:
        context: what keys, masks and signatures of the epoch are bound to.
        rows: training rows by site, in roster order.
        manifests: 32-byte digest of each site's signed manifest.
        weights: each site's weight in the sum.
        encoding: the fixed point of the sum.
    """

    context: EpochContext
    rows: Mapping[str, int]
    manifests: Mapping[str, bytes]
    weights: Mapping[str, float]
    encoding: Encoding

    @property
    def number(self) -> int:
        """The epoch's number."""
        return self.context.epoch

    @property
    def roster(self) -> Roster:
        """The members, in their order."""
        return self.context.roster

    @property
    def first(self) -> PublicIdentity:
        """The member that deals the study key."""
        return self.roster.members[0]

    def countersignature(self, name: str) -> Countersignature:
        """Return what the member of this name signs, and no other statement."""
        return Countersignature(
            plan=self.context.plan_digest.hex(),
            roster=self.roster.digest.hex(),
            epoch=self.number,
            site=name,
            manifest=self.manifests[name].hex(),
            rows=self.rows[name],
        )


def terms_of(
    plan: Plan,
    number: int,
    members: Sequence[PublicIdentity],
    rows: Mapping[str, int],
    manifests: Mapping[str, bytes],
) -> EpochTerms:
    """Return the terms of an epoch.

    Args:
        plan: the plan.
        number: of the epoch.
        members: in roster order.
        rows: training rows by site, in the same order.
        manifests: digest of each site's signed manifest.

    Raises:
        PlanError: no threshold protects so few.
    """
    context = EpochContext(
        plan_digest=plan.digest,
        roster=Roster(tuple(members)),
        epoch=number,
        attempts=plan.attempts,
        params=plan.params(len(members)),
        bits=plan.aggregation.bits,
        hub_view=plan.aggregation.hub_view,
    )
    return EpochTerms(context, rows, manifests, weights_by_site(plan, rows), plan.encoding(len(members)))
