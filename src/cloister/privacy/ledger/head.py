"""Heads: what a ledger contained at one moment, signed by its owner; and files that keep the newest one.

A head is a DSSE envelope over {ledger, size, hash}, and the value of a counter where one anchors the ledger.
The ledger signs one for each group of rows it commits. Whoever keeps one can later say whether a ledger still
contains it (`Ledger.check_head`): that is what finds a ledger that was put back from an older copy.

A head file has two places of 2048 bytes, written in turn and in place, so that a power cut in the middle of
a write leaves the other one. The newest head in it that is signed counts. A file with one envelope, as a
partner sends it, is read too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloister.crypto import PublicIdentity, canonical_bytes, keyring, open_envelope, sign_envelope
from cloister.crypto.dsse import Signer
from cloister.errors import InputError, IntegrityError, StorageError
from cloister.files import read_bytes, write_atomic
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.rows import Hex32, Hex64

__all__ = ["HEAD_TYPE", "Head", "HeadFile", "open_head", "sign_head"]

HEAD_TYPE: Final = "application/vnd.cloister.ledger-head+json"
_PLACE: Final = 2048
_MAX_FILE: Final = 64 << 10


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ledger contained: its id, the number of its rows, the hash of the last; and the value of the
    counter that anchors it, where there is one (`counting`).
    """

    ledger: Hex32
    size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    hash: Hex64
    counter: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | msgspec.UnsetType = msgspec.UNSET


def sign_head(head: Head, signer: Signer) -> bytes:
    """Return the envelope of a head."""
    return sign_envelope(HEAD_TYPE, canonical_bytes(head), [signer])


def open_head(envelope: bytes, owners: Sequence[PublicIdentity]) -> Head:
    """Return a head that one of `owners` signed. Raises IntegrityError where it is none."""
    payload = open_envelope(envelope, HEAD_TYPE, keyring(owners))
    try:
        return msgspec.json.decode(payload, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntegrityError("this is not the head of a ledger", fix="Check which file it is") from None


class HeadFile:
    """A file that keeps the newest head of one ledger.

    Args:
        path: the file.
        durable: whether a head is on the disk when `write` returns, or some time later.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path: Final = path
        self._durable = durable
        self._place = 0

    def exists(self) -> bool:
        """Return whether there is anything at its path."""
        return os.path.lexists(self.path)

    def read(self, ledger: str, owners: Sequence[PublicIdentity]) -> Head:
        """Return the newest head in the file.

        Raises:
            LedgerInDoubt: there is no file, no head in it that an owner signed, or one of another ledger.
        """
        try:
            data = read_bytes(self.path, limit=_MAX_FILE, what="ledger's anchor")
        except InputError as error:
            raise self._doubt(error.what) from None
        heads: list[Head] = []
        for place in (data[:_PLACE], data[_PLACE:], data):
            try:
                heads.append(open_head(place.strip(), owners))
            except IntegrityError:  # one place may be torn
                continue
        if not heads:
            raise self._doubt("it holds no head that the ledger's owner signed")
        if any(head.ledger != ledger for head in heads):
            raise self._doubt("it is another ledger's")
        return max(heads, key=lambda head: head.size)

    def begin(self, envelope: bytes) -> None:
        """Write the whole file anew. Raises StorageError."""
        write_atomic(self.path, 2 * _padded(envelope), mode=0o600)
        self._place = 0

    def write(self, envelope: bytes) -> None:
        """Put a newer head into the file, which exists. Raises StorageError."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, _padded(envelope), self._place * _PLACE)
                if self._durable:
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(
                f"cannot write the ledger's anchor: {os.strerror(error.errno or 0)}",
                where=str(self.path),
                fix="Bring it back; nothing more is spent without it",
            ) from None
        self._place = 1 - self._place

    def _doubt(self, reason: str) -> LedgerInDoubt:
        return LedgerInDoubt(
            f"the ledger's anchor cannot be used: {reason}",
            where=str(self.path),
            fix="Bring back the anchor of this ledger; without it an older copy could pass for the newest",
        )


def _padded(envelope: bytes) -> bytes:
    return envelope.ljust(_PLACE - 1) + b"\n"
