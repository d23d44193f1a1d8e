"""A finished study on disk: what a release is made from.

    studies/NAME/
        record.dsse.json     what was agreed and done, signed by whoever keeps it
        study-keys.dsse.json the study key, sealed to each of its readers by the last epoch's first member
        model.checkpoint     the model to release, encrypted under the study key

The model is never there in the clear. Reading verifies the signature, opens the study key with the reader's
identity, and opens the checkpoint bound to plan and round; a folder that was edited, or mixed with another,
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity, canonical_bytes, keyring, open_envelope, sign_envelope
from cloister.errors import InputError, IntegrityError, ProtocolError
from cloister.files import new_directory, read_bytes, write_atomic
from cloister.learning import Plan, load_checkpoint, parse_plan, save_checkpoint
from cloister.learning.privacy import PrivacyFacts
from cloister.runtime.appraisal import Appraised
from cloister.runtime.result import EpochFacts, StudyResult, TransportName
from cloister.runtime.studykey import open_study_key
from cloister.types import check_name

__all__ = ["EpochEntry", "RoundEntry", "StudyRecord", "StudyState", "load_study", "record_of", "save_study"]

_TYPE = "application/vnd.cloister.study-record+json"
_LIMIT = 256 << 20
_RECORD, _KEYS, _CHECKPOINT = "record.dsse.json", "study-keys.dsse.json", "model.checkpoint"

Count = Annotated[int, msgspec.Meta(ge=0)]


class RoundEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One finished round: which attempt it took, whose updates are in it, and the epoch it ran in."""

    round: Count
    attempt: Count
    survivors: tuple[str, ...]
    epoch: Count


class EpochEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One epoch.

    Attributes:
        number: the epoch's number.
        members: exported public identities (JSON) in roster order.
        rows: training rows by site.
        manifests, countersignatures: signed envelopes by site.
        setup_digest: digest of the secure sum's set-up; hex.
    """

    number: Count
    members: tuple[str, ...]
    rows: dict[str, Count]
    manifests: dict[str, str]
    countersignatures: dict[str, str]
    setup_digest: str


class StudyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was agreed and done, without the model.

    Attributes:
        version: of this record; 1 knew one epoch alone.
        plan: the plan as TOML.
        hub: exported public identity (JSON).
        epochs: those in which a round was finished, and the last.
        rounds: one entry a round.
        privacy: what was claimed and accounted for; None where the plan claims nothing.
        debits: by site, its ledger's signed debit; empty where the plan claims no privacy.
        clamped: by site, coordinates beyond the plan's value_range; empty unless rows are declared public.
        transport: how messages travelled; "memory" is one process.
        appraisals: by site, what was accepted as evidence; empty unless the plan asks for it.
    """

    version: Literal[2]
    plan: str
    hub: str
    epochs: Annotated[tuple[EpochEntry, ...], msgspec.Meta(min_length=1)]
    rounds: tuple[RoundEntry, ...]
    privacy: PrivacyFacts | None
    debits: dict[str, str]
    clamped: dict[str, Count]
    transport: TransportName
    appraisals: dict[str, Appraised] = {}  # msgspec copies it


@dataclass(frozen=True)
class StudyState:
    """A study read back: everything a release needs, the model opened.

    Attributes:
        record: what was agreed and done.
        plan: the parsed plan.
        hub: the hub's public identity.
        epochs: the record's, decoded; the last has its study keys.
        model: float64[d], the model to be released.
    """

    record: StudyRecord
    plan: Plan
    hub: PublicIdentity
    epochs: tuple[EpochFacts, ...]
    model: NDArray[np.float64] = field(repr=False)

    @property
    def members(self) -> tuple[PublicIdentity, ...]:
        """Members of the last epoch, in roster order."""
        return self.epochs[-1].members


def record_of(result: StudyResult) -> StudyRecord:
    """Return the record of a finished study."""
    return StudyRecord(
        version=2,
        plan=result.plan.to_toml(),
        hub=result.hub.to_json().decode(),
        epochs=tuple(_entry_of(epoch) for epoch in result.epochs),
        rounds=tuple(
            RoundEntry(done.round, done.attempt, done.survivors, done.epoch) for done in result.rounds
        ),
        privacy=None if result.privacy is None else result.privacy.facts,
        debits=_texts(result.debits),
        clamped=dict(result.clamped),
        transport=result.transport,
        appraisals=dict(result.appraisals),
    )


def _entry_of(epoch: EpochFacts) -> EpochEntry:
    return EpochEntry(
        number=epoch.number,
        members=tuple(member.to_json().decode() for member in epoch.members),
        rows=dict(epoch.rows),
        manifests=_texts(epoch.manifests),
        countersignatures=_texts(epoch.countersignatures),
        setup_digest=epoch.setup_digest.hex(),
    )


