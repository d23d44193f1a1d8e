"""What a site keeps, and the Protocol of whoever keeps it.

Every call returns after the bytes were written: what follows from them may leave then, and not before. In the
order of a study:

    promised(epoch)                 before a roster is countersigned
    begin_epoch(kept)               before the site says that it holds the epoch's secrets
    entered(attempt, used)          before a row is read for it
    uploaded(attempt, upload)       before the masked vector leaves
    chosen(attempt, choice)         before a signature or a share for a list leaves
    applied(outcome)                after the model has moved
    checkpoint(state)               in place of the outcomes so far; also before an epoch ends, since outcomes
                                    can be opened only in their own
    end_epoch()                     the epoch's secrets are gone
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from cloister.crypto import Buffer, HoldsSecret
from cloister.runtime.bodies import Body
from cloister.secagg import SiteSnapshot

__all__ = ["EpochKept", "KeepsSite", "NoJournal", "SiteKept", "SiteSnapshot"]


class EpochKept(HoldsSecret, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An epoch whose set-up is complete.

    Attributes:
        offer: the roster that was offered, an encoded message.
        closed: the roster with everybody's countersignature, likewise.
        secure_sum: the site's half of the secure sum.
    """

    offer: bytes
    closed: bytes
    secure_sum: SiteSnapshot


class SiteKept(HoldsSecret, msgspec.Struct, frozen=True, kw_only=True):
    """What a site finds after a break.

    Attributes:
        highest_epoch: the highest number it countersigned a roster for, -1 for none.
        highest_term: the highest term of a hub it obeyed.
        attempts_used: how many attempts it entered in the whole study.
        epoch: None where its secrets are gone, after a reboot for instance; what is said of an attempt below
            is then empty.
        attempt: the last one it entered in the epoch, -1 for none. Earlier ones' secrets cannot be read.
        upload: what it handed over for that attempt, None where nothing has left.
        choice: the survivor list it supported in that attempt, None for none.
        state: the last checkpoint.
        outcomes: what was applied since, oldest first; all of this epoch.
    """

    highest_epoch: int = -1
    highest_term: int = 0
    attempts_used: int = 0
    epoch: EpochKept | None = None
    attempt: int = -1
    upload: bytes | None = None
    choice: tuple[int, ...] | None = None
    state: bytes | None = None
    outcomes: list[bytes] = msgspec.field(default_factory=list)


class KeepsSite(Protocol):
    """Where a site keeps what must survive its process.

    All but the last three raise StorageError where it cannot be written; nothing may leave then.
    """

    def promised(self, epoch: int) -> None:
        """Note that a roster of this number is about to be countersigned; on the disk on return.

        Raises:
            ProtocolError: one of this or a higher number was before.
        """

    def obeyed(self, term: int) -> None:
        """Note the term of a hub that is followed; on the disk on return where it is a higher one."""

    def begin_epoch(self, kept: EpochKept) -> None:
        """Keep an epoch in place of any before it."""

    def entered(self, attempt: int, attempts_used: int) -> None:
        """Note an attempt; what is secret of those before it can no longer be read.

        Args:
            attempt: its number in the epoch.
            attempts_used: how many the study has used, this one among them.
        """

    def uploaded(self, attempt: int, upload: Buffer | Body) -> None:
        """Keep what is handed over for an attempt."""

    def chosen(self, attempt: int, choice: Sequence[int] | None) -> None:
        """Keep the list that is supported in an attempt."""

    def applied(self, outcome: Buffer | Body) -> None:
        """Keep an outcome that the model has taken in."""

    def checkpoint(self, state: Buffer | Body) -> None:
        """Keep the model in place of the outcomes so far; on the disk on return."""

    def end_epoch(self) -> None:
        """Forget the epoch's secrets for good. May be called at any time, and again."""

    @property
    def full(self) -> bool:
        """Whether it is time for a checkpoint."""

    def load(self) -> SiteKept | None:
        """Return what is kept; None for a site that is new to the study.

        Raises:
            IntegrityError: what is there is not what was written.
        """


class NoJournal:
    """Keeps nothing: a study in one process."""

    full = False

    def promised(self, epoch: int) -> None:
        """Do nothing."""

    def obeyed(self, term: int) -> None:
        """Do nothing."""

    def begin_epoch(self, kept: EpochKept) -> None:
        """Do nothing."""

    def entered(self, attempt: int, attempts_used: int) -> None:
        """Do nothing."""

    def uploaded(self, attempt: int, upload: Buffer | Body) -> None:
        """Do nothing."""

    def chosen(self, attempt: int, choice: Sequence[int] | None) -> None:
        """Do nothing."""

    def applied(self, outcome: Buffer | Body) -> None:
        """Do nothing."""

    def checkpoint(self, state: Buffer | Body) -> None:
        """Do nothing."""

    def end_epoch(self) -> None:
        """Do nothing."""

    def load(self) -> SiteKept | None:
        """Return None."""
        return None
