"""Who takes part: countersignatures over plan and roster.

A site signs only a roster whose every member the plan names and its owner trusts, in which it stands itself
with its own manifest and row count, and which has the plan's minimum of members. Nothing is computed before
everybody's signature is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from cloister.crypto import (
    Identity,
    PublicIdentity,
    canonical_bytes,
    keyring,
    open_envelope,
    sha256,
    sign_envelope,
)
from cloister.errors import IntegrityError, ProtocolError

__all__ = [
    "COUNTERSIGNATURE_TYPE",
    "Countersignature",
    "check_countersignatures",
    "countersign",
    "manifest_digest",
    "read_countersignature",
]

COUNTERSIGNATURE_TYPE = "application/vnd.cloister.countersignature+json"

Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Countersignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's agreement to one plan with one roster.

    Attributes:
        plan: hex SHA-256 of the plan's canonical bytes.
        roster: hex digest of the roster (identities in order).
        epoch: the epoch this roster is for.
        site: the signer's name.
        manifest: hex SHA-256 of the signed manifest of the rows it brings.
        rows: how many rows it trains on.
    """

    plan: Hex32
    roster: Hex32
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    site: str
    manifest: Hex32
    rows: Annotated[int, msgspec.Meta(ge=1)]


def countersign(identity: Identity, statement: Countersignature) -> bytes:
    """Return the DSSE envelope of `statement`, signed by the site it names."""
    if statement.site != identity.name:
        raise ProtocolError("a site signs for itself alone", peer=statement.site)
    return sign_envelope(COUNTERSIGNATURE_TYPE, canonical_bytes(statement), [identity])


def read_countersignature(envelope: bytes, signer: PublicIdentity) -> Countersignature:
    """Verify and parse a countersignature.

    Raises:
        ProtocolError: it is not signed by `signer`, or says something else than a countersignature may.
    """
    try:
        payload = open_envelope(envelope, COUNTERSIGNATURE_TYPE, keyring([signer]))
        statement = msgspec.json.decode(payload, type=Countersignature)
    except (IntegrityError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("countersignature does not verify", peer=signer.name) from error
    if statement.site != signer.name:
        raise ProtocolError("countersignature speaks for another site", peer=signer.name)
    return statement


def check_countersignatures(
    envelopes: Sequence[bytes], members: Sequence[PublicIdentity], due: Callable[[str], Countersignature]
) -> None:
    """Require from every member, in order, its signature over exactly what is due from it.

    Raises:
        ProtocolError: naming the first member for whom that does not hold.
    """
    if len(envelopes) != len(members):
        raise ProtocolError("the roster is not countersigned by every member")
    for envelope, member in zip(envelopes, members, strict=True):
        if read_countersignature(envelope, member) != due(member.name):
            raise ProtocolError("countersigned another plan or roster", peer=member.name)


def manifest_digest(envelope: bytes) -> bytes:
    """Return the 32-byte SHA-256 of a signed manifest's bytes."""
    return sha256(envelope)
