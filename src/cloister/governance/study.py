"""What a release is made from: a finished study, in memory or read back from its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import PublicIdentity
from cloister.errors import VerificationError
from cloister.governance.certificate import Rounds
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyFacts
from cloister.runtime import EpochFacts, RoundEntry, StudyResult, StudyState
from cloister.runtime.appraisal import Appraised
from cloister.vault import Schema, open_manifest

__all__ = ["TrainedStudy", "round_runs"]


@dataclass(frozen=True)
class TrainedStudy:
    """A finished study.

    A site's rows stay the same through a study: it brings one manifest to all its epochs.

    Attributes:
        plan: what was agreed.
        hub: the hub's public identity.
        epochs: those in which a round was finished, in the order they ran.
        rounds: one entry a round, 0-based as they were run.
        privacy: what was claimed and accounted for, None where the plan claims nothing.
        debits: by site, its ledger's signed debit.
        parameters: float64[d], the model to release.
        appraisals: by site, what was accepted as evidence, where the plan asks for it.
    """

    plan: Plan
    hub: PublicIdentity
    epochs: tuple[EpochFacts, ...]
    rounds: tuple[RoundEntry, ...]
    privacy: PrivacyFacts | None
    debits: Mapping[str, bytes]
    parameters: NDArray[np.float64] = field(repr=False)
    appraisals: Mapping[str, Appraised] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        why = _contradiction(self)
        if why is not None:
            raise VerificationError(
                f"the study's record contradicts itself: {why}",
                where=f"study {self.plan.study.name}",
                fix="Run the study again; this one cannot be released",
            )

    @classmethod
    def of_result(cls, result: StudyResult) -> TrainedStudy:
        """Take over what `Study.run` returned."""
        rounds = tuple(
            RoundEntry(done.round, done.attempt, done.survivors, done.epoch) for done in result.rounds
        )
        return cls(
            plan=result.plan,
            hub=result.hub,
            epochs=_with_rounds(result.epochs, rounds),
            rounds=rounds,
            privacy=None if result.privacy is None else result.privacy.facts,
            debits=result.debits,
            parameters=result.model,
            appraisals=result.appraisals,
        )

    @classmethod
    def of_state(cls, state: StudyState) -> TrainedStudy:
        """Take over what `load_study` returned."""
        record = state.record
        return cls(
            plan=state.plan,
            hub=state.hub,
            epochs=_with_rounds(state.epochs, record.rounds),
            rounds=record.rounds,
            privacy=record.privacy,
            debits={name: envelope.encode() for name, envelope in record.debits.items()},
            parameters=state.model,
            appraisals=record.appraisals,
        )

    @property
    def members(self) -> tuple[PublicIdentity, ...]:
        """Everybody who was a member of an epoch, in the plan's order."""
        place = {site.name: number for number, site in enumerate(self.plan.sites)}
        known = {member.name: member for epoch in self.epochs for member in epoch.members}
        return tuple(
            known[name] for name in sorted(known, key=lambda name: (place.get(name, len(place)), name))
        )

    @property
    def rows(self) -> Mapping[str, int]:
        """Training rows of every member."""
        return {name: rows for epoch in self.epochs for name, rows in epoch.rows.items()}

    @property
    def manifests(self) -> Mapping[str, bytes]:
        """Signed manifest of every member's dataset, DSSE."""
        return {name: manifest for epoch in self.epochs for name, manifest in epoch.manifests.items()}

    @property
    def schema(self) -> Schema:
        """The schema of the rows, from the first member's manifest; its digest is the plan's."""
        first = self.members[0]
        return open_manifest(self.manifests[first.name], first).schema


def _with_rounds(epochs: Iterable[EpochFacts], rounds: Iterable[RoundEntry]) -> tuple[EpochFacts, ...]:
    """Leave out an epoch that was agreed on and finished no round: nothing of it is in the model."""
    used = {entry.epoch for entry in rounds}
    return tuple(epoch for epoch in epochs if epoch.number in used)


def _contradiction(study: TrainedStudy) -> str | None:
    """Say what cannot be so, or None.

    Whatever could be put right silently on the way into a certificate is refused here: a certificate states
    who dropped out, so a survivor from elsewhere would not show in it.
    """
    numbers = [epoch.number for epoch in study.epochs]
    if not numbers or numbers != sorted(set(numbers)):
        return "there is no epoch, or their numbers do not ascend"
    members = {epoch.number: {member.name for member in epoch.members} for epoch in study.epochs}
    last = numbers[0]
    for due, entry in enumerate(study.rounds):
        if entry.round != due:
            return f"round {due + 1} is missing, double or out of place"
        if entry.epoch not in members or entry.epoch < last:
            return f"round {due + 1} is of epoch {entry.epoch}, which did not run then"
        if (
            len(set(entry.survivors)) != len(entry.survivors)
            or not set(entry.survivors) <= members[entry.epoch]
        ):
            return f"round {due + 1} has a survivor who is not a member of its epoch, or one twice"
        last = entry.epoch
    return _changed_site(study)


def _changed_site(study: TrainedStudy) -> str | None:
    """Say which site's keys or rows are not the same in all its epochs, or None."""
    seen: dict[str, tuple[str, bytes, int]] = {}
    for epoch in study.epochs:
        for member in epoch.members:
            name = member.name
            if name not in epoch.manifests or name not in epoch.rows or name not in epoch.countersignatures:
                return f"{name}'s manifest, rows or countersignature in epoch {epoch.number} are missing"
            brought = (member.fingerprint, epoch.manifests[name], epoch.rows[name])
            if seen.setdefault(name, brought) != brought:
                return f"{name} has other keys or rows in epoch {epoch.number} than before"
    return None


def round_runs(study: TrainedStudy, epoch: EpochFacts) -> tuple[Rounds, ...]:
    """Return an epoch's rounds, those in a row that lost the same sites put together; 1-based."""
    runs: list[Rounds] = []
    for entry in study.rounds:
        if entry.epoch != epoch.number:
            continue
        dropped = tuple(member.name for member in epoch.members if member.name not in entry.survivors)
        last = runs[-1] if runs else None
        if last and (last.dropped, last.attempt + last.count) == (dropped, entry.attempt):
            runs[-1] = Rounds(last.first, last.count + 1, last.attempt, dropped)
        else:
            runs.append(Rounds(entry.round + 1, 1, entry.attempt, dropped))
    return tuple(runs)
