"""A site's journal of one study, in files.

    FOLDER/lock, log.lock   one process at a time
    FOLDER/marks            what is never promised twice (`marks.py`); survives everything
    FOLDER/key              the log's key, sealed to the site's identity
    FOLDER/log              model and outcomes; receipt and choice of each attempt
    FOLDER/epoch            the epoch, its secrets under the ratchet (`epochfile.py`)
    FOLDER/upload           the last upload, likewise (`slot.py`)
    VOLATILE/NAME           the ratchet (`volatile.py`)

Invariants:

1. What a site handed over for an attempt, and the list it chose, are kept before the call returns; a second
   of either for the same attempt is refused.
2. Entering an attempt makes the secrets and the upload of every attempt before it unreadable to anybody who
   takes disk and memory afterwards.
3. A process that is killed at any instant finds everything that had returned.
4. An epoch is gone, for good, once the machine was started anew; and once the log is an older copy than the
   volatile file knows of, or lies on another machine. Its number, the count of attempts and the checkpoint
   stay. A snapshot of a whole virtual machine, memory included, is not noticed: do not go back to one.
5. Outcomes are opened under their epoch's keys: those of another epoch are left out, and then the epoch is
   given up too, since the site's model is not where it was.

Without a place in memory (`resumable` is False, `lost` says why) an epoch does not survive the process.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloister.crypto import Buffer, HoldsSecret, Identity, framed, hpke_open, hpke_seal, sha256
from cloister.errors import InputError, IntegrityError, ProtocolError
from cloister.files import read_bytes, write_atomic
from cloister.runtime.bodies import Body, body_of
from cloister.runtime.journal.epochfile import read_epoch, write_epoch
from cloister.runtime.journal.kept import EpochKept, SiteKept
from cloister.runtime.journal.lock import locked
from cloister.runtime.journal.log import EncryptedLog
from cloister.runtime.journal.marks import Marks
from cloister.runtime.journal.slot import Slot
from cloister.runtime.journal.volatile import Ratchet, Volatile, why_not_volatile

__all__ = ["SiteJournal"]

_FULL_BYTES: Final = 64 << 20
_KEY_INFO: Final = b"cloister/journal/key/v1"
_STATE, _OUTCOME, _UPLOAD, _CHOICE = b"S", b"O", b"U", b"C"
_ATTEMPT: Final = struct.Struct(">q")


class SiteJournal(HoldsSecret):
    """An open journal; see `KeepsSite` for its calls.

    Args:
        folder: of this study at this site; made where missing.
        volatile_folder: in memory, of this user; see `volatile.volatile_folder`. None where there is none.
        identity: the site's.
        plan_digest: of the study's plan.

    Attributes:
        resumable: whether an epoch survives the process.
        lost: why the last epoch cannot go on, or no epoch will be kept; None where nothing was lost.

    Raises:
        InputError: another process works with it.
        IntegrityError: it was altered, or is another identity's.
        StorageError: it cannot be read or written.
    """

    def __init__(
        self, folder: Path, volatile_folder: Path | None, identity: Identity, plan_digest: bytes
    ) -> None:
        self._folder = folder
        self._context = framed(identity.public.fingerprint.encode(), plan_digest)
        self._lock = locked(folder / "lock")
        self._log: EncryptedLog | None = None
        self._marks: Marks | None = None
        self._slot: Slot | None = None
        self._volatile: Volatile | None = None
        self._entries: dict[bytes, bytes] = {}  # of the running attempt, by label
        self._start = self._unkept = 0
        self.lost: str | None = None
        try:
            self._open(volatile_folder, identity)
        except BaseException:
            self.close()
            raise
        self.resumable = self._volatile is not None

    # --- promises ---------------------------------------------------------------------------------

    def promised(self, epoch: int) -> None:
        """See `KeepsSite`."""
        self._numbers().promise(epoch)

    def obeyed(self, term: int) -> None:
        """See `KeepsSite`."""
        self._numbers().obey(term)

    # --- an epoch ---------------------------------------------------------------------------------

    def begin_epoch(self, kept: EpochKept) -> None:
        """See `KeepsSite`."""
        self.end_epoch()
        if self._volatile is None:
            return
        ratchet = Ratchet.fresh()
        write_epoch(self._folder / "epoch", kept, ratchet, self._context)
        self._put(ratchet)
        self.lost = None

    def entered(self, attempt: int, attempts_used: int) -> None:
        """See `KeepsSite`."""
        self._numbers().use(attempts_used)
        self._enter(attempt)

    def uploaded(self, attempt: int, upload: Buffer | Body) -> None:
        """See `KeepsSite`. Raises ProtocolError where one is kept for this attempt."""
        ratchet = self._enter(attempt)
        if ratchet is None or self._slot is None:
            return
        label = _label(_UPLOAD, ratchet)
        if label in self._entries:
            raise ProtocolError("an upload of this attempt was handed over before", fix="Send that one again")
        self._keep(label, self._slot.put(ratchet.upload_key(), upload))

    def chosen(self, attempt: int, choice: Sequence[int] | None) -> None:
        """See `KeepsSite`. Raises ProtocolError where another list is kept for this attempt."""
        ratchet = self._enter(attempt)
        if ratchet is None or choice is None:
            return
        label, packed = _label(_CHOICE, ratchet), struct.pack(f">{len(choice)}I", *choice)
        if label not in self._entries:
            self._keep(label, packed)
        elif self._entries[label] != packed:
            raise ProtocolError("another survivor list was chosen in this attempt", fix="Refused")

    def end_epoch(self) -> None:
        """See `KeepsSite`."""
        if self._volatile is not None and self._volatile.ratchet is not None:
            self._put(None)
        self._entries.clear()
        (self._folder / "epoch").unlink(missing_ok=True)

    # --- the model --------------------------------------------------------------------------------

    def applied(self, outcome: Buffer | Body) -> None:
        """See `KeepsSite`."""
        ratchet = self._ratchet()
        if ratchet is None:
            self._unkept += body_of(outcome).size  # could not be opened after a break
            return
        self._records().append(outcome, label=_OUTCOME + ratchet.epoch)
        self._put(ratchet)

    def checkpoint(self, state: Buffer | Body) -> None:
        """See `KeepsSite`."""
        log = self._records()
        log.replace([(_STATE, state), *self._entries.items()])
        self._start, self._unkept = log.size, 0
        self._put(self._ratchet())

    @property
    def full(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._records().size - self._start + self._unkept > _FULL_BYTES

    # --- after a break ----------------------------------------------------------------------------

    def load(self) -> SiteKept | None:
        """See `KeepsSite`."""
        marks, complete = self._numbers(), True
        state: bytes | None = None
        outcomes: list[bytes] = []
        for label, record in self._records().entries():
            if label == _STATE:
                state, outcomes, complete = bytes(record), [], True
            elif label[:1] == _OUTCOME:
                ratchet = self._ratchet()
                complete = complete and ratchet is not None and label[1:] == ratchet.epoch
                outcomes.append(bytes(record))
        if not complete and self._ratchet() is not None:
            self._give_up("its model was not kept when the epoch before it ended")
        epoch, attempt, upload, choice = self._kept_epoch()
        if epoch is None and state is None and (marks.highest_epoch, marks.attempts_used) == (-1, 0):
            return None
        return SiteKept(
            highest_epoch=marks.highest_epoch,
            highest_term=marks.highest_term,
            attempts_used=marks.attempts_used,
            epoch=epoch,
            attempt=attempt,
            upload=upload,
            choice=choice,
            state=state,
            outcomes=outcomes if epoch is not None else [],
        )

    def forget(self) -> None:
        """Remove everything but the promises: the study is over. Closes the journal."""
        self.end_epoch()
        if self._volatile is not None:
            self._volatile.remove()
        self.close()
        for name in ("key", "log", "log.lock", "upload"):
            (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process open it; may be called again."""
        for part in (self._log, self._marks, self._slot, self._volatile):
            if part is not None:
                part.close()
        self._log = self._marks = self._slot = self._volatile = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- inside -----------------------------------------------------------------------------------

    def _open(self, volatile_folder: Path | None, identity: Identity) -> None:
        self._folder.chmod(0o700)
        self._marks = Marks(self._folder / "marks")
        key, path = self._key(identity), self._folder / "log"
        self._log = EncryptedLog.open(path, key) if path.exists() else EncryptedLog.create(path, key)
        self._slot = Slot(self._folder / "upload")
        why = "no tmpfs" if volatile_folder is None else why_not_volatile(volatile_folder)
        if volatile_folder is None or why is not None:
            self._give_up(f"there is no place in memory for its keys ({why})")
            return
        self._volatile = Volatile(volatile_folder, sha256(b"cloister journal", self._context).hex()[:32])
        self._resume()

    def _key(self, identity: Identity) -> bytes:
        """Return the log's key; a new one where there is none."""
        path = self._folder / "key"
        if path.exists():
            sealed = read_bytes(path, limit=1 << 16, what="journal key")
            try:
                return hpke_open(identity.sealing, sealed, info=_KEY_INFO, associated_data=self._context)
            except IntegrityError:
                raise IntegrityError(
                    "the journal was altered, or is of another identity or study",
                    where=str(path),
                    fix="Bring it back",
                ) from None
        key, public = os.urandom(32), identity.public.sealing_key
        write_atomic(path, hpke_seal(public, key, info=_KEY_INFO, associated_data=self._context), mode=0o600)
        (self._folder / "log").unlink(missing_ok=True)  # nobody can read it any more
        return key

    def _resume(self) -> None:
        """Compare log, volatile file and epoch."""
        log, volatile = self._records(), self._volatile
        assert volatile is not None  # noqa: S101  # the caller opened it
        if volatile.ratchet is None:
            if (self._folder / "epoch").exists():
                self._give_up("the machine was started anew, or the epoch had ended")
            return
        if (log.generation, log.count) < volatile.log:
            self._give_up("the journal on the disk is an older copy")
            return
        for label, record in log.entries():
            if label in (_label(_UPLOAD, volatile.ratchet), _label(_CHOICE, volatile.ratchet)):
                self._entries[label] = bytes(record)
        self._put(volatile.ratchet)  # a record may have been the last thing the process wrote

    def _kept_epoch(self) -> tuple[EpochKept | None, int, bytes | None, tuple[int, ...] | None]:
        ratchet = self._ratchet()
        if ratchet is None or self._slot is None:
            return None, -1, None, None
        try:
            epoch = read_epoch(self._folder / "epoch", ratchet, self._context)
        except InputError:
            self._give_up("its file is missing")
            return None, -1, None, None
        receipt, packed = (self._entries.get(_label(kind, ratchet)) for kind in (_UPLOAD, _CHOICE))
        upload = None if receipt is None else self._slot.get(ratchet.upload_key(), receipt)
        choice = None if packed is None else struct.unpack(f">{len(packed) // 4}I", packed)
        return epoch, ratchet.attempt, upload, choice

    def _give_up(self, why: str) -> None:
        """Erase an epoch that cannot go on."""
        self.end_epoch()
        self.lost = why

    def _enter(self, attempt: int) -> Ratchet | None:
        """Move the ratchet on to `attempt`; None where no epoch is kept."""
        ratchet = self._ratchet()
        if ratchet is None or attempt == ratchet.attempt:
            return ratchet
        ratchet = ratchet.entered(attempt)
        self._put(ratchet)
        self._entries.clear()
        return ratchet

    def _keep(self, label: bytes, record: bytes) -> None:
        self._records().append(record, label=label)
        self._entries[label] = record
        self._put(self._ratchet())

    def _put(self, ratchet: Ratchet | None) -> None:
        if self._volatile is not None:
            log = self._records()
            self._volatile.put(ratchet, (log.generation, log.count))

    def _ratchet(self) -> Ratchet | None:
        return None if self._volatile is None else self._volatile.ratchet

    def _records(self) -> EncryptedLog:
        if self._log is None:
            raise InputError("the journal is closed", where=str(self._folder), fix="Open it again")
        return self._log

    def _numbers(self) -> Marks:
        if self._marks is None:
            raise InputError("the journal is closed", where=str(self._folder), fix="Open it again")
        return self._marks


def _label(kind: bytes, ratchet: Ratchet) -> bytes:
    return kind + ratchet.epoch[:15] + _ATTEMPT.pack(ratchet.attempt)
