"""The ledger of one folder, as the one process that writes it has it: its book, its file, its anchors.

`Engine.open` makes these checks, in this order; the caller holds the folder's lock:
1. there is a ledger, or nothing that speaks of one (else it was deleted, and is not begun anew);
2. the file is what its owner signed (`Store.load`);
3. its owner is this identity, or one that declared this identity its successor;
4. it contains the head beside its folder, and the head at the recorded anchor, which must be there; its head
   says what its counter says, if it has one (`counting`);
5. a new owner is recorded.

`handle` takes all requests that wait, in this order: decide each against the book and make its rows; write
the rows, the state where a checkpoint is due, and one signed head; commit, which returns when they are on
the disk; see that the file is still the one at its path; write the head to the anchor; increment the counter.
Only then anybody gets an answer. Where a step fails nobody of the group gets any but the error, and the
engine is of no more use: the next one reads the state from the disk, and what was written counts, answered or
not.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import Identity, PublicIdentity, follows, sha256
from cloister.errors import CloisterError, StorageError
from cloister.files import write_atomic
from cloister.privacy.ledger.anchors import head_beside, heads_of
from cloister.privacy.ledger.counting import Counters, Counting
from cloister.privacy.ledger.decide import change, tell
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.fingerprints import FingerprintSet
from cloister.privacy.ledger.head import Head, HeadFile, open_head, sign_head
from cloister.privacy.ledger.rows import (
    FIRST_HASH,
    AnchorAt,
    Checkpoint,
    Genesis,
    Owner,
    Row,
    encode_row,
    new_id,
    next_hash,
    now,
)
from cloister.privacy.ledger.store import DATABASE, Loaded, Store, encode_state
from cloister.privacy.ledger.wire import Change, Done, Query, Reply, Request, encode, refused

__all__ = ["CHECKPOINT_ROWS", "Engine", "check_owner"]

CHECKPOINT_ROWS: Final = 65_536


class Engine:
    """Decides requests and makes them durable; for one thread. Made by `open`."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        store: Store,
        loaded: Loaded,
        counters: Counters | None = None,
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._store = store
        self._anchor: HeadFile | None = None
        self._counting = Counting(counters, open_head(loaded.envelope, [loaded.book.owner]), folder)
        self._sets: dict[str, FingerprintSet] = {}
        self._checkpoint = loaded.checkpoint
        self.book = loaded.book
        self.hash = loaded.hash
        self.envelope = loaded.envelope
        self.unsaved = False

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        *,
        successions: Sequence[bytes] = (),
        counters: Counters | None = None,
    ) -> Engine:
        """Open the ledger in `folder`, or begin one.

        Args:
            folder: exists; its lock is held.
            identity: the owner.
            successions: how the identity followed earlier ones.
            counters: where its counter is.

        Raises:
            LedgerInDoubt: one of the checks fails.
            StorageError: the file system refused.
        """
        if not (folder / DATABASE).exists():  # 1
            _begin(folder, identity)
        store = Store(folder, write=True)
        try:
            loaded = store.load()  # 2
            check_owner(loaded.book.owner, identity.public, successions, folder)  # 3
            heads_of(folder, loaded.book).check(loaded, store)  # 4
            engine = cls(folder, identity, store, loaded, counters)
            engine._settle(successions)  # 5
        except BaseException:
            store.close()
            raise
        return engine

    @property
    def head(self) -> Head:
        """What the ledger contains, on the disk."""
        return open_head(self.envelope, self.book.owners)

    def handle(self, requests: Sequence[Request]) -> list[Reply]:
        """Carry out requests as one group; return their replies in order.

        Raises:
            CloisterError: the group could not be made durable, or the ledger is in doubt.
        """
        if self._store.begin():
            self._store.rollback()
            raise LedgerInDoubt(
                "somebody else has written to the ledger while it was open",
                where=str(self._folder),
                fix="End that program; the ledger is checked whole when it is opened again",
            )
        try:
            rows: list[Row] = []
            # What only asks is answered last, from what is then on the disk.
            replies = {
                at: self._change(each, rows) for at, each in enumerate(requests) if isinstance(each, Change)
            }
            if rows:
                self._write(rows)
        finally:
            self._store.rollback()
        replies |= {at: self._tell(each) for at, each in enumerate(requests) if isinstance(each, Query)}
        return [replies[at] for at in range(len(requests))]

    def save_head(self) -> None:
        """Write the head to the file beside the folder. Raises StorageError."""
        beside = head_beside(self._folder)
        if beside.exists():
            beside.write(self.envelope)
        else:
            beside.begin(self.envelope)
        self.unsaved = False

    def close(self) -> None:
        """Write the head where it is not yet written, and close the file."""
        try:
            if self.unsaved:
                with contextlib.suppress(StorageError):  # the one that is there is older, which is no harm
                    self.save_head()
        finally:
            self._store.close()

    def overlapping(self, content: FingerprintSet) -> set[str]:
        """Return the populations in which rows of a set were recorded."""
        found: set[str] = set()
        for each in self.book.sets:
            if found.issuperset(each.populations):
                continue
            if each.sha256 not in self._sets:
                self._sets[each.sha256] = self._store.fingerprints(each.sha256)
            if self._sets[each.sha256].shares_a_row_with(content):
                found.update(each.populations)
        return found

    def keep(self, content: FingerprintSet) -> None:
        """Write a set of fingerprints beside the rows."""
        digest = content.digest()
        self._store.add_fingerprints(digest, content.content)
        self._sets[digest] = content

    def _change(self, request: Change, rows: list[Row]) -> Reply:
        known = self.book.answers.get(request.id)
        if known is not None:  # asked again, because no reply came
            return _done(known[1])
        try:
            made, answer = change(self, request)
        except LedgerInDoubt:
            raise
        except CloisterError as error:
            return refused(error)
        rows += made
        return refused(answer) if isinstance(answer, CloisterError) else _done(answer)

    def _tell(self, query: Query) -> Reply:
        try:
            return _done(tell(self, query))
        except CloisterError as error:
            return refused(error)

    def _write(self, rows: list[Row]) -> None:
        first = self.book.size - len(rows) + 1
        bodies = [encode_row(row) for row in rows]
        at = _hash_after(self.hash, bodies)
        if self.book.size - self._checkpoint >= CHECKPOINT_ROWS:
            self._checkpoint, state = self.book.size, encode_state(self.book)
            self._store.put_state(self.book.size, at, state)
            mark = Checkpoint(id=new_id(), at=now(), state=sha256(state).hex())
            self.book.apply(mark)
            bodies.append(encode_row(mark))
            at = next_hash(at, bodies[-1])
        count = self._counting.next()
        envelope = sign_head(Head(self.book.ledger, self.book.size, at.hex(), count), self._identity)
        self._store.add(first, bodies, envelope)
        self._store.commit()
        self.hash, self.envelope, self.unsaved = at, envelope, True
        if any(isinstance(row, AnchorAt) for row in rows):
            self._anchor = self._anchor_file()
        if self._anchor is not None:
            self._anchor.write(envelope)
        self._counting.counted(count)

    def _anchor_file(self) -> HeadFile | None:
        return None if self.book.anchor is None else HeadFile(Path(self.book.anchor), durable=True)

    def _settle(self, successions: Sequence[bytes]) -> None:
        """Bring the anchor up to date, and record an owner with new keys."""
        self._anchor = self._anchor_file()
        if self._anchor is not None:
            self._anchor.begin(self.envelope)
        adopts = self._counting.begins
        if self.book.owner.fingerprint != self._identity.fingerprint:
            row = Owner(id=new_id(), at=now(), owner=self._identity.public, successions=tuple(successions))
            self.book.apply(row)
            self._commit([row])
        if self._counting.begins:
            self._commit([])
        if adopts:
            self._commit([])  # the first head that says more than 0
        self.save_head()

    def _commit(self, rows: list[Row]) -> None:
        self._store.begin()
        try:
            self._write(rows)
        finally:
            self._store.rollback()


