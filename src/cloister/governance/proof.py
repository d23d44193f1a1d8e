"""`proof.json`: that a certificate is in its keeper's log, and that study members watch that log.

It holds the inclusion proof of the certificate's digest under a tree head (RFC 9162), and the head's
DSSE envelope, signed by the log's keeper and cosigned by members. The keeper is whoever signed the
certificate; the log's id is the keeper's fingerprint.

Invariants, checked on reading: the file is the canonical JSON of its content, the envelope has one
spelling, and every signature in it is by a different known key and verifies. One that does not is not
ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from cloister.crypto import VerifyKey, canonical_bytes, envelope_signers
from cloister.errors import CloisterError, IntegrityError, VerificationError
from cloister.governance.certificate import PREDICATE_TYPE, Certificate, Hex
from cloister.log import TreeHead, leaf_hash, open_head, verify_inclusion

__all__ = ["Proof", "check_head", "check_inclusion", "decode_proof", "log_entry"]


class Proof(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `proof.json`.

    Attributes:
        index: of the entry, from 0.
        path: the inclusion proof, hex, from the leaf up.
        head: DSSE envelope (JSON text) of the tree head it leads to.
    """

    index: Annotated[int, Meta(ge=0, le=2**53)]
    path: Annotated[tuple[Hex, ...], Meta(max_length=64)]
    head: Annotated[str, Meta(max_length=4 << 20)]

    def to_bytes(self) -> bytes:
        """Return the file."""
        return canonical_bytes(self)


def log_entry(certificate: Certificate) -> bytes:
    """Return what the log records of a release: canonical JSON with the digest of the certificate's
    envelope."""
    return canonical_bytes({"certificate": certificate.digest.hex(), "type": PREDICATE_TYPE})


def decode_proof(data: bytes) -> Proof:
    """Decode a proof strictly. Raises IntegrityError."""
    try:
        proof = msgspec.json.decode(data, type=Proof)
        canonical = proof.to_bytes()
    except (msgspec.DecodeError, UnicodeDecodeError, CloisterError, RecursionError) as error:
        raise IntegrityError(
            f"the proof does not parse: {error}", fix="Ask the releaser for it again"
        ) from error
    if canonical != data:
        raise IntegrityError("the proof is not in canonical form", fix="Ask the releaser for it again")
    return proof


def _one_spelling(envelope: bytes) -> bool:
    """Whether the envelope's JSON and base64 have no freedom left."""
    try:
        fields = json.loads(envelope)
        texts = [fields["payload"], *(signature["sig"] for signature in fields["signatures"])]
        same = all(base64.b64encode(base64.b64decode(text, validate=True)).decode() == text for text in texts)
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
        return False
    return same and json.dumps(fields, separators=(",", ":")).encode() == envelope


def check_head(
    proof: Proof, keeper: str, members: Mapping[str, VerifyKey], keys: Mapping[str, VerifyKey]
) -> tuple[TreeHead, int]:
    """Return the tree head and how many members other than the keeper cosign it.

    Args:
        proof: the decoded proof.
        keeper: fingerprint of the log's keeper, whose signature must be there.
        members: fingerprint -> key of the study's members.
        keys: fingerprint -> key of keeper and members together: everybody who may sign.

    Raises:
        IntegrityError: a signature does not verify, or the envelope can be spelled otherwise.
        VerificationError: the keeper's is missing, one is by a stranger or there twice, or the log is
            another's.
    """
    envelope = proof.head.encode()
    signers = envelope_signers(envelope)
    if not _one_spelling(envelope):
        raise IntegrityError(
            "the tree head is not in canonical form", fix="Ask the releaser for the proof again"
        )
    if len(set(signers)) != len(signers):
        raise VerificationError(
            "the tree head is signed twice by one key", fix="Ask the releaser for the proof again"
        )
    if not set(signers) <= keys.keys():
        raise VerificationError(
            "the tree head is signed by a key that is neither the keeper's nor a member's",
            fix="Ask the releaser for the proof again",
        )
    if keeper not in signers:
        raise VerificationError(
            "the tree head is not signed by the log's keeper", fix="Ask the releaser for the proof again"
        )
    head = open_head(envelope, keys, required=len(signers))
    if head.log_id != keeper:
        raise VerificationError(
            "the tree head is of another log than the releaser's", fix="Ask the releaser for the proof again"
        )
    return head, len((set(signers) & members.keys()) - {keeper})


def check_inclusion(proof: Proof, certificate: Certificate, head: TreeHead) -> None:
    """Raise VerificationError unless the certificate is in the tree under `head`."""
    path = [bytes.fromhex(node) for node in proof.path]
    verify_inclusion(leaf_hash(log_entry(certificate)), proof.index, head.size, path, head.root)
