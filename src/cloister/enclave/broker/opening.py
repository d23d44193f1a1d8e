"""Where a broker's files are, and how they are opened together.

FOLDER/broker.db     the store
FOLDER/broker.log    the Merkle log
FOLDER/broker.lock   who has them open
FOLDER/broker.sock   where it is served, unless another socket is named
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.crypto import ScryptCost
from cloister.enclave.broker.book import Book
from cloister.enclave.broker.store import Store
from cloister.enclave.broker.storefile import DATABASE
from cloister.errors import InputError, IntegrityError
from cloister.log import Log
from cloister.types import Counter

__all__ = ["LOG_NAME", "SOCKET_NAME", "open_book", "read_log"]

LOG_NAME: Final = "broker.log"
SOCKET_NAME: Final = "broker.sock"
_BEFORE_NAME: Final = 16  # bytes of a log's file before the length of its id


def open_book(
    folder: Path,
    passphrase: str,
    fingerprint: str,
    at: datetime,
    *,
    counter: Callable[[str], Counter] | None = None,
    cost: ScryptCost | None = None,
) -> Book:
    """Open a broker's store and log; make them where the folder has neither.

    Args:
        folder: the broker's.
        passphrase: of its keys.
        fingerprint: of the broker's identity; names a new log.
        at: now.
        counter: gives the hardware counter of the store with this id, and of no other; None without one.
        cost: of a guess at a new store's passphrase; None for the default.

    Raises:
        PassphraseError: the passphrase is wrong.
        IntegrityError: store and log are not as they were left, or one of them is missing.
        StorageError: another process has them open, or the file system refused.
    """
    new = not (folder / DATABASE).exists()
    if new and (folder / LOG_NAME).exists():
        raise IntegrityError(
            "the key broker has lost its store; its log is there",
            where=str(folder),
            fix="Bring back its newest copy",
        )
    store = (
        Store.create(folder, passphrase, fingerprint, cost=cost) if new else Store.open(folder, passphrase)
    )
    try:
        if store.mark.sequence and not (folder / LOG_NAME).exists():
            fix = "Bring back its newest copy"
            raise IntegrityError("the key broker has lost its log", where=str(folder), fix=fix)
        return Book(
            store, Log(folder / LOG_NAME, store.log_id), at, counter(store.mark.store) if counter else None
        )
    except BaseException:
        store.close()
        raise


def read_log(folder: Path) -> Log:
    """Return a broker's log, to be read; whoever serves the broker may go on meanwhile.

    Raises:
        InputError: there is none.
        IntegrityError: an entry was altered.
    """
    path = folder / LOG_NAME
    if not path.exists():
        fix = "Name its folder, or begin one with `cloister enclave broker serve`"
        raise InputError("there is no key broker's log here", where=str(folder), fix=fix)
    with path.open("rb") as file:
        start = file.read(_BEFORE_NAME + 2 + 256)
    length = int.from_bytes(start[_BEFORE_NAME : _BEFORE_NAME + 2], "big")
    name = start[_BEFORE_NAME + 2 :][:length]
    return Log(path, name.decode("utf-8", "replace") or "none")
