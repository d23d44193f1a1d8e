"""An epoch on the disk, sealed so that what belongs to one attempt goes with the ratchet.

Everything but the attempts' secrets is under the epoch's common key; the secrets of attempt i are under a key
that comes from the ratchet at i, and only from there or before. Both keys exist in volatile memory alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import decrypt, encrypt, framed
from cloister.errors import IntegrityError
from cloister.files import read_bytes, write_atomic
from cloister.runtime.journal.kept import EpochKept, SiteSnapshot
from cloister.runtime.journal.volatile import Ratchet

__all__ = ["read_epoch", "write_epoch"]

_MOST: Final = 2**32


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cloister epoch v1"):
    common: bytes
    attempts: list[bytes]


def write_epoch(path: Path, kept: EpochKept, ratchet: Ratchet, context: bytes) -> None:
    """Write an epoch in place of any before it; on the disk on return.

    Args:
        path: the file.
        kept: the epoch.
        ratchet: fresh.
        context: whose epoch of which study it is.

    Raises:
        StorageError: it cannot be written.
    """
    shared = msgspec.structs.replace(kept, secure_sum=msgspec.structs.replace(kept.secure_sum, attempts=[]))
    common = encrypt(ratchet.common_key, msgspec.msgpack.encode(shared), _bound(context, ratchet, -1))
    attempts = []
    for number, secrets in enumerate(kept.secure_sum.attempts):
        ratchet = ratchet.entered(number)
        attempts.append(encrypt(ratchet.secrets_key(), secrets, _bound(context, ratchet, number)))
    write_atomic(path, msgspec.msgpack.encode(_File(common, attempts)), mode=0o600)


def read_epoch(path: Path, ratchet: Ratchet, context: bytes) -> EpochKept:
    """Return an epoch; of the attempts before the ratchet's, nothing.

    Raises:
        InputError: there is no such file.
        IntegrityError: it was altered, or is another epoch's.
    """
    try:
        file = msgspec.msgpack.decode(read_bytes(path, limit=_MOST, what="epoch"), type=_File)
        common = decrypt(ratchet.common_key, file.common, _bound(context, ratchet, -1))
        kept = msgspec.msgpack.decode(common, type=EpochKept)
        attempts = []
        for number, secrets in enumerate(file.attempts):
            if number < ratchet.attempt:
                attempts.append(b"")
                continue
            ratchet = ratchet.entered(number)
            attempts.append(decrypt(ratchet.secrets_key(), secrets, _bound(context, ratchet, number)))
    except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
        raise IntegrityError(
            "what was kept of an epoch was altered",
            where=str(path),
            fix="Remove this file; the site then waits for the next epoch",
        ) from None
    snapshot = kept.secure_sum
    whole = SiteSnapshot(snapshot.announcements, snapshot.headers, snapshot.epoch_key, attempts)
    return EpochKept(kept.offer, kept.closed, whole)


def _bound(context: bytes, ratchet: Ratchet, number: int) -> bytes:
    return framed(
        b"cloister journal epoch v1", context, ratchet.epoch, number.to_bytes(8, "big", signed=True)
    )
