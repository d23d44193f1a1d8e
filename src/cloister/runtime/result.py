"""What a finished study leaves behind, wherever its parties ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import PublicIdentity
from cloister.enclave.claims import NOT_PROTECTED, Protection
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime.appraisal import Appraised, open_appraisal
from cloister.runtime.events import RoundDone

__all__ = ["EpochFacts", "StudyResult", "TransportName"]

TransportName = Literal["memory", "nats"]


@dataclass(frozen=True)
class EpochFacts:
    """One epoch: who agreed to work together, on what, and how it was set up.

    Attributes:
        number: the epoch's number.
        members: public identities in roster order.
        rows: training rows by site.
        manifests: signed manifests by site.
        countersignatures: signed agreement to plan and roster by site.
        setup_digest: 32-byte digest of the secure sum's set-up.
        study_keys: signed envelope with the study key sealed to every reader, dealt by the first member;
            empty where it was not kept: of a study read back, all epochs but the last.
    """

    number: int
    members: tuple[PublicIdentity, ...]
    rows: Mapping[str, int]
    manifests: Mapping[str, bytes]
    countersignatures: Mapping[str, bytes]
    setup_digest: bytes
    study_keys: bytes = b""


@dataclass(frozen=True)
class StudyResult:
    """What a finished study leaves behind.

    Attributes:
        plan: what was agreed.
        hub: the hub's public identity.
        epochs: those in which a round was finished, and the last; numbers ascending.
        rounds: one record a round; each names its epoch.
        final_metrics: evaluation of the released model over all sites and by site, where rows are declared
            public.
        model: float64[d], the model to release, from the hub or, with hub_view = "none", from a site.
        study_key: the key of its checkpoints, as the last epoch dealt it; secret.
        privacy: what was claimed and accounted for, alike in every epoch; None where the plan claims nothing.
        debits: by site, its ledger's signed debit for the study.
        clamped: by site, how many coordinates exceeded the plan's value_range; a figure computed from rows,
            so empty unless the plan declares them public. `Site.clamped` tells each owner its own.
        traffic: bytes by (sender, receiver).
        transport: how messages travelled; "memory" is one process.
        appraisals: of each site, where the plan asks for evidence: what the hub accepted of its worker, and
            the site's signed word on the hub's.
    """

    plan: Plan
    hub: PublicIdentity
    epochs: tuple[EpochFacts, ...]
    rounds: tuple[RoundDone, ...]
    final_metrics: tuple[dict[str, float], dict[str, dict[str, float]]] | None
    model: NDArray[np.float64] = field(repr=False)
    study_key: bytes = field(repr=False)
    privacy: PrivacyTerms | None
    debits: Mapping[str, bytes]
    clamped: Mapping[str, int]
    traffic: Mapping[tuple[str, str], int]
    transport: TransportName = "memory"
    appraisals: Mapping[str, Appraised] = field(default_factory=dict)

    @property
    def last(self) -> EpochFacts:
        """The last epoch: whose members hold the released model."""
        return self.epochs[-1]

    @property
    def protection(self) -> Protection:
        """Whether hardware vouches for the workers of all members, and by their word for the hub."""
        for member in self.members:
            kept = self.appraisals.get(member.name)
            if kept is None or not kept.worker.hardware:
                return NOT_PROTECTED
            if not open_appraisal(kept.aggregator.encode(), member).hardware:
                return NOT_PROTECTED
        return "hardware"

    @property
    def members(self) -> tuple[PublicIdentity, ...]:
        """Members of the last epoch, in roster order."""
        return self.last.members

    @property
    def rows(self) -> Mapping[str, int]:
        """Training rows by site of the last epoch."""
        return self.last.rows

    @property
    def manifests(self) -> Mapping[str, bytes]:
        """Signed manifests by site of the last epoch."""
        return self.last.manifests

    @property
    def countersignatures(self) -> Mapping[str, bytes]:
        """Signed agreement by site of the last epoch."""
        return self.last.countersignatures

    @property
    def setup_digest(self) -> bytes:
        """Digest of the last epoch's set-up."""
        return self.last.setup_digest

    @property
    def study_keys(self) -> bytes:
        """The study key as the last epoch's first member dealt it."""
        return self.last.study_keys
