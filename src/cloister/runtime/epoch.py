"""The terms of an epoch: what hub and sites derive alike from plan, roster, and what the members bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.crypto import PublicIdentity
from cloister.errors import PlanError
from cloister.learning import Plan
from cloister.learning.language.layout import Window, width_of
from cloister.learning.learner import Shape
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.private import Bounded
from cloister.learning.refusals import check_delta
from cloister.runtime.globalmodel import weights_by_site
from cloister.runtime.roster import Countersignature
from cloister.secagg import Encoding, EpochContext, Roster

__all__ = ["EpochTerms", "RosterTerms", "terms_of"]


@dataclass(frozen=True)
class RosterTerms:
    """What all members of an epoch agree on, whatever they add up.

    Attributes:
        context: what keys, masks and signatures of the epoch are bound to.
        rows: rows by site, in roster order.
        manifests: 32-byte digest of each site's signed manifest.
    """

    context: EpochContext
    rows: Mapping[str, int]
    manifests: Mapping[str, bytes]

    @property
    def number(self) -> int:
        """The epoch's number."""
        return self.context.epoch

    @property
    def roster(self) -> Roster:
        """The members, in their order."""
        return self.context.roster

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


@dataclass(frozen=True)
class EpochTerms(RosterTerms):
    """What all members of an epoch of a study agree on.

    Attributes:
        weights: each site's weight in the sum.
        encodings: the fixed point of the sum, for each window that rounds move in turn.
        windows: these windows; () where every round moves the whole vector.
        privacy: grid, noise and events, where the plan claims privacy.
    """

    weights: Mapping[str, float]
    encodings: tuple[Encoding, ...]
    windows: tuple[Window, ...] = ()
    privacy: PrivacyTerms | None = None

    @property
    def encoding(self) -> Encoding:
        """The fixed point of the first window, which is all there is but for adapters that take turns."""
        return self.encodings[0]

    def encoding_of(self, round: int) -> Encoding:
        """Return the fixed point of what round `round` moves, counted from 0; its first element is the
        window's first."""
        return self.encodings[round % len(self.encodings)]

    @property
    def distributed_noise(self) -> PrivacyTerms | None:
        """The terms where noise is added to what travels; None in local mode, whose updates carry it."""
        return self.privacy if self.privacy and self.privacy.section.mode == "distributed" else None

    def vector_size(self, parameters: int) -> int:
        """Return how many ring elements travel in a round, for a model of so many parameters."""
        if self.distributed_noise is not None:
            return self.distributed_noise.coordinates
        return width_of(self.windows) if self.windows else parameters

    @property
    def first(self) -> PublicIdentity:
        """The member that deals the study key."""
        return self.roster.members[0]


def terms_of(
    plan: Plan,
    number: int,
    members: Sequence[PublicIdentity],
    rows: Mapping[str, int],
    manifests: Mapping[str, bytes],
    model: Bounded | None = None,
    shape: Shape | None = None,
) -> EpochTerms:
    """Return the terms of an epoch.

    Args:
        plan: the plan.
        number: of the epoch.
        members: in roster order.
        rows: training rows by site, in the same order.
        manifests: digest of each site's signed manifest.
        model: what is trained; needed where the plan claims privacy.
        shape: its layout; needed for a language model, whose tensors may have ranges and take turns.

    Raises:
        PlanError: no threshold protects so few, the claim of privacy does not hold for this roster, or the
            ring does not hold its sum.
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
    privacy = None
    if plan.privacy is not None:
        check_delta(plan.privacy.delta, sum(rows.values()))
        if model is None:
            raise PlanError("the terms of a private study depend on its model")
        privacy = PrivacyTerms.of(plan, context.params, model)
    if shape is None and plan.aggregation.tensor_ranges:
        raise PlanError("the terms of a study whose tensors have ranges depend on its model")
    windows = () if shape is None else shape.windows
    tensors = () if shape is None else shape.tensors
    encodings = tuple(plan.encoding(len(members), tensors, window) for window in windows or (None,))
    return EpochTerms(context, rows, manifests, weights_by_site(plan, rows), encodings, windows, privacy)
