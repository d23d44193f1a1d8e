"""What a key broker holds, in SQLite: KEKs, permissions and how often each was used.

    header(one, content, mac)   format, id, log, scrypt's cost and salt
    meta(one, content, mac)     how many changes there were, a sum over all rows, where the log was
    rows(kind, id, content)     a KEK under AES-256-GCM, or a permission with its use count

Everything is read into memory when the store opens, and memory is what is asked; the file is where a change
is made durable before anything rests on it: WAL with synchronous = FULL, one commit a change.

Opening, in this order:
1. nobody else has the store open;
2. the file is a store of this version, and its header is the one the passphrase made;
3. the sum over all rows is the one in `meta`, whose MAC is right: no row was altered, added, taken away or
   put back from an older copy;
4. log and store agree: `book.Book` sees to that, and holds an older copy of the whole file against the log,
   and against a hardware counter where there is one.

The sum is that of HMACs of all rows, modulo 2**256, under a secret key (a multiset hash: Clarke et al.,
2003), so that a change costs the same however many rows there are.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import (
    HoldsSecret,
    ScryptCost,
    canonical_bytes,
    constant_time_equal,
    decrypt,
    encrypt,
    framed,
    hmac_sha256,
)
from cloister.enclave.broker.rows import Held, Kek
from cloister.enclave.broker.storefile import (
    APPLICATION,
    DATABASE,
    VERSION,
    Header,
    Mark,
    inode,
    make,
    store_keys,
    take_lock,
)
from cloister.errors import InputError, IntegrityError, PassphraseError, StorageError
from cloister.log import TreeHead

__all__ = ["Store"]


class Store(HoldsSecret):
    """An open store. Use `create` once, then `open`; close it, or use it in a with-statement.

    Attributes:
        keks: by id.
        permissions: by id.
        mark: where it stands.
        log_id: of the log that belongs to it.
    """

    def __init__(self, folder: Path, passphrase: str, lock: int) -> None:
        self.path: Final = folder / DATABASE
        self.keks: dict[str, Kek] = {}
        self.permissions: dict[str, Held] = {}
        self._lock = lock
        with self._errors():
            self._sql = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._errors():
                self._prepare()
                header = self._header(passphrase)
                self.log_id: Final = header.log_id
                self.mark = self._load(header)
        except BaseException:
            self._sql.close()
            raise

    @classmethod
    def create(cls, folder: Path, passphrase: str, log_id: str, *, cost: ScryptCost | None = None) -> Store:
        """Make a new store in `folder` and open it.

        Args:
            folder: made where missing, for its owner alone.
            passphrase: what its keys lie under.
            log_id: of the log beside it.
            cost: of a guess at the passphrase; None for the default.

        Raises:
            InputError: there is one.
            PassphraseError: an empty or overlong passphrase.
            StorageError: the file system refused, or another process is making one.
        """
        return cls._opened(folder, passphrase, make(folder, passphrase, log_id, cost))

    @classmethod
    def open(cls, folder: Path, passphrase: str) -> Store:
        """Open the store in `folder`, in the order the module says.

        Raises:
            InputError: there is none.
            StorageError: another process has it open, or the file system refused.
            PassphraseError: the passphrase is wrong, or the header was altered.
            IntegrityError: it is not as it was left.
        """
        if not (folder / DATABASE).exists():
            fix = "Make one with `cloister enclave broker serve`"
            raise InputError("there is no key broker here", where=str(folder), fix=fix)
        return cls._opened(folder, passphrase, take_lock(folder))  # 1

    @classmethod
    def _opened(cls, folder: Path, passphrase: str, lock: int) -> Store:
        try:
            return cls(folder, passphrase, lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Close the file and let others open it."""
        with contextlib.suppress(sqlite3.Error):
            self._sql.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fresh_kek(self, kek_id: str, owner: str, created: str) -> Kek:
        """Return a new KEK, sealed and not yet stored."""
        blank = Kek(kek_id, owner, created, b"")
        return msgspec.structs.replace(blank, sealed=encrypt(self._kek_key, os.urandom(32), blank.binding))

    def open_kek(self, kek: Kek) -> bytes:
        """Return the 32 secret bytes of a KEK. Raises IntegrityError where it was altered."""
        return decrypt(self._kek_key, kek.sealed, kek.binding)

    def put_kek(self, kek: Kek, log: TreeHead, counter: int | None) -> None:
        """Store a KEK; return when it is on the disk. Raises StorageError, IntegrityError."""
        self._change("kek", kek.kek_id, self.keks.get(kek.kek_id), kek, log, counter)
        self.keks[kek.kek_id] = kek

    def remove_kek(self, kek_id: str, log: TreeHead, counter: int | None) -> None:
        """Overwrite and delete a KEK; return when that is on the disk.

        Raises StorageError, IntegrityError.
        """
        self._change("kek", kek_id, self.keks[kek_id], None, log, counter)
        del self.keks[kek_id]
        with self._errors():
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def put_permission(self, held: Held, log: TreeHead, counter: int | None) -> None:
        """Store a permission; return when it is on the disk. Raises StorageError, IntegrityError."""
        name = held.permission.id
        self._change("permission", name, self.permissions.get(name), held, log, counter)
        self.permissions[name] = held

    def anchor(self, log: TreeHead, counter: int | None) -> None:
        """Store nothing but the counter's value; return when it is on the disk."""
        self._change("", "", None, None, log, counter)

    def _change(
        self,
        kind: str,
        name: str,
        old: Kek | Held | None,
        new: Kek | Held | None,
        log: TreeHead,
        counter: int | None,
    ) -> None:
        """Replace a row (None: none) and the mark in one commit."""
        total = int(self.mark.total, 16)
        if old is not None:
            total -= self._term(kind, name, msgspec.json.encode(old))
        content = None if new is None else msgspec.json.encode(new)
        if content is not None:
            total += self._term(kind, name, content)
        mark = Mark(self.mark.store, self.mark.sequence + 1, f"{total % 2**256:064x}", log, counter)
        with self._errors(), self._transaction():
            if content is None:
                self._sql.execute("DELETE FROM rows WHERE kind = ? AND id = ?", (kind, name))
            else:
                self._sql.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (kind, name, content))
            self._put_mark(mark)
        if inode(self.path) != self._inode:
            raise self._altered("its file was replaced while it was open")
        self.mark = mark

    def _put_mark(self, mark: Mark) -> None:
        body, before = canonical_bytes(mark), canonical_bytes(self.mark)
        done = self._sql.execute(
            "UPDATE meta SET content = ?, mac = ? WHERE content = ?", (body, self._mac(b"meta", body), before)
        )
        if done.rowcount != 1:
            raise self._altered("somebody else has written to it")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise

    def _prepare(self) -> None:
        ask = self._sql.execute
        found = [ask(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if found != [APPLICATION, VERSION]:  # 2
            raise self._altered("it is no store of this version")
        ask("PRAGMA secure_delete = ON").fetchall()
        mode = ask("PRAGMA journal_mode = WAL").fetchone()[0]
        ask("PRAGMA synchronous = FULL")
        if mode != "wal":
            raise StorageError(
                "the file system cannot make a broker's counts durable",
                where=str(self.path),
                fix="Keep the home on a local disk",
            )
        self._inode = inode(self.path)

    def _header(self, passphrase: str) -> Header:
        content, mac = self._sql.execute("SELECT content, mac FROM header").fetchone() or (b"", b"")
        try:
            header = msgspec.json.decode(content, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError, InputError, TypeError):
            raise self._altered("its header cannot be read") from None
        self._kek_key, self._mac_key = store_keys(passphrase, header)
        if not self._genuine(b"header", content, mac):
            fix = "Check the passphrase"
            raise PassphraseError("the key broker does not open", where=str(self.path), fix=fix)
        return header

    def _load(self, header: Header) -> Mark:
        content, mac = self._sql.execute("SELECT content, mac FROM meta").fetchone() or (b"", b"")  # 3
        if not self._genuine(b"meta", content, mac):
            raise self._altered("its state was altered")
        mark = msgspec.json.decode(content, type=Mark)
        rows = self._sql.execute("SELECT kind, id, content FROM rows").fetchall()
        try:
            total = sum(self._term(*row) for row in rows) % 2**256
        except (TypeError, AttributeError, ValueError):  # a cell of another type than is written here
            total = -1
        if total != int(mark.total, 16) or mark.store != header.store:
            raise self._altered("a key, a permission or a use count was altered, added or taken away")
        for kind, name, body in rows:
            if kind == "kek":
                self.keks[name] = msgspec.json.decode(body, type=Kek)
            else:
                self.permissions[name] = msgspec.json.decode(body, type=Held)
        return mark

    def _term(self, kind: str, name: str, content: bytes) -> int:
        return int.from_bytes(self._mac(b"row", framed(kind.encode(), name.encode(), content)), "big")

    def _mac(self, what: bytes, content: bytes) -> bytes:
        return hmac_sha256(self._mac_key, framed(what, content))

    def _genuine(self, what: bytes, content: object, mac: object) -> bool:
        blobs = isinstance(content, bytes) and isinstance(mac, bytes)
        return blobs and constant_time_equal(mac, self._mac(what, content))  # type: ignore[arg-type]

    def _altered(self, why: str) -> IntegrityError:
        return IntegrityError(
            f"the key broker's store is not as it was left: {why}",
            where=str(self.path),
            fix="Nothing is released from it; bring back its newest copy",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        problem = ""
        try:
            yield
        except sqlite3.OperationalError as error:
            problem = getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR"
        except sqlite3.DatabaseError:
            raise self._altered("it is damaged") from None
        if problem == "SQLITE_ERROR":
            raise self._altered("a table is missing")
        if problem:
            raise StorageError(
                f"the key broker's store cannot be read or written ({problem})",
                where=str(self.path),
                fix="Check free space and permissions; nothing was released",
            )
