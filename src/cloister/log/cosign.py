"""Heads of a log, signed by its keeper and cosigned by those who watch it.

A cosigner signs a head only if it continues the last one it signed for that log. So a keeper who shows one
history to some and another to others, or takes an entry back, does not get the same cosigners twice: a reader
who asks for c + 1 of them has at least one honest.

`Cosigner.cosign`, in this order:
1. the head is signed by the log's keeper, whose fingerprint is the log's id, so that nobody speaks for
   another's log;
2. it is the last head this cosigner signed, or larger with a proof of consistency from it;
3. the head is remembered, on the disk;
4. only then it is signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto.dsse import Signer, countersign, open_envelope, sign_envelope
from cloister.crypto.hashing import sha256
from cloister.crypto.signing import VerifyKey
from cloister.errors import IntegrityError, VerificationError
from cloister.files import exclusive, read_bytes, write_atomic
from cloister.log.merkle import verify_consistency
from cloister.log.store import TreeHead

__all__ = ["HEAD_TYPE", "Cosigner", "open_head", "sign_head"]

HEAD_TYPE: Final = "application/vnd.cloister.tree-head+json"


def sign_head(head: TreeHead, keeper: Signer) -> bytes:
    """Return the envelope of `head`, signed by the log's keeper."""
    return sign_envelope(HEAD_TYPE, head.to_bytes(), [keeper])


def open_head(signed: bytes, keys: Mapping[str, VerifyKey], *, required: int = 1) -> TreeHead:
    """Return the head in an envelope that at least `required` of `keys` have signed.

    Raises:
        IntegrityError: too few signatures, or not a head.
    """
    return _decode(open_envelope(signed, HEAD_TYPE, keys, required=required))


def _decode(data: bytes) -> TreeHead:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        head = msgspec.json.decode(data, type=TreeHead)
        if head.to_bytes() == data:
            return head
    raise IntegrityError("a tree head cannot be read, or is not in canonical form", fix="Get it again")


class Cosigner:
    """Signs heads of logs, and remembers per log the last one.

    Args:
        folder: where it remembers.
        signer: whose signature it is.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self._folder = folder
        self._signer = signer

    def last(self, log_id: str) -> TreeHead | None:
        """Return the last head signed for this log, or None."""
        path = self._path(log_id)
        if not path.exists():
            return None
        head = _decode(read_bytes(path, limit=4096, what="remembered tree head"))
        if head.log_id != log_id:
            raise IntegrityError(
                "a remembered tree head is another log's", where=str(path), fix="Restore the folder"
            )
        return head

    def cosign(
        self, signed: bytes, keeper: Mapping[str, VerifyKey], consistency: Sequence[bytes] = ()
    ) -> bytes:
        """Return the envelope with this cosigner's signature added.

        Args:
            signed: the head, signed by the keeper.
            keeper: fingerprint and key of the log's keeper, and nobody else's.
            consistency: the proof from `last(log_id).size` to the head's size; empty for a log never seen.

        Raises:
            IntegrityError: the keeper has not signed it.
            VerificationError: it is of another log than the keeper's, or does not continue the last head;
                nothing is signed.
            StorageError: it could not be remembered; nothing is signed.
        """
        head = open_head(signed, keeper)  # 1
        if keeper.keys() != {head.log_id}:
            raise VerificationError("the tree head is of another log than its keeper's", fix="Do not sign it")
        with exclusive(self._folder / ".lock"):  # two processes must not sign two continuations of one head
            last = self.last(head.log_id)
            if last is not None:  # 2
                verify_consistency(last.size, head.size, consistency, last.root, head.root)
            write_atomic(self._path(head.log_id), head.to_bytes())  # 3
        return countersign(signed, HEAD_TYPE, self._signer)  # 4

    def _path(self, log_id: str) -> Path:
        return self._folder / f"{sha256(log_id.encode()).hex()[:32]}.json"
