"""What owners order, and what permissions say, over a broker's book.

A KEK obeys the owner that made it, and nobody else may allow or revoke anything about it. Destroying a KEK
first revokes every permission for it: a KEK made again under the same id is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from cloister.crypto import HoldsSecret, Identity, decrypt, encrypt, hpke_open
from cloister.enclave.broker.book import Book
from cloister.enclave.broker.entries import Allowed, Entry, KekGone, KekMade, Revoked
from cloister.enclave.broker.grant import Wanted
from cloister.enclave.broker.ordermessages import (
    WRAP_INFO,
    Allow,
    Create,
    Destroy,
    Inventory,
    KekFacts,
    ListKeys,
    Order,
    PermissionFacts,
    Revoke,
    Wrap,
)
from cloister.enclave.broker.rows import Held, Kek
from cloister.errors import InputError, PolicyRefused
from cloister.log import TreeHead

__all__ = ["Orders", "unknown_kek", "unwrap"]

_DATA_KEY: Final = b"cloister data key v1\x00"
_SURVIVORS: Final = (
    "The broker's copy of the key was destroyed, so that no worker is given what it wrapped; copies of the "
    "broker's folder that may survive, in backups or snapshots, still hold it under the broker's passphrase."
)


class Orders(HoldsSecret):
    """Carries out orders.

    Args:
        book: store and log.
        identity: the broker's; data keys to wrap come sealed to it.
        former: fingerprints of owners' earlier identities, each with the present one's.
    """

    __slots__ = ("_book", "_former", "_identity")

    def __init__(self, book: Book, identity: Identity, former: Mapping[str, str]) -> None:
        self._book = book
        self._identity = identity
        self._former = dict(former)

    def carry_out(self, order: Order, owner: str, at: datetime) -> object:
        """Return the answer to an owner's order, once what it changed is on the disk and in the log.

        Args:
            order: what is ordered.
            owner: fingerprint of the identity whose signature was checked.
            at: now.

        Raises:
            InputError: an id is unknown or taken, or something else in it does not fit.
            PolicyRefused: the KEK is another owner's.
            IntegrityError: the store is not what it was, or a sealed data key does not open.
            StorageError: it could not be written.
        """
        match order:
            case Wrap():
                return self._wrap(order, owner)
            case Destroy():
                return self._destroy(order.kek_id, owner, at)
            case ListKeys():
                return self._inventory(owner)
            case Create():
                self._create(order.kek_id, owner, at)
            case Allow():
                self._allow(order, owner, at)
            case Revoke():
                held = self._book.store.permissions.get(order.id)
                if held is None or not self._is(owner, held.owner):
                    fix = "See `cloister enclave broker ls`"
                    raise InputError("there is no such grant", where=order.id, fix=fix)
                self._revoke(held, owner, at)
        return None

    def permitted(self, wanted: Wanted, at: datetime) -> Held:
        """Return the permission under which `wanted` may be released now, the first to expire.

        Raises:
            InputError: the KEK is unknown.
            PolicyRefused: there is none, or it has expired, was revoked or is used up; it says which.
        """
        store = self._book.store
        if wanted.kek_id not in store.keks:
            raise unknown_kek(wanted.kek_id)
        held = [each for each in store.permissions.values() if each.permission.wanted.kek_id == wanted.kek_id]
        if not held:
            raise _not_permitted("its owner has granted nothing about this key")
        same = [each for each in held if each.permission.wanted == wanted]
        if not same:
            raise _not_permitted(_difference(wanted, [each.permission.wanted for each in held]))
        current = [each for each in same if at < each.permission.expires]
        if not current:
            raise _not_permitted("the grant has expired")
        open_ = [each for each in current if not each.revoked]
        if not open_:
            raise _not_permitted("its owner has revoked the grant")
        usable = [each for each in open_ if each.used < each.permission.uses]
        if not usable:
            raise _not_permitted("every use of the grant is spent")
        return min(usable, key=lambda each: (each.permission.expires, each.permission.id))

    def use(self, held: Held, entry: Callable[[int], Entry]) -> tuple[int, TreeHead]:
        """Count one use, durably, and enter it; return the entry's index and the head over it."""
        spent = msgspec.structs.replace(held, used=held.used + 1)
        return self._put(spent, entry)

    def _create(self, kek_id: str, owner: str, at: datetime) -> None:
        store = self._book.store
        if kek_id in store.keks:
            raise InputError("a KEK of this id exists", where=kek_id, fix="Choose another id")
        kek = store.fresh_kek(kek_id, owner, at.astimezone(UTC).isoformat(timespec="seconds"))
        self._book.change(
            lambda log, counter: store.put_kek(kek, log, counter),
            lambda number: KekMade(at, number, kek_id, owner),
        )

    def _wrap(self, order: Wrap, owner: str) -> bytes:
        kek = self._own(order.kek_id, owner)
        key = hpke_open(
            self._identity.sealing, order.sealed, info=WRAP_INFO, associated_data=order.kek_id.encode()
        )
        if not 16 <= len(key) <= 64:
            raise InputError("a data key must have 16 to 64 bytes", fix="Wrap keys only")
        return encrypt(self._book.store.open_kek(kek), key, _DATA_KEY + order.kek_id.encode())

    def _destroy(self, kek_id: str, owner: str, at: datetime) -> str:
        store = self._book.store
        self._own(kek_id, owner)
        for held in list(store.permissions.values()):
            if held.permission.wanted.kek_id == kek_id and not held.revoked:
                self._revoke(held, owner, at)
        self._book.change(
            lambda log, counter: store.remove_kek(kek_id, log, counter),
            lambda number: KekGone(at, number, kek_id, owner),
        )
        return _SURVIVORS

    def _allow(self, order: Allow, owner: str, at: datetime) -> None:
        permission = order.permission
        self._own(permission.wanted.kek_id, owner)
        if permission.id in self._book.store.permissions:
            raise InputError("a grant of this id exists", where=permission.id, fix="Make a new one")
        if permission.expires <= at:
            raise InputError("the grant would have expired already", fix="Give a later time")
        self._put(Held(permission, owner), lambda number: Allowed(at, number, permission, owner))

    def _revoke(self, held: Held, owner: str, at: datetime) -> None:
        if not held.revoked:
            ended = msgspec.structs.replace(held, revoked=True)
            self._put(ended, lambda number: Revoked(at, number, held.permission.id, owner))

    def _put(self, held: Held, entry: Callable[[int], Entry]) -> tuple[int, TreeHead]:
        store = self._book.store
        return self._book.change(lambda log, counter: store.put_permission(held, log, counter), entry)

    def _inventory(self, owner: str) -> Inventory:
        store = self._book.store
        return Inventory(
            tuple(
                KekFacts(kek.kek_id, kek.created) for kek in store.keks.values() if self._is(owner, kek.owner)
            ),
            tuple(
                PermissionFacts(held.permission, held.used, held.revoked)
                for held in store.permissions.values()
                if self._is(owner, held.owner)
            ),
        )

    def _own(self, kek_id: str, owner: str) -> Kek:
        kek = self._book.store.keks.get(kek_id)
        if kek is None:
            raise unknown_kek(kek_id)
        if not self._is(owner, kek.owner):
            raise PolicyRefused("the KEK is another owner's", where=kek_id, fix="Ask its owner")
        return kek

    def _is(self, owner: str, stored: str) -> bool:
        return self._former.get(stored, stored) == owner


def unwrap(store_key: bytes, kek_id: str, wrapped: tuple[bytes, ...]) -> list[bytes]:
    """Return the data keys under a KEK. Raises IntegrityError where one was not made under it and its id."""
    return [decrypt(store_key, each, _DATA_KEY + kek_id.encode()) for each in wrapped]


def unknown_kek(kek_id: str) -> InputError:
    """Return the error for an id that the broker does not know."""
    return InputError("the key broker has no KEK of this id", where=kek_id, fix="Check which broker it is")


def _not_permitted(why: str) -> PolicyRefused:
    return PolicyRefused(
        f"the key broker releases nothing: {why}", fix="Ask its owner for `cloister enclave broker grant`"
    )


def _difference(wanted: Wanted, granted: list[Wanted]) -> str:
    """Say in which field a request differs from every grant for its key."""
    fields = ("manifest", "plan", "purpose")
    differ = [
        name for name in fields if all(getattr(each, name) != getattr(wanted, name) for each in granted)
    ]
    return f"it is granted for another {' and '.join(differ) or 'combination of manifest, plan and purpose'}"
