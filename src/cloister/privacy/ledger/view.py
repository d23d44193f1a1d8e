"""A ledger read without its owner's private keys, whole: every row, every hash, every set of fingerprints.

It takes no lock and starts no writer; another process may be writing meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from cloister.crypto import PublicIdentity
from cloister.errors import InputError
from cloister.privacy.ledger.anchors import SeenHeads, head_beside, heads_of
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.engine import check_owner
from cloister.privacy.ledger.head import open_head
from cloister.privacy.ledger.status import Status, status_of
from cloister.privacy.ledger.store import DATABASE, Loaded, Store

__all__ = ["LedgerView", "ledger_exists", "read_ledger"]


@dataclass(frozen=True)
class LedgerView:
    """What a ledger contained when it was read; made by `read_ledger`, after every check."""

    loaded: Loaded

    @property
    def ledger(self) -> str:
        """Its id."""
        return self.loaded.book.ledger

    @property
    def size(self) -> int:
        """How many rows it has."""
        return self.loaded.book.size

    @property
    def counted(self) -> bool:
        """Whether a counter anchors it; reading a ledger does not compare it with that."""
        return open_head(self.loaded.envelope, [self.loaded.book.owner]).counter is not UNSET

    @property
    def anchor(self) -> str | None:
        """Where its newest head is kept too."""
        return self.loaded.book.anchor

    def populations(self) -> tuple[str, ...]:
        """Return the names of all populations, sorted."""
        return tuple(sorted(self.loaded.book.accounts))

    def bound(self, dataset: str) -> tuple[str, ...]:
        """Return the populations of a dataset, by its id; empty where it was never bound."""
        return self.loaded.book.datasets.get(dataset, ())

    def status(self, population: str) -> Status:
        """Return a population's budget. Raises PolicyRefused where it was not declared."""
        return status_of(self.loaded.book, population)


def ledger_exists(folder: Path) -> bool:
    """Return whether there is a ledger in a folder. Raises LedgerInDoubt where there was one."""
    if (folder / DATABASE).exists():
        return True
    if head_beside(folder).exists():
        raise LedgerInDoubt(
            "the ledger is gone, and the head beside it says that there was one",
            where=str(folder),
            fix="Bring back its newest copy",
        )
    return False


def read_ledger(
    folder: Path,
    owner: PublicIdentity,
    *,
    successions: Sequence[bytes] = (),
    contains: SeenHeads | None = None,
) -> LedgerView:
    """Read a ledger whole and check all of it.

    Args:
        folder: the ledger's.
        owner: whose it must be, or become.
        successions: how that identity followed earlier ones.
        contains: further heads that must be in it.

    Raises:
        InputError: there is no ledger.
        LedgerInDoubt: it is not what its owner signed, or older than it was seen.
        StorageError: it cannot be read.
    """
    folder = folder.absolute()
    if not ledger_exists(folder):
        raise InputError("there is no ledger yet", where=str(folder), fix="Declare a budget first")
    with Store(folder, write=False) as store:
        # Heads are read before the rows: the ledger may grow in between, and never shrinks.
        before = store.load().book
        check_owner(before.owner, owner, successions, folder)
        seen = heads_of(folder, before)
        loaded = store.load(whole=True)
        check_owner(loaded.book.owner, owner, successions, folder)
        seen.check(loaded, store)
        if contains is not None:
            contains.check(loaded, store)
    return LedgerView(loaded)
