"""The file of a key broker's store: its header, its keys, its lock, and how a new one comes to be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import ScryptCost, canonical_bytes, framed, hkdf, hmac_sha256, scrypt, sha256
from cloister.enclave.broker.grant import Digest, PermissionId
from cloister.errors import InputError, StorageError
from cloister.log import TreeHead

__all__ = ["APPLICATION", "DATABASE", "VERSION", "Header", "Mark", "inode", "make", "store_keys", "take_lock"]

DATABASE: Final = "broker.db"
APPLICATION: Final = 0x436C4B62  # "ClKb"
VERSION: Final = 1
_LOCK: Final = "broker.lock"
_TABLES: Final = """
CREATE TABLE header (one INTEGER PRIMARY KEY CHECK (one = 1), content BLOB NOT NULL, mac BLOB NOT NULL);
CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), content BLOB NOT NULL, mac BLOB NOT NULL);
CREATE TABLE rows (kind TEXT NOT NULL, id TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (kind, id));
"""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is needed before there are keys.

    Attributes:
        format: of the store.
        store: its id.
        log_id: of the log that belongs to it.
        cost, salt: of the passphrase.
    """

    format: Literal["cloister-broker-v1"]
    store: PermissionId
    log_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    cost: ScryptCost
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the store stands, and what it must agree with.

    Attributes:
        store: its id.
        sequence: how many changes were made.
        total: the sum over all rows, hexadecimal.
        log: the log's head just before the newest change was entered.
        counter: the hardware counter's value once the newest change counts; None without one.
    """

    store: PermissionId
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    total: Digest
    log: TreeHead
    counter: int | None = None


def store_keys(passphrase: str, header: Header) -> tuple[bytes, bytes]:
    """Return the keys for KEKs and for MACs. Raises PassphraseError: empty or overlong."""
    root = scrypt(passphrase, header.salt, header.cost)
    return hkdf(root, info=b"cloister broker store keys v1"), hkdf(
        root, info=b"cloister broker store macs v1"
    )


def make(folder: Path, passphrase: str, log_id: str, cost: ScryptCost | None) -> int:
    """Make a new store in `folder`; return the descriptor that holds its lock.

    Raises:
        InputError: there is one.
        PassphraseError: an empty or overlong passphrase.
        StorageError: the file system refused, or another process is making one.
    """
    salt, store = os.urandom(16), os.urandom(16).hex()
    header = Header("cloister-broker-v1", store, log_id, cost or ScryptCost(), salt)
    keys = store_keys(passphrase, header)
    path, part = folder / DATABASE, folder / f".{DATABASE}.part"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_make(path, error) from None
    lock = take_lock(folder)
    try:
        if path.exists():
            raise InputError("a key broker's store exists here", where=str(path), fix="Open it")
        part.unlink(missing_ok=True)
        _write(part, header, keys[1])
        part.rename(path)
        for each in (path, folder):
            _fsync(each)
    except BaseException as error:
        os.close(lock)
        if isinstance(error, OSError | sqlite3.Error):
            raise _cannot_make(path, error) from None
        raise
    return lock


def take_lock(folder: Path) -> int:
    """Return the descriptor that holds a broker's lock.

    Raises StorageError where another process has it, or the folder cannot be used.
    """
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot open the key broker's folder: {error.strerror}",
            where=str(folder),
            fix="Check its permissions",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StorageError(
            "another process has the key broker open", where=str(folder), fix="Use its socket, or end it"
        ) from None
    return descriptor


def inode(path: Path) -> tuple[int, int]:
    """Return which file is at `path`; (-1, -1) for none."""
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


def _write(path: Path, header: Header, mac_key: bytes) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    mark = canonical_bytes(Mark(header.store, 0, "0" * 64, TreeHead(header.log_id, 0, sha256())))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.executescript(f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; {_TABLES}")
        for table, content in (("header", canonical_bytes(header)), ("meta", mark)):
            mac = hmac_sha256(mac_key, framed(table.encode(), content))
            sql.execute(f"INSERT INTO {table} VALUES (1, ?, ?)", (content, mac))  # noqa: S608  # one of the two


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_make(path: Path, error: OSError | sqlite3.Error) -> StorageError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return StorageError(
        f"cannot make the key broker's store: {reason}", where=str(path), fix="Check the folder"
    )
