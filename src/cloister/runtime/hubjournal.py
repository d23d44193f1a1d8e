"""What a hub writes down before it acts, so that a process that is killed can go on, or another in its place.

One record a step, in the order of the study:

    TermTaken         this process acts, under this term, which only grows
    SiteAppraised     a site's evidence was accepted, where the plan asks for any
    EpochOffered      a roster goes out under this number, which is never used again
    EpochOpened       its set-up is complete: all that is needed to add under it
    AttemptBegun      an attempt is used, whatever becomes of it
    SurvivorsFixed    whose vectors the attempt adds up; no other list may follow
    RoundEnded        the sum, before anybody is told
    Checkpoint        the model and the rounds so far, in the place of the records before it
    Ended             the study came to its end; nothing is to be done again

Offers and openings are on the disk when `append` returns. The others survive the process and not the machine:
a hub that lost the last of them is behind its sites, who refuse an attempt that was used, and says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec

from cloister.crypto import Buffer, Identity, hpke_open, hpke_seal
from cloister.errors import InputError, IntegrityError
from cloister.files import read_bytes, write_atomic
from cloister.runtime.appraisal import Appraised
from cloister.runtime.bodies import LEAST_BYTES, Body, SealedBody, as_field, body_of, encode_around, parts_of
from cloister.runtime.journal import EncryptedLog
from cloister.runtime.messages import Index, Join, Name, Names, Outcome

__all__ = [
    "AttemptBegun",
    "Checkpoint",
    "Ended",
    "EpochOffered",
    "EpochOpened",
    "FileJournal",
    "KeepsHub",
    "Kept",
    "MemoryJournal",
    "RoundEnded",
    "SiteAppraised",
    "SurvivorsFixed",
    "TermTaken",
    "open_hub_log",
    "outcomes_in",
]

COMPACT_BYTES: Final = 256 << 20
_KEY_INFO: Final = b"cloister/hub-journal/v1"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records."""


class TermTaken(_Record, tag="term", frozen=True):
    """A process began to act."""

    term: Annotated[int, msgspec.Meta(ge=0)]


class SiteAppraised(_Record, tag="appraised", frozen=True):
    """A site's evidence was accepted; the newest of each site counts."""

    name: Name
    appraised: Appraised


class EpochOffered(_Record, tag="offered", frozen=True):
    """A roster is about to be offered under `number`."""

    number: Index


class EpochOpened(_Record, tag="opened", frozen=True):
    """An epoch whose set-up is complete.

    Attributes:
        number: of the epoch.
        joins: what each member brought, in roster order.
        countersignatures: their signed agreement, in the same order.
        secure_sum: snapshot of the secure sum's set-up; nothing in it is secret.
        study_keys: the sealed study keys, empty where there are none.
    """

    number: Index
    names: Names
    joins: list[Join]
    countersignatures: list[bytes]
    secure_sum: bytes
    study_keys: bytes


class AttemptBegun(_Record, tag="begun", frozen=True):
    """An attempt at a round."""

    round: Index
    attempt: Index


class SurvivorsFixed(_Record, tag="fixed", frozen=True):
    """Whose vectors an attempt adds up."""

    attempt: Index
    survivors: Names


class RoundEnded(_Record, tag="ended", frozen=True):
    """A round's sum, and what was measured beside it."""

    epoch: Index
    outcome: Outcome
    seconds: float
    metrics: dict[str, float] | None = None
    site_metrics: dict[str, dict[str, float]] | None = None


class RoundBrief(_Record, frozen=True):
    """What is kept of a round whose sum is in the checkpoint."""

    epoch: Index
    round: Index
    attempt: Index
    survivors: Names
    seconds: float


class Checkpoint(_Record, tag="checkpoint", frozen=True):
    """The model after some rounds; `state` is empty where the hub may not see it.

    `last` is the outcome of the last of them, which a site may still be missing.
    """

    rounds: list[RoundBrief]
    attempt: Annotated[int, msgspec.Meta(ge=-1)]
    state: memoryview
    last: Outcome


class Ended(_Record, tag="study-ended", frozen=True):
    """The study is over.

    Attributes:
        debits: what each site's ledger says of it, signed, where the plan claims privacy.
        metrics, site_metrics: evaluation of the released model, where the plan declares rows public.
    """

    debits: dict[Name, bytes] = {}  # msgspec copies it
    metrics: dict[str, float] | None = None
    site_metrics: dict[str, dict[str, float]] | None = None


Kept = (
    TermTaken
    | SiteAppraised
    | EpochOffered
    | EpochOpened
    | AttemptBegun
    | SurvivorsFixed
    | RoundEnded
    | Checkpoint
    | Ended
)

_SUM: Final = b"sum"  # labels records that may be large
_decoder: msgspec.msgpack.Decoder[Kept] = msgspec.msgpack.Decoder(Kept)


