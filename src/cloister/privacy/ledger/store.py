"""The ledger's file: SQLite in WAL mode with synchronous=FULL, so that a commit is on the disk.

    rows(id, body)              the rows, numbered from 1 without a gap
    head(id = 1, envelope)      the signed head over all rows; replaced with each commit
    fingerprints(sha256, content)   the sets that rows name by digest
    state(id = 1, size, hash, body) the state before the newest checkpoint row, and the hash there

`load` makes these checks, in this order:
1. the file is a ledger of this version;
2. the rows are numbered without a gap;
3. the rows after the newest checkpoint, or all of them (`whole`), decode, follow from those before, and make
   the hash that the head names; the checkpoint's state has the digest that its row names;
4. the head is signed by the owner that the rows name;
5. every set of fingerprints that rows name is there with its length and no other (`whole`: with its digest).
An old row that is altered changes no state that a later checkpoint has fixed; step 3 with `whole` finds it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cloister.crypto import sha256
from cloister.errors import CloisterError, IntegrityError, StorageError
from cloister.privacy.ledger.book import Book
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.fingerprints import KEPT_BYTES, FingerprintSet
from cloister.privacy.ledger.head import Head, open_head
from cloister.privacy.ledger.rows import FIRST_HASH, Checkpoint, decode_row, next_hash

__all__ = ["DATABASE", "Loaded", "Store", "encode_state"]

DATABASE: Final = "ledger.db"
_APPLICATION: Final = 0x436C4C67  # "ClLg"
_VERSION: Final = 1
_BUSY_SECONDS: Final = 10.0
_TABLES: Final = """
CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), envelope BLOB NOT NULL);
CREATE TABLE fingerprints (sha256 TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1), size INTEGER NOT NULL, hash BLOB NOT NULL, body BLOB NOT NULL
);
"""


@dataclass(frozen=True)
class Loaded:
    """A ledger that was read and checked.

    Attributes:
        book: its state.
        hash: of its last row.
        envelope: its signed head.
        begin: after how many rows `hashes` begins.
        hashes: the hash after each row that was read.
        checkpoint: after how many rows the newest checkpoint is; 0 for none.
    """

    book: Book
    hash: bytes
    envelope: bytes
    begin: int
    hashes: tuple[bytes, ...]
    checkpoint: int

    def hash_after(self, size: int) -> bytes | None:
        """Return the hash of row `size`; None where it was not read, or there is no such row."""
        return self.hashes[size - self.begin - 1] if self.begin < size <= self.book.size else None


def encode_state(book: Book) -> bytes:
    """Return the state as the one sequence of bytes that a checkpoint's digest is of."""
    return msgspec.json.encode(book, order="deterministic")


