"""Detached signatures over files: a DSSE envelope whose payload is the file's SHA-512.

The file's name is not signed: files are renamed, and what was signed is their content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloister.crypto.canonical import canonical_bytes
from cloister.crypto.dsse import Signer, open_envelope, sign_envelope
from cloister.crypto.hashing import constant_time_equal, digest_file
from cloister.crypto.signing import VerifyKey
from cloister.errors import IntegrityError

__all__ = ["FILE_SIGNATURE_TYPE", "sign_file", "verify_file"]

FILE_SIGNATURE_TYPE: Final = "application/vnd.cloister.file-signature+json"


class _FileDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha512: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]


def sign_file(path: Path, signers: Sequence[Signer]) -> bytes:
    """Return the envelope that signs the file's content. Raises InputError where it cannot be read."""
    digest = _FileDigest(digest_file(path, "sha512").hex())
    return sign_envelope(FILE_SIGNATURE_TYPE, canonical_bytes(digest), signers)


def verify_file(path: Path, signature: bytes, keys: Mapping[str, VerifyKey], *, required: int = 1) -> None:
    """Return if at least `required` of `keys` have signed the file's content.

    Raises:
        InputError: the file cannot be read.
        IntegrityError: they have not, or signed another content.
    """
    payload = open_envelope(signature, FILE_SIGNATURE_TYPE, keys, required=required)
    try:
        signed = msgspec.json.decode(payload, type=_FileDigest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise IntegrityError(
            "a file's signature cannot be read", fix="Get it again from its signer"
        ) from None
    if not constant_time_equal(bytes.fromhex(signed.sha512), digest_file(path, "sha512")):
        raise IntegrityError("the file is not the one that was signed", where=str(path), fix="Get it again")
