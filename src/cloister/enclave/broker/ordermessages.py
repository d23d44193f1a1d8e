"""What owners order of a key broker; each order travels inside an `Act`, signed."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cloister.enclave.broker.grant import KekId, Permission, PermissionId
from cloister.enclave.broker.messages import Message, decode

__all__ = [
    "WRAP_INFO",
    "Allow",
    "Create",
    "Destroy",
    "Inventory",
    "KekFacts",
    "ListKeys",
    "Order",
    "PermissionFacts",
    "Revoke",
    "Wrap",
    "decode_order",
]

WRAP_INFO: Final = b"cloister broker wrap v1"
"""HPKE's info of data keys on their way to the broker."""


class Create(Message, frozen=True, tag="create"):
    """Make a fresh KEK."""

    kek_id: KekId


class Wrap(Message, frozen=True, tag="wrap"):
    """Wrap a data key, which is sealed to the broker."""

    kek_id: KekId
    sealed: Annotated[bytes, msgspec.Meta(max_length=4096)]


class Destroy(Message, frozen=True, tag="destroy"):
    """Destroy a KEK, and with it every permission for it."""

    kek_id: KekId


class Allow(Message, frozen=True, tag="allow"):
    """Enter a permission."""

    permission: Permission


class Revoke(Message, frozen=True, tag="revoke"):
    """End a permission; grants under it end too."""

    id: PermissionId


class ListKeys(Message, frozen=True, tag="list"):
    """What the broker holds of this owner."""


Order = Create | Wrap | Destroy | Allow | Revoke | ListKeys


class KekFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told of a KEK."""

    kek_id: KekId
    created: str


class PermissionFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told of a permission."""

    permission: Permission
    used: int
    revoked: bool


class Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an owner has in a broker."""

    keks: tuple[KekFacts, ...]
    permissions: tuple[PermissionFacts, ...]


_ORDER: Final = msgspec.msgpack.Decoder(Order)


def decode_order(data: bytes) -> Order:
    """Return an owner's order. Raises InputError where it is none."""
    order: Order = decode(_ORDER, data, "an order")
    return order
