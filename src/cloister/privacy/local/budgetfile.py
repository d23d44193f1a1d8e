"""The file of personal budgets: what was committed survives a power cut, and nothing is edited unseen.

SQLite:

    people   tag (HMAC of the person's id) | epsilon, delta, metre spent, as whole numbers of units | mac
    totals   caps | how many people | sums of the three columns | mac

Journal WAL with synchronous = FULL: a commit returns after its fsync. Every row has an HMAC under the
owner's key; the row of totals too, so that a row that was changed, removed, added, or put back in an older
state does not add up.

Not detected: somebody who puts back an older copy of the whole file. Keep the home's backups apart from its
use.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import constant_time_equal, framed, hmac_sha256
from cloister.errors import InputError, IntegrityError, StorageError

__all__ = ["UNITS", "Amounts", "BudgetFile", "Totals"]

Amounts = tuple[int, int, int]
"""Epsilon, delta, epsilon for each metre, in units."""

UNITS: Final[Amounts] = (10**12, 10**18, 10**15)
"""How many units of each make 1."""

_VERSION: Final = 1
_TABLES: Final = (
    "CREATE TABLE people (tag BLOB PRIMARY KEY, epsilon INTEGER NOT NULL, delta INTEGER NOT NULL, "
    "metre INTEGER NOT NULL, mac BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE totals (one INTEGER PRIMARY KEY CHECK (one = 1), content BLOB NOT NULL, mac BLOB NOT NULL)",
)
_CHUNK: Final = 500
_WAIT: Final = 60.0  # seconds for another writer


class Totals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the whole file must add up to.

    Attributes:
        caps: what each person may spend at most, in units; None where it was never declared.
        people: how many have spent something.
        spent: by all of them together, in units, as decimal texts (they may exceed 64 bits).
    """

    caps: tuple[int | None, int | None, int | None] = (None, None, None)
    people: int = 0
    spent: tuple[str, str, str] = ("0", "0", "0")


class BudgetFile:
    """One open file, for one thread.

    Args:
        path: of the file.
        key: 32 secret bytes of the owner.
        create: whether to make it; it must then not exist.

    Raises:
        InputError: it is missing (or there, with `create`).
        IntegrityError: it was altered, or the key is another one.
        StorageError: the file system refused.
    """

    def __init__(self, path: Path, key: bytes, *, create: bool = False) -> None:
        self._path = path
        self._key = key
        if create:
            _make(path)
        elif not path.is_file() or not path.stat().st_size:
            raise InputError(
                "there is no store of personal budgets", where=str(path), fix="Restore it, or make one"
            )
        with self._errors():
            self._db = sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
            try:
                self._prepare(create)
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the file alone while the block runs; what it did is on the disk when it ends, or undone."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def totals(self) -> Totals:
        """Return the totals. Raises IntegrityError where they were altered or do not count."""
        with self._errors():
            row = self._db.execute("SELECT content, mac FROM totals").fetchone()
            count = self._db.execute("SELECT count(*) FROM people").fetchone()[0]
        if row is None:
            raise self._altered()
        self._check(row[1], b"totals", row[0])
        found = msgspec.json.decode(row[0], type=Totals)
        if found.people != count:
            raise self._altered()
        return found

    def put_totals(self, totals: Totals) -> None:
        """Replace the totals; within `writing`."""
        content = msgspec.json.encode(totals)
        self._db.execute(
            "INSERT INTO totals VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE SET content = excluded.content, "
            "mac = excluded.mac",
            (content, self._mac(b"totals", content)),
        )

    def spent(self, tags: Sequence[bytes]) -> dict[bytes, Amounts]:
        """Return what people have spent; who has spent nothing is left out.

        Raises IntegrityError where a row was altered.
        """
        found: dict[bytes, Amounts] = {}
        with self._errors():
            for start in range(0, len(tags), _CHUNK):
                some = tags[start : start + _CHUNK]
                marks = ",".join("?" * len(some))
                query = f"SELECT tag, epsilon, delta, metre, mac FROM people WHERE tag IN ({marks})"  # noqa: S608
                for tag, epsilon, delta, metre, mac in self._db.execute(query, some):
                    amounts = (epsilon, delta, metre)
                    self._check(mac, b"person", tag, _text(amounts))
                    found[tag] = amounts
        return found

    def put(self, rows: Iterable[tuple[bytes, Amounts]]) -> None:
        """Replace what people have spent; within `writing`."""
        self._db.executemany(
            "INSERT INTO people VALUES (?, ?, ?, ?, ?) ON CONFLICT (tag) DO UPDATE SET "
            "epsilon = excluded.epsilon, delta = excluded.delta, metre = excluded.metre, mac = excluded.mac",
            ((tag, *amounts, self._mac(b"person", tag, _text(amounts))) for tag, amounts in rows),
        )

    def most(self) -> Amounts:
        """Return the most that anybody has spent, of each kind."""
        with self._errors():
            row = self._db.execute("SELECT max(epsilon), max(delta), max(metre) FROM people").fetchone()
        return (row[0] or 0, row[1] or 0, row[2] or 0)

    def _prepare(self, create: bool) -> None:
        journal = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        # without WAL (on some network file systems) a commit is durable once the journal's removal is
        self._db.execute(f"PRAGMA synchronous = {'FULL' if journal == 'wal' else 'EXTRA'}")
        if create:
            with self.writing():
                for statement in _TABLES:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
                self.put_totals(Totals())
            return
        if self._db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            raise InputError(
                "the store of personal budgets is of another version",
                where=str(self._path),
                fix="Use the Cloister that wrote it",
            )
        self._db.execute("BEGIN")  # totals and rows of one moment
        sums = [0, 0, 0]
        for tag, epsilon, delta, metre, mac in self._db.execute("SELECT * FROM people"):
            self._check(mac, b"person", tag, _text((epsilon, delta, metre)))
            sums = [sums[0] + epsilon, sums[1] + delta, sums[2] + metre]
        expected = self.totals().spent
        self._db.execute("COMMIT")
        if tuple(map(str, sums)) != expected:
            raise self._altered()

    def _mac(self, *parts: bytes) -> bytes:
        return hmac_sha256(self._key, framed(*parts))

    def _check(self, mac: object, *parts: object) -> None:
        """Raise IntegrityError unless these are the parts that the key's owner wrote."""
        blobs = [part for part in parts if isinstance(part, bytes)]
        genuine = isinstance(mac, bytes) and len(blobs) == len(parts)
        if not (genuine and constant_time_equal(mac, self._mac(*blobs))):  # type: ignore[arg-type]  # bytes, if genuine
            raise self._altered()

    def _altered(self) -> IntegrityError:
        return IntegrityError(
            "the store of personal budgets was altered, or belongs to another owner",
            where=str(self._path),
            fix="Restore it from a backup; release nothing until then",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"the store of personal budgets cannot be used: {error}",
                where=str(self._path),
                fix="Check space and permissions, and try again; nothing was released",
            ) from None
        except sqlite3.DatabaseError:
            raise self._altered() from None


def _text(amounts: Sequence[object]) -> bytes:
    return "|".join(map(str, amounts)).encode()


def _make(path: Path) -> None:
    """Make an empty file, mode 0600, that is there after a power cut."""
    if path.exists() and path.stat().st_size:  # an empty one is of somebody who was interrupted here
        raise InputError("a store of personal budgets exists", where=str(path), fix="Open it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(
            f"cannot make the store of personal budgets: {error.strerror}",
            where=str(path),
            fix="Check the folder",
        ) from None
