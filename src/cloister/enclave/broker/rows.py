"""What a key broker's store holds: KEKs, and permissions with their use counts."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cloister.crypto import framed
from cloister.enclave.broker.grant import Digest, KekId, Permission

__all__ = ["Held", "Kek"]

_KEK_LABEL: Final = b"cloister broker KEK v1"


class Kek(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A KEK as it is stored.

    Attributes:
        kek_id: its id.
        owner: fingerprint of who made it; nobody else gives orders about it.
        created: when, ISO 8601.
        sealed: the 32 bytes under the store's key, bound to all of the above.
    """

    kek_id: KekId
    owner: Digest
    created: str
    sealed: bytes

    def __repr__(self) -> str:
        return f"<Kek {self.kek_id}>"

    @property
    def binding(self) -> bytes:
        """What the sealed bytes are bound to."""
        return framed(_KEK_LABEL, self.kek_id.encode(), self.owner.encode(), self.created.encode())


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A permission as it is stored, and how often it was used."""

    permission: Permission
    owner: Digest
    used: Annotated[int, msgspec.Meta(ge=0)] = 0
    revoked: bool = False
