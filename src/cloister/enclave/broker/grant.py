"""What may be released, what a worker asks for, and what one release is bound to.

    Permission   the owner's word: this key, for this manifest, plan and purpose, until then, so many times
    Wanted       the worker's: exactly what its evidence commits to
    Grant        one release: the permission it came from, the worker's key, its evidence, which use this is

The canonical bytes of the grant are the associated data under which data keys are sealed to the worker: what
was released for one worker, plan or purpose opens under no other.

A manifest is named by the SHA-256 of its signed bytes; a plan by its digest, or None where there is no plan.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Annotated, Final

import msgspec

from cloister.crypto import canonical_bytes, framed, sha256
from cloister.enclave.evidence import report_data
from cloister.errors import InputError, IntegrityError

__all__ = [
    "RELEASE_INFO",
    "RELEASE_PURPOSE",
    "Digest",
    "Grant",
    "KekId",
    "Permission",
    "Short",
    "Wanted",
    "Wrapped",
    "keys_digest",
    "wanted_report_data",
]

RELEASE_PURPOSE: Final = "cloister/key-release/v1"
"""The purpose in the report data of evidence that asks for keys."""
RELEASE_INFO: Final = b"cloister key release v1"
"""HPKE's info of what is released."""
MAX_KEYS: Final = 4096
"""Data keys in one request."""
MAX_USES: Final = 1_000_000

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
PermissionId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
KekId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}\Z")]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Wrapped = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(max_length=1 << 17)], ...],
    msgspec.Meta(min_length=1, max_length=MAX_KEYS),
]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_USES)]


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker asks to open, and what for.

    Attributes:
        kek_id: the dataset's or model's key.
        manifest: SHA-256 of the signed manifest, hexadecimal.
        plan: digest of the study plan; None where there is none.
        purpose: one of the dataset's purposes.
    """

    kek_id: KekId
    manifest: Digest
    plan: Digest | None
    purpose: Short


class Permission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an owner allows.

    Attributes:
        id: 16 random bytes, hexadecimal.
        wanted: what may be asked for; a request must be equal to it.
        expires: from this moment on nothing is released.
        uses: how many workers, each attested anew, may open it.
    """

    id: PermissionId
    wanted: Wanted
    expires: Moment
    uses: _Count

    def __post_init__(self) -> None:
        if not self.wanted.purpose.isprintable():
            raise InputError("a purpose has characters that do not print", fix="Correct it")


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release, as its answer is bound to it and the log names it.

    Attributes:
        broker: fingerprint of the broker's identity.
        permission: the owner's permission that was used.
        wanted: what was asked for.
        worker: SHA-256 of the worker's public key.
        evidence: digest of the evidence that was accepted.
        policy: digest of the enclave policy that accepted it.
        keys: digest of the wrapped data keys that were opened.
        expires: of the permission.
        use: which of the permission's uses this is, from 1.
        uses: how many it has.
    """

    broker: Digest
    permission: PermissionId
    wanted: Wanted
    worker: Digest
    evidence: Digest
    policy: Digest
    keys: Digest
    expires: Moment
    use: _Count
    uses: _Count

    def to_bytes(self) -> bytes:
        """Return the canonical bytes: the associated data of what is released."""
        return canonical_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Grant:
        """Return the grant in `data`. Raises IntegrityError unless it is one, in canonical form."""
        grant = None
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            grant = msgspec.json.decode(data, type=cls)
        if grant is None or grant.to_bytes() != data:
            raise IntegrityError("a broker's grant cannot be read", fix="Ask the broker again")
        return grant


def keys_digest(wrapped: tuple[bytes, ...]) -> str:
    """Return what a grant says of the wrapped keys it is for, hexadecimal."""
    return sha256(framed(*wrapped)).hex()


def wanted_report_data(broker: str, nonce: bytes, worker: bytes, wanted: Wanted) -> bytes:
    """Return the 64 bytes that a worker's evidence must carry.

    Args:
        broker: fingerprint of the broker that asks.
        nonce: its fresh 32 bytes.
        worker: the worker's public HPKE key.
        wanted: what the worker asks for.
    """
    bound = {"broker": broker, "wanted": sha256(canonical_bytes(wanted)).hex()}
    return report_data(RELEASE_PURPOSE, nonce, sha256(worker), **bound)
