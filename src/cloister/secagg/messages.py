"""What site and hub send each other: tagged msgpack structs, decoded under limits from the context.

    site -> hub   Announcement   signed; set-up message 1, relayed to all in roster order
    site -> hub   Deal           set-up message 2: a signed DealHeader for all, sealed shares for each, share
                                 hashes for the hub
    hub  -> site  Bundle         all signed headers and what was sealed for this site
    site -> hub   Upload         the masked vector of one attempt
    hub  -> site  Request        the full list, a list to certify, or a certified list
    site -> hub   Endorsement    a signature over a list
    site -> hub   Shares         one share per member of the roster: of the seed for survivors, of the key
                                 for the dropped

Announcements, headers and endorsements are relayed by a hub that nobody trusts, so they are signed inside
(`Signed`), each kind under its own label. Uploads and shares go to the hub alone; the channel above
authenticates them. Unknown fields, wrong types, wrong lengths and trailing bytes are refused before
anything is used.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from cloister.crypto import Buffer, Identity, PublicIdentity
from cloister.crypto.shamir import SHARE_BYTES
from cloister.errors import IntegrityError, ProtocolError
from cloister.secagg.context import EpochContext
from cloister.secagg.derivation import statement

__all__ = [
    "SIGNATURE_BYTES",
    "Announcement",
    "Bundle",
    "Deal",
    "DealHeader",
    "Endorsement",
    "Request",
    "Shares",
    "Signature",
    "Signed",
    "Upload",
    "decode",
    "encode",
    "open_signed",
    "sign",
    "verify",
]

SIGNATURE_BYTES = 64
_SLACK = 4096
"""Allowance for field names, lengths and other framing of a message without a vector."""

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Attempt = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Signed(_Message, frozen=True, tag="signed"):
    """Bytes and the sender's Ed25519 signature over label and bytes."""

    payload: bytes
    signature: SignatureBytes


class Announcement(_Message, frozen=True, tag="announcement"):
    """The public half of a site's epoch secrets.

    Args:
        context: digest of the epoch's context.
        sender: the site.
        share_key: X25519 public key to which shares for this site are encrypted; its secret is never shared.
        attempt_keys: R X25519 public keys, 32 bytes each, in one string.
        seed_commitments: R commitments to self-mask seeds, likewise.
        epoch_key_commitment: commitment to K_e from the first member under hub_view none, else empty.
    """

    context: Digest
    sender: Name
    share_key: Digest
    attempt_keys: bytes
    seed_commitments: bytes
    epoch_key_commitment: bytes


class DealHeader(_Message, frozen=True, tag="deal-header"):
    """What a dealer signs.

    Args:
        context: digest of the epoch's context.
        sender: the dealer.
        announcements: digest of all announcements as the dealer saw them.
        holder_digests: for each holder, 32 bytes over the hashes of the shares dealt to it.
    """

    context: Digest
    sender: Name
    announcements: Digest
    holder_digests: bytes


class Deal(_Message, frozen=True, tag="deal"):
    """A signed header, n sealed parcels (its own is empty), and n times 2 R share hashes for the hub."""

    header: bytes
    sealed: list[bytes]
    share_hashes: bytes


class Bundle(_Message, frozen=True, tag="bundle"):
    """All n signed headers, and the n parcels sealed for the receiver, in the dealers' roster order."""

    headers: list[bytes]
    sealed: list[bytes]


class Upload(_Message, frozen=True, tag="upload"):
    """A masked vector, raw little-endian elements, with the set-up and model tag that its masks depend on."""

    setup: Digest
    attempt: Attempt
    sender: Name
    model: Digest
    vector: memoryview


class Signature(_Message, frozen=True):
    """A member's signature over a survivor list."""

    signer: Name
    signature: SignatureBytes


class Request(_Message, frozen=True, tag="request"):
    """The hub asks for a site's part of the unmasking.

    The full roster as survivors, no signatures: answered with shares. A shorter list without signatures: a
    proposal, answered with an endorsement. A shorter list with t signatures: certified, answered with
    shares.
    """

    setup: Digest
    attempt: Attempt
    survivors: list[Name]
    signatures: list[Signature]


class Endorsement(_Message, frozen=True, tag="endorsement"):
    """A site's signature over the proposed list, its one choice for the attempt."""

    setup: Digest
    attempt: Attempt
    sender: Name
    signature: SignatureBytes


class Shares(_Message, frozen=True, tag="shares"):
    """n shares of 33 bytes in roster order, for the list with this digest."""

    setup: Digest
    attempt: Attempt
    sender: Name
    choice: Digest
    shares: bytes


M = TypeVar("M", bound=_Message)


def _limit(kind: type[_Message], context: EpochContext) -> int:
    """Return the most bytes a message of this kind may have; for uploads, what msgpack can hold."""
    n, r = len(context.roster), context.attempts
    header = 32 * n + _SLACK
    parcel = 2 * SHARE_BYTES * r + 128
    if kind is Upload:
        return 2**32
    if kind is Announcement:
        return 64 * r + _SLACK
    if kind is Deal:
        return header + n * (parcel + 64 * r) + _SLACK
    if kind is Bundle:
        return n * (header + parcel) + _SLACK
    return 256 * n + _SLACK


def encode(message: _Message) -> bytes:
    """Return the msgpack bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(data: Buffer, kind: type[M], context: EpochContext, peer: str | None) -> M:
    """Parse strictly; a vector is a view of `data`, not a copy.

    Raises:
        ProtocolError: naming `peer`, for what is not exactly such a message.
    """
    if len(data) > _limit(kind, context):
        raise ProtocolError(
            f"a message of {len(data)} bytes is too long to be of kind {kind.__name__}", peer=peer
        )
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(
            f"a message is not of kind {kind.__name__}: {_reason(error)}", peer=peer
        ) from None


def _reason(error: Exception) -> str:
    """Return msgspec's reason; it names fields and types, and might quote a tag, so it is cut short."""
    return str(error)[:120]


def sign(identity: Identity, label: str, payload: bytes) -> bytes:
    """Return `Signed` bytes."""
    return encode(Signed(payload, identity.sign(statement(label, payload))))


def verify(member: PublicIdentity, signature: bytes, message: bytes, what: str) -> None:
    """Check a member's signature. Raises ProtocolError naming the member."""
    try:
        member.verify(signature, message)
    except IntegrityError:
        raise ProtocolError(f"the signature of {what} does not verify", peer=member.name) from None


def open_signed(data: bytes, kind: type[M], label: str, context: EpochContext, sender: str) -> M:
    """Return the payload that `sender` signed under `label`. Raises ProtocolError naming the sender."""
    most = _limit(kind, context)
    if len(data) > most + _SLACK:
        raise ProtocolError(
            f"a message of {len(data)} bytes is too long to be a signed {kind.__name__}", peer=sender
        )
    try:
        signed = msgspec.msgpack.decode(data, type=Signed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a message is not signed as it must be: {_reason(error)}", peer=sender) from None
    member = context.roster.members[context.roster.index(sender)]
    verify(member, signed.signature, statement(label, signed.payload), f"a {kind.__name__}")
    return decode(signed.payload, kind, context, sender)
