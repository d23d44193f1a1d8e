"""What a release is made from: a finished study, in memory or read back from its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import PublicIdentity
from cloister.governance.certificate import Rounds
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyFacts
from cloister.runtime import RoundEntry, StudyResult, StudyState
from cloister.secagg import Roster
from cloister.vault import Schema, open_manifest

__all__ = ["TrainedStudy", "round_runs"]


@dataclass(frozen=True)
class TrainedStudy:
    """A finished study.

    Attributes:
        plan: what was agreed.
        hub: the hub's public identity.
        members: the sites' public identities in roster order.
        rows: training rows by site.
        manifests: signed manifest of each site's dataset, DSSE.
        countersignatures: each site's signed consent to plan and roster, DSSE.
        epoch: the epoch the rounds ran in.
        setup_digest: 32-byte digest of its set-up.
        rounds: one entry a round, 0-based as they were run.
        privacy: what was claimed and accounted for, None where the plan claims nothing.
        debits: by site, its ledger's signed debit.
        parameters: float64[d], the model to release.
    """

    plan: Plan
    hub: PublicIdentity
    members: tuple[PublicIdentity, ...]
    rows: Mapping[str, int]
    manifests: Mapping[str, bytes]
    countersignatures: Mapping[str, bytes]
    epoch: int
    setup_digest: bytes
    rounds: tuple[RoundEntry, ...]
    privacy: PrivacyFacts | None
    debits: Mapping[str, bytes]
    parameters: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of_result(cls, result: StudyResult) -> TrainedStudy:
        """Take over what `Study.run` returned."""
        return cls(
            plan=result.plan,
            hub=result.hub,
            members=result.members,
            rows=result.rows,
            manifests=result.manifests,
            countersignatures=result.countersignatures,
            epoch=result.epoch,
            setup_digest=result.setup_digest,
            rounds=tuple(RoundEntry(done.round, done.attempt, done.survivors) for done in result.rounds),
            privacy=None if result.privacy is None else result.privacy.facts,
            debits=result.debits,
            parameters=result.model,
        )

    @classmethod
    def of_state(cls, state: StudyState) -> TrainedStudy:
        """Take over what `load_study` returned."""
        record = state.record
        return cls(
            plan=state.plan,
            hub=state.hub,
            members=state.members,
            rows=record.rows,
            manifests={name: envelope.encode() for name, envelope in record.manifests.items()},
            countersignatures={
                name: envelope.encode() for name, envelope in record.countersignatures.items()
            },
            epoch=record.epoch,
            setup_digest=bytes.fromhex(record.setup_digest),
            rounds=record.rounds,
            privacy=record.privacy,
            debits={name: envelope.encode() for name, envelope in record.debits.items()},
            parameters=state.model,
        )

    @property
    def roster(self) -> Roster:
        """The members as the secure sum and the countersignatures name them."""
        return Roster(self.members)

    @property
    def schema(self) -> Schema:
        """The schema of the rows, from the first member's manifest; its digest is the plan's."""
        first = self.members[0]
        return open_manifest(self.manifests[first.name], first).schema


def round_runs(study: TrainedStudy) -> tuple[Rounds, ...]:
    """Return the rounds, those in a row that lost the same sites put together; 1-based."""
    runs: list[Rounds] = []
    for entry in study.rounds:
        dropped = tuple(name for name in study.roster.names if name not in entry.survivors)
        last = runs[-1] if runs else None
        if last and (last.dropped, last.attempt + last.count) == (dropped, entry.attempt):
            runs[-1] = Rounds(last.first, last.count + 1, last.attempt, dropped)
        else:
            runs.append(Rounds(entry.round + 1, 1, entry.attempt, dropped))
    return tuple(runs)