def check_owner(
    owner: PublicIdentity, identity: PublicIdentity, successions: Sequence[bytes], folder: Path
) -> None:
    """Raise LedgerInDoubt unless `identity` is the owner of a ledger, or follows it."""
    if owner.fingerprint != identity.fingerprint and not follows(owner, identity, successions):
        raise LedgerInDoubt(
            "the ledger belongs to another identity",
            where=str(folder),
            fix="Open it with the identity that began it, or one that it declared its successor",
        )


def _begin(folder: Path, identity: Identity) -> None:
    """Make a ledger whose only row says whose it is; it appears whole, or not at all."""
    if head_beside(folder).exists():
        raise LedgerInDoubt(
            "the ledger is gone, and the head beside it says that there was one",
            where=str(folder),
            fix="Bring back its newest copy",
        )
    row = Genesis(
        id=new_id(),
        at=now(),
        version=1,
        ledger=secrets.token_hex(16),
        owner=identity.public,
        tag_key=secrets.token_hex(32),
    )
    body = encode_row(row)
    head = Head(row.ledger, 1, next_hash(FIRST_HASH, body).hex())
    part = folder / f".{DATABASE}.part"
    part.unlink(missing_ok=True)
    Store.create(part, body, sign_head(head, identity))
    write_atomic(folder / DATABASE, part.read_bytes(), mode=0o600)
    part.unlink()


def _hash_after(at: bytes, bodies: Iterable[bytes]) -> bytes:
    for body in bodies:
        at = next_hash(at, body)
    return at


def _done(value: object) -> Done:
    return Done(msgspec.Raw(encode(value)))