def _facts_of(entry: EpochEntry) -> EpochFacts:
    return EpochFacts(
        number=entry.number,
        members=tuple(PublicIdentity.from_json(member.encode()) for member in entry.members),
        rows=entry.rows,
        manifests={name: envelope.encode() for name, envelope in entry.manifests.items()},
        countersignatures={name: envelope.encode() for name, envelope in entry.countersignatures.items()},
        setup_digest=bytes.fromhex(entry.setup_digest),
    )


def _texts(envelopes: Mapping[str, bytes]) -> dict[str, str]:
    return {name: envelope.decode() for name, envelope in envelopes.items()}


def save_study(studies: Path, result: StudyResult, keeper: Identity) -> Path:
    """Write a finished study under its plan's name.

    Args:
        studies: the folder of studies.
        result: the finished study.
        keeper: signs the record.

    Returns:
        The new folder.

    Raises:
        InputError: a study of that name is there already.
        StorageError: the file system refused; nothing remains.
    """
    kept = _Kept(result.plan, canonical_bytes(record_of(result)), result.study_keys, result.study_key)
    return _write(studies, kept, len(result.rounds), result.model, keeper)


def save_conclusion(
    studies: Path,
    plan: Plan,
    record: bytes,
    study_keys: bytes,
    study_key: bytes,
    model: NDArray[np.float64],
    keeper: Identity,
) -> Path:
    """Write, at a site, what a study left: the hub's record of it beside the model as the site holds it.

    Args:
        studies: the folder of studies.
        plan: what the site agreed to.
        record: the hub's `StudyRecord`, canonical JSON.
        study_keys: signed envelope of the last epoch's study key.
        study_key: that key, as this site opened it.
        model: float64[d], the model to release.
        keeper: the site, who signs the record it keeps.

    Returns:
        The new folder.

    Raises:
        ProtocolError: the record is of another plan, or not of all its rounds.
        InputError: a study of that name is there already.
        StorageError: the file system refused; nothing remains.
    """
    try:
        read = msgspec.json.decode(record, type=StudyRecord)
        same = parse_plan(read.plan.encode(), allow_two=True).digest == plan.digest
    except (msgspec.DecodeError, UnicodeDecodeError, InputError) as error:
        raise ProtocolError("sent a record that does not parse", peer=plan.hub.name) from error
    rounds = [entry.round for entry in read.rounds]
    if not same or rounds != list(range(plan.training.rounds)):
        raise ProtocolError("sent the record of another study, or of a part of it", peer=plan.hub.name)
    return _write(studies, _Kept(plan, record, study_keys, study_key), len(rounds), model, keeper)


@dataclass(frozen=True)
class _Kept:
    plan: Plan
    record: bytes
    study_keys: bytes
    study_key: bytes = field(repr=False)


def _write(studies: Path, kept: _Kept, rounds: int, model: NDArray[np.float64], keeper: Identity) -> Path:
    target = studies / check_name(kept.plan.study.name, "study")
    with new_directory(target, mode=0o700) as folder:
        write_atomic(folder / _RECORD, sign_envelope(_TYPE, kept.record, [keeper]), mode=0o600)
        write_atomic(folder / _KEYS, kept.study_keys, mode=0o600)
        save_checkpoint(
            folder / _CHECKPOINT,
            kept.study_key,
            plan_digest=kept.plan.digest,
            round=rounds,
            arrays={"model": model},
        )
    return target


def load_study(studies: Path, name: str, *, keeper: PublicIdentity, reader: Identity) -> StudyState:
    """Read a finished study back.

    Args:
        studies: the folder of studies.
        name: the study's name.
        keeper: who must have signed the record.
        reader: one of those the study key is sealed to.

    Raises:
        InputError: there is no such study.
        IntegrityError: its files are not what was written.
    """
    folder = studies / check_name(name, "study")
    if not folder.is_dir():
        raise InputError(
            f"there is no study {name!r}", where=str(studies), fix="Run `cloister study run` first"
        )
    payload = open_envelope(
        read_bytes(folder / _RECORD, limit=_LIMIT, what="study record"), _TYPE, keyring([keeper])
    )
    try:
        record = msgspec.json.decode(payload, type=StudyRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"the study record does not parse: {error}", where=str(folder)) from None
    plan = parse_plan(record.plan.encode(), allow_two=True)
    epochs = [_facts_of(entry) for entry in record.epochs]
    envelope = read_bytes(folder / _KEYS, limit=_LIMIT, what="study keys")
    last = epochs[-1] = replace(epochs[-1], study_keys=envelope)
    key = open_study_key(envelope, last.members[0], reader, plan.digest, last.number)
    arrays = load_checkpoint(folder / _CHECKPOINT, key, plan_digest=plan.digest, round=len(record.rounds))
    if set(arrays) != {"model"}:
        raise IntegrityError("the checkpoint holds no model", where=str(folder))
    hub = PublicIdentity.from_json(record.hub.encode())
    return StudyState(record, plan, hub, tuple(epochs), arrays["model"])
