"""What a hub is told where a site leaves on its own account: a sentence, and never the error's own words.

An error at a site may be a worker's, which saw the rows: its words name files of the owner's, columns,
numbers of rows, what is left of a budget. The owner reads them; the hub learns

1. under [privacy]      one sentence, whatever the cause: what fails may fail because of some row (a long one
                        takes more memory), and no ledger is charged for saying so
2. else, at the site    of what kind the reason is
3. by others' doing     what a party of the study did, in the words of the protocol
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from cloister.errors import CloisterError, PolicyRefused, ProtocolError, StorageError
from cloister.text import type_and_place

__all__ = ["LEAVES", "for_owner", "told_of", "unexpected"]

LEAVES: Final = "it takes no further part, and keeps the reason to itself"
_REFUSES: Final = "its owner's policy or budget refuses"
_FULL: Final = "its memory or its disk is not enough"
_OURS: Final = "it met an error of its own"
_BROKEN: Final = "its rows, its files or its worker do not fit the plan"


def unexpected(error: Exception) -> CloisterError:
    """Return what the owner reads of an error that nobody expected: its text may hold a value of a row."""
    if isinstance(error, MemoryError):
        return StorageError("there is not enough memory", fix="Free some, or take a larger machine")
    what = f"this site met an error it did not expect ({type_and_place(error)})"
    return CloisterError(what, fix="Report it")


def for_owner(error: Exception) -> CloisterError:
    """Return what the owner reads of any error: one that was raised on purpose as it is."""
    return error if isinstance(error, CloisterError) else unexpected(error)


def told_of(error: CloisterError, *, private: bool, parties: Collection[str]) -> str:
    """Return what the hub is told of why a site leaves.

    Args:
        error: why.
        private: whether the plan claims privacy.
        parties: names of the hub and of the plan's sites.
    """
    if isinstance(error, ProtocolError) and error.peer in parties:
        return f"{error.what} (from {error.peer})"
    if private:
        return LEAVES
    if isinstance(error, PolicyRefused):
        return _REFUSES
    if type(error) is CloisterError:  # as `unexpected` makes it; every cause that was foreseen has a type
        return _OURS
    return _FULL if isinstance(error, StorageError) else _BROKEN
