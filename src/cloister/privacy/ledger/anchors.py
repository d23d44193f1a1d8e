"""What must be found in a ledger: heads that were kept elsewhere.

Two places are looked at whenever a ledger is opened:
- the file beside its folder (FOLDER.head), written when the writer pauses or closes: it finds a folder that
  was deleted, swapped or put back from an older copy alone. It must be there once the ledger has two rows;
- the anchor that the ledger's own rows name, written with every commit before anybody is answered: it finds
  a home that was put back whole. It must be there from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import InputError
from cloister.privacy.ledger.book import Book
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.head import Head, HeadFile
from cloister.privacy.ledger.store import Loaded, Store

__all__ = ["SeenHeads", "anchor_place", "head_beside", "heads_of"]

_BESIDE: Final = ".head"


@dataclass(frozen=True)
class SeenHeads:
    """Heads that were kept elsewhere, by where."""

    heads: tuple[tuple[str, Head], ...]

    def check(self, loaded: Loaded, store: Store) -> None:
        """Raise LedgerInDoubt unless a ledger contains all of them.

        Args:
            loaded: the ledger as it was read.
            store: where to read it whole, if a head is older than what was read.
        """
        if any(head.size <= loaded.begin for _, head in self.heads):
            loaded = store.load(whole=True)
        for where, head in self.heads:
            if head.size > loaded.book.size:
                raise LedgerInDoubt(
                    f"the ledger was restored from an older copy: it has {loaded.book.size} rows, and was "
                    f"seen with {head.size}",
                    where=where,
                    fix=_FIX,
                )
            found = loaded.hash_after(head.size)
            if head.ledger != loaded.book.ledger or found is None or found.hex() != head.hash:
                raise LedgerInDoubt("the ledger is not the one that was seen", where=where, fix=_FIX)


_FIX: Final = "Bring back its newest copy; what was spent since cannot be known otherwise"


def heads_of(folder: Path, book: Book) -> SeenHeads:
    """Return the heads that a ledger must contain. Raises LedgerInDoubt where one is missing."""
    beside = head_beside(folder)
    files = [beside] if book.size > 1 or beside.exists() else []
    if book.anchor is not None:
        files.append(HeadFile(Path(book.anchor), durable=True))
    return SeenHeads(tuple((str(file.path), file.read(book.ledger, book.owners)) for file in files))


def head_beside(folder: Path) -> HeadFile:
    """Return the file beside a ledger's folder that keeps its head."""
    return HeadFile(folder.with_name(folder.name + _BESIDE), durable=True)


def anchor_place(path: Path, folder: Path) -> Path:
    """Return the absolute path of an anchor. Raises InputError where it cannot be one."""
    place = path.absolute()
    place = place.parent.resolve() / place.name
    if place.is_relative_to(folder.resolve()) or place == head_beside(folder.resolve()).path:
        raise InputError(
            "an anchor in or beside the ledger's folder would be put back with it",
            where=str(path),
            fix="Choose another disk, a share, or a partner's machine",
        )
    if place.is_dir() or place.is_symlink():
        raise InputError("the anchor is a folder or a link", where=str(path), fix="Name a file")
    return place