class KeepsHub(Protocol):
    """Where a hub keeps its records."""

    def append(self, record: Kept, *, durable: bool = False) -> None:
        """Keep a record; with `durable` it is on the disk on return. Raises StorageError where it cannot."""

    def records(self, *, sums: bool = True) -> Iterator[Kept]:
        """Yield what is kept, oldest first; without sums and checkpoints where those are not wanted."""

    def set_aside(self, data: Buffer | Body) -> Buffer | Body:
        """Return the same bytes from where they take no memory, if there is such a place: what waits to be
        sent, or is sent to many. Raises StorageError where the place is full."""

    def outcomes(self, first: int) -> list[Outcome]:
        """Return the sums of the rounds from `first` on that are still kept, oldest first."""

    @property
    def full(self) -> bool:
        """Whether it is time for a checkpoint."""

    def compact(self, records: Sequence[Kept]) -> None:
        """Keep these in the place of all others."""


def open_hub_log(folder: Path, plan_digest: bytes, identity: Identity) -> EncryptedLog:
    """Open, or begin, the journal of a study.

    Its key is sealed to the hub's identity, so that another process of the same hub can take it over.

    Args:
        folder: of all journals of this hub.
        plan_digest: of the study.
        identity: the hub's own keys.

    Raises:
        StorageError: another process has it, or the file system refused.
        IntegrityError: what is there is not what was written.
    """
    place = folder / plan_digest.hex()[:32]
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    sealed, log = place / "key", place / "log"
    if not sealed.exists():
        fresh = hpke_seal(
            identity.public.sealing_key, os.urandom(32), info=_KEY_INFO, associated_data=plan_digest
        )
        with suppress(InputError):  # another process was faster
            write_atomic(sealed, fresh, mode=0o600, replace=False)
    data = read_bytes(sealed, limit=4096, what="journal key")
    key = hpke_open(identity.sealing, data, info=_KEY_INFO, associated_data=plan_digest)
    return EncryptedLog.open(log, key) if log.exists() else EncryptedLog.create(log, key)


def outcomes_in(records: Iterable[Kept], first: int) -> Iterator[Outcome]:
    """Yield the sums of the rounds from `first` on that records hold, oldest first."""
    for record in records:
        match record:
            case RoundEnded(outcome=outcome) | Checkpoint(last=outcome) if outcome.round >= first:
                yield outcome
            case _:
                pass


def _label(record: Kept) -> bytes:
    return _SUM if isinstance(record, RoundEnded | Checkpoint) else b""


class MemoryJournal:
    """Keeps the last sum for as long as the process lives, and nothing else: for a study in one process."""

    full = False

    def __init__(self) -> None:
        self._last: Outcome | None = None

    def append(self, record: Kept, *, durable: bool = False) -> None:
        """Note the last sum."""
        if isinstance(record, RoundEnded):
            self._last = record.outcome

    def records(self, *, sums: bool = True) -> Iterator[Kept]:
        """Yield nothing."""
        yield from ()

    def set_aside(self, data: Buffer | Body) -> Buffer | Body:
        """Return it as it is; a body, which may be read from a model that moves on, as a copy."""
        return b"".join(parts_of(data)) if isinstance(data, Body) else data

    def outcomes(self, first: int) -> list[Outcome]:
        """Return the last round's."""
        return [self._last] if self._last is not None and self._last.round >= first else []

    def compact(self, records: Sequence[Kept]) -> None:
        """Do nothing."""


class FileJournal:
    """Keeps everything in an encrypted, append-only file.

    Args:
        log: the file; nobody else writes to it.
    """

    def __init__(self, log: EncryptedLog) -> None:
        self._log = log
        self._bytes = 0

    def append(self, record: Kept, *, durable: bool = False) -> None:
        """Append a record."""
        data = body_of(encode_around(record))
        self._log.append(data, label=_label(record))
        self._bytes += data.size
        if durable:
            self._log.sync()

    def records(self, *, sums: bool = True) -> Iterator[Kept]:
        """Yield what is kept. Raises IntegrityError where a record is none."""
        for _, data in self._log.entries(skip=None if sums else _SUM):
            try:
                record = _decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise IntegrityError(
                    "the hub's journal holds a record that does not parse",
                    fix="Run the version that wrote it",
                ) from error
            if sums or not _label(record):
                yield record

    def set_aside(self, data: Buffer | Body) -> Buffer | Body:
        """Return it from a file beside the journal, encrypted under a key of this process; what is small, as
        it is."""
        large = body_of(data).size >= LEAST_BYTES
        return SealedBody(self._log.folder, data) if large else data

    def outcomes(self, first: int) -> list[Outcome]:
        """Return sums, read back from the file in one pass, and set aside."""
        return [
            msgspec.structs.replace(outcome, total=as_field(self.set_aside(outcome.total)))
            for outcome in outcomes_in(self.records(), first)
        ]

    @property
    def full(self) -> bool:
        """Whether sums have piled up."""
        return self._bytes > COMPACT_BYTES

    def compact(self, records: Sequence[Kept]) -> None:
        """Write the file anew."""
        self._log.replace((_label(record), encode_around(record)) for record in records)
        self._bytes = 0