class Store:
    """An open ledger file; for one thread at a time. Close it, or use it in a with-statement.

    Args:
        folder: where the file is.
        write: whether to write; otherwise nothing is changed, and another process may be writing.

    Raises:
        LedgerInDoubt: it is not a ledger.
        StorageError: it cannot be opened.
    """

    def __init__(self, folder: Path, *, write: bool) -> None:
        self.path: Final = folder / DATABASE
        mode = "rw" if write else "ro"
        self._inodes = _inodes(self.path)[:1]
        with self._errors():
            self._sql = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=_BUSY_SECONDS,
            )
        try:
            with self._errors():
                self._open(write)
        except BaseException:
            self._sql.close()
            raise

    @staticmethod
    def create(path: Path, body: bytes, envelope: bytes) -> None:
        """Make a ledger file with one row at `path`, where nothing is. Raises StorageError."""
        try:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as sql:
                sql.executescript(
                    f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={_VERSION}; {_TABLES}"
                )
                sql.execute("INSERT INTO rows VALUES (1, ?)", (body,))
                sql.execute("INSERT INTO head VALUES (1, ?)", (envelope,))
        except sqlite3.Error as error:
            raise _refused(path, error) from None

    def close(self) -> None:
        """Close the file; what was committed is there."""
        with contextlib.suppress(sqlite3.Error):
            self._sql.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, *, whole: bool = False) -> Loaded:
        """Read the ledger and check it, as the module says.

        Args:
            whole: whether to check rows before the newest checkpoint too, and the content of fingerprints.

        Raises:
            LedgerInDoubt: it is not what its owner signed.
            StorageError: it cannot be read.
        """
        with self._errors():
            self._sql.execute("BEGIN")
            try:
                return self._load(whole)
            except (TypeError, ValueError, AttributeError):  # a cell has another type than this room writes
                raise _doubt("a row was altered, added or deleted", self.path) from None
            finally:
                self._sql.execute("ROLLBACK")

    def fingerprints(self, digest: str) -> FingerprintSet:
        """Return a stored set. Raises LedgerInDoubt where it is missing or was altered."""
        with self._errors():
            found = self._sql.execute(
                "SELECT content FROM fingerprints WHERE sha256 = ?", (digest,)
            ).fetchone()
        if found is None or sha256(found[0]).hex() != digest:
            raise _doubt("fingerprints of rows were altered or deleted", self.path)
        return FingerprintSet(found[0])

    def begin(self) -> bool:
        """Begin to write; return whether somebody else has written since the last `load`.

        Raises:
            StorageError: somebody else keeps the file locked.
        """
        with self._errors():
            self._sql.execute("BEGIN IMMEDIATE")
            return bool(self._sql.execute("PRAGMA data_version").fetchone()[0] != self._version)

    def rollback(self) -> None:
        """Forget what was written since `begin`."""
        with contextlib.suppress(sqlite3.Error):
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")

    def add(self, first: int, bodies: Sequence[bytes], envelope: bytes) -> None:
        """Write rows, the first with number `first`, and the head over all. Raises StorageError."""
        with self._errors():
            self._sql.executemany("INSERT INTO rows VALUES (?, ?)", enumerate(bodies, first))
            self._sql.execute("INSERT OR REPLACE INTO head VALUES (1, ?)", (envelope,))

    def add_fingerprints(self, digest: str, content: bytes) -> None:
        """Write a set, unless it is there. Raises StorageError."""
        with self._errors():
            self._sql.execute("INSERT OR IGNORE INTO fingerprints VALUES (?, ?)", (digest, content))

    def put_state(self, size: int, at: bytes, body: bytes) -> None:
        """Write the state after `size` rows, whose last has the hash `at`. Raises StorageError."""
        with self._errors():
            self._sql.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?)", (size, at, body))

    def commit(self) -> None:
        """Return when what was written since `begin` is on the disk, in the file that others will open.

        Raises:
            StorageError: it could not be written; whether it was is unknown.
            LedgerInDoubt: the file at the path is another one by now.
        """
        with self._errors():
            self._sql.execute("COMMIT")
        if _inodes(self.path) != self._inodes:
            raise _doubt("its file was replaced while it was open", self.path)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _refused(self.path, error) from None

    def _open(self, write: bool) -> None:
        self._version = -1
        found = [
            self._sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        ]
        if found != [_APPLICATION, _VERSION]:  # 1
            raise _doubt("the file is not a ledger of this version", self.path)
        if not write:
            return
        mode = self._sql.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        self._sql.execute("PRAGMA synchronous=FULL")
        level = self._sql.execute("PRAGMA synchronous").fetchone()[0]
        self._sql.execute("SELECT count(*) FROM head").fetchone()  # now the write-ahead log is there too
        before, self._inodes = self._inodes, _inodes(self.path)
        if before != self._inodes[:1]:
            raise _doubt("its file was replaced while it was opened", self.path)
        if (mode, level) != ("wal", 2):
            raise StorageError(
                "the ledger's file system cannot make commits durable",
                where=str(self.path),
                fix="Keep the home on a local disk",
            )

    def _load(self, whole: bool) -> Loaded:
        count, first, last = self._sql.execute("SELECT count(*), min(id), max(id) FROM rows").fetchone()
        self._version = self._sql.execute("PRAGMA data_version").fetchone()[0]
        if not count or (first, last) != (1, count):  # 2
            raise _doubt("a row is missing", self.path)
        state = self._sql.execute("SELECT size, hash, body FROM state").fetchone()
        book, start, at = Book(), 0, FIRST_HASH
        if state is not None and not whole:
            start, at = state[0], state[1]
            book = self._state(state[2])
            if book.size != start:
                raise _doubt("the state at a checkpoint was altered", self.path)
        hashes = self._fold(book, start, at, sha256(state[2]) if state and not whole else None)
        at = hashes[-1] if hashes else at
        envelope = self._sql.execute("SELECT envelope FROM head").fetchone()
        if envelope is None:
            raise _doubt("its signed head is missing", self.path)
        try:
            head = open_head(envelope[0], [book.owner])  # 4
        except IntegrityError:
            raise _doubt("its head is not signed by its owner", self.path) from None
        if head != Head(book.ledger, book.size, at.hex(), head.counter) or book.size != count:  # 3
            raise _doubt("a row was altered, added or deleted", self.path)
        self._check_sets(book, whole)  # 5
        return Loaded(book, at, envelope[0], start, hashes, state[0] if state else 0)

    def _state(self, body: bytes) -> Book:
        try:
            return msgspec.json.decode(body, type=Book)
        except (msgspec.DecodeError, ValueError, RecursionError, CloisterError):
            raise _doubt("the state at a checkpoint was altered", self.path) from None

    def _fold(self, book: Book, start: int, at: bytes, kept: bytes | None) -> tuple[bytes, ...]:
        """Take all rows after `start` into the book; return their hashes.

        Args:
            book: the state after `start` rows.
            start: 0, or where the newest checkpoint is.
            at: the hash there.
            kept: digest of the state that the next row must be the checkpoint of; None at the beginning.
        """
        hashes: list[bytes] = []
        rows = self._sql.execute("SELECT body FROM rows WHERE id > ? ORDER BY id", (start,))
        for number, (body,) in enumerate(rows, start + 1):
            row = decode_row(number, body)
            first = start > 0 and number == start + 1
            if isinstance(row, Checkpoint):
                digest = kept if first and kept else sha256(encode_state(book))
                if digest.hex() != row.state:
                    raise _doubt("the state at a checkpoint was altered", self.path)
            elif first:
                raise _doubt("the state at a checkpoint was altered", self.path)
            book.replay(row)
            at = next_hash(at, body)
            hashes.append(at)
        return tuple(hashes)

    def _check_sets(self, book: Book, whole: bool) -> None:
        named = {each.sha256: each.count * KEPT_BYTES for each in book.sets}
        found = dict(self._sql.execute("SELECT sha256, length(content) FROM fingerprints"))
        if named != found:
            raise _doubt("fingerprints of rows were altered or deleted", self.path)
        for digest in named if whole else ():
            self.fingerprints(digest)


def _doubt(reason: str, path: Path) -> LedgerInDoubt:
    return LedgerInDoubt(
        f"the ledger is not what its owner signed: {reason}",
        where=str(path),
        fix="Nothing is spent from it; bring back its newest copy",
    )


def _refused(path: Path, error: sqlite3.Error) -> StorageError | LedgerInDoubt:
    """Return the error that one of SQLite means: the disk's or a lock's, or a file that is no database."""
    name: Any = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if name.startswith(
        ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY")
    ) or (name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_NOMEM"))):
        return StorageError(
            f"the ledger cannot be read or written ({name})",
            where=str(path),
            fix="Check free space and permissions, and that no other program keeps it open",
        )
    return _doubt(f"it is damaged ({name})", path)


def _inodes(path: Path) -> tuple[tuple[int, int], ...]:
    """Return which files are at the path of a database and of its write-ahead log."""
    found = []
    for name in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(OSError):
            status = name.stat()
            found.append((status.st_dev, status.st_ino))
    return tuple(found)
