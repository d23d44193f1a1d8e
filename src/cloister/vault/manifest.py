"""The signed description of a dataset: what it holds, what for, and the digests that pin its files.

A manifest is public among the parties of a study: it holds the schema, counts and digests, and nothing that
depends on a row but the number of rows and roots under keys that only the owner has. It is a DSSE envelope
signed by the owner's identity.

`open_manifest`, in this order:
1. the owner's signature verifies, over this payload type;
2. the payload parses strictly;
3. it says it is the owner's, and its schema has the digest it says.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import Identity, PublicIdentity, keyring, open_envelope, sign_envelope
from cloister.errors import InputError, IntegrityError
from cloister.types import check_name
from cloister.vault.checkedfile import FileDigests
from cloister.vault.schema import Schema

__all__ = [
    "MANIFEST_NAME",
    "MAX_MANIFEST",
    "PAYLOAD_TYPE",
    "Manifest",
    "check_purposes",
    "open_manifest",
    "sign_manifest",
]

PAYLOAD_TYPE: Final = "application/vnd.cloister.manifest+json"
MANIFEST_NAME: Final = "manifest.dsse.json"
MAX_MANIFEST: Final = 32 << 20
_MAX_PURPOSES: Final = 32
_MAX_PURPOSE: Final = 200

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Text = Annotated[str, msgspec.Meta(max_length=2000)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a dataset's owner signs.

    Attributes:
        version: of this format.
        name: the dataset's, at its owner.
        dataset_id: 16 random bytes in hexadecimal, new for each `add`.
        kek_id: the key-encryption key of its data keys.
        owner: fingerprint of the owner's identity.
        created: time of the ingest, in UTC, ISO 8601.
        purposes: what the rows may be used for.
        consent: on what basis, in the owner's words; may be empty.
        schema: the declared columns, in their stored order.
        schema_sha256: its digest, as plans name it.
        rows: stored rows.
        without_consent: rows left out because their consent column did not say yes.
        quarantined: rows left out because they broke the schema.
        fingerprints_root: Merkle root over the keyed fingerprints of the rows, in their order.
        file: digests of the encrypted file and its key material.
    """

    version: Literal[1]
    name: str
    dataset_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    kek_id: Annotated[str, msgspec.Meta(max_length=128)]
    owner: _Hex32
    created: Annotated[str, msgspec.Meta(max_length=40)]
    purposes: tuple[str, ...]
    consent: _Text
    schema: Schema
    schema_sha256: _Hex32
    rows: Annotated[int, msgspec.Meta(ge=1)]
    without_consent: _Count
    quarantined: _Count
    fingerprints_root: _Hex32
    file: FileDigests


def check_purposes(purposes: tuple[str, ...]) -> None:
    """Raise InputError unless there are 1 to 32 different purposes of 1 to 200 printable characters."""
    if not 0 < len(purposes) <= _MAX_PURPOSES or len(set(purposes)) < len(purposes):
        raise InputError(
            f"a dataset needs 1 to {_MAX_PURPOSES} different purposes", fix="Say what it may be used for"
        )
    if not all(0 < len(p) <= _MAX_PURPOSE and p.isprintable() and p == p.strip() for p in purposes):
        raise InputError(f"a purpose must have 1 to {_MAX_PURPOSE} printable characters", fix="Correct it")


def sign_manifest(manifest: Manifest, identity: Identity) -> bytes:
    """Return the envelope. Raises InputError where the manifest names another owner."""
    if manifest.owner != identity.fingerprint:
        raise InputError("a manifest is signed by the owner it names", fix="Use the owner's identity")
    return sign_envelope(PAYLOAD_TYPE, msgspec.json.encode(manifest), [identity])


def open_manifest(envelope: bytes, owner: PublicIdentity) -> Manifest:
    """Return the manifest in an envelope.

    Args:
        envelope: the bytes of the file, or as a partner sent them.
        owner: whose dataset it must be.

    Raises:
        IntegrityError: one of the three steps fails.
    """
    problem = ""
    try:
        payload = open_envelope(envelope, PAYLOAD_TYPE, keyring([owner]))  # 1
        manifest = msgspec.json.decode(payload, type=Manifest)  # 2
        check_name(manifest.name)
        check_purposes(manifest.purposes)
    except (msgspec.DecodeError, UnicodeDecodeError, InputError) as error:
        problem = type(error).__name__ if isinstance(error, UnicodeDecodeError) else str(error)
    if problem:
        raise IntegrityError(
            f"a manifest is malformed: {problem}", fix="Check which version of Cloister wrote it"
        )
    if manifest.owner != owner.fingerprint or manifest.schema_sha256 != manifest.schema.digest().hex():  # 3
        raise IntegrityError("a manifest contradicts itself", fix="Do not use the dataset; ask its owner")
    return manifest
