"""Fingerprints of rows that their owner cannot open: kept beside a dataset whose KEK lies elsewhere.

A privacy ledger asks an owner for the fingerprints of rows. Where a key broker keeps the dataset's KEK the
owner cannot compute them from the rows, so they are written when the rows are added: AES-256-GCM under a key
that is derived from the owner's secret for this dataset alone, 32 bytes a row. They tell whoever has that
secret which rows are alike, and nobody anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.crypto import decrypt, encrypt, framed, hkdf
from cloister.errors import IntegrityError
from cloister.files import read_bytes
from cloister.vault.manifest import Manifest

__all__ = ["FINGERPRINTS_NAME", "read_fingerprints", "write_fingerprints"]

FINGERPRINTS_NAME: Final = "fingerprints.sealed"
_INFO: Final = b"cloister kept row fingerprints v1"
_BYTES: Final = 32
_OVERHEAD: Final = 64


def write_fingerprints(folder: Path, dataset_id: str, secret: bytes, digests: list[bytes]) -> None:
    """Write the fingerprints of a dataset's rows, in their order, into its folder."""
    key = hkdf(secret, info=framed(_INFO, dataset_id.encode()))
    (folder / FINGERPRINTS_NAME).write_bytes(encrypt(key, b"".join(digests), dataset_id.encode()))


def read_fingerprints(folder: Path, manifest: Manifest, secret: bytes) -> bytes | None:
    """Return the fingerprints that were kept, 32 bytes a row; None where none were.

    Raises:
        IntegrityError: they are not this dataset's, or were altered.
    """
    path = folder / FINGERPRINTS_NAME
    if not path.exists():
        return None
    room = _BYTES * manifest.rows + _OVERHEAD
    key = hkdf(secret, info=framed(_INFO, manifest.dataset_id.encode()))
    sealed = read_bytes(path, limit=room, what="fingerprints of rows")
    found = decrypt(key, sealed, manifest.dataset_id.encode())
    if len(found) != _BYTES * manifest.rows:
        raise IntegrityError(
            "the fingerprints are those of other rows", where=str(path), fix="Restore it from a backup"
        )
    return found
