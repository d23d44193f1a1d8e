"""Receipts: what an enclave signs about each answer it gave, without saying what it was.

A receipt names the key set, and by it the evidence that vouched for the signing key; the client's policy; the
model; and digests of request and answer. Digests are salted with 32 fresh bytes each, which travel encrypted
with the answer: whoever finds a receipt cannot guess a question and try; whoever holds question and salt can
prove what was asked, and of request and answer either one without the other.

    digest = SHA-256(framed(salt, head, SHA-256(body)))

`open_receipt`, in this order: 1 the signature, of that key and type; 2 the receipt parses; 3 it is in
canonical form. What it says is then the enclave's word; whether that enclave is to be believed, its evidence
says.

`at` is the enclave's clock, which its host may set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from cloister.crypto import (
    Buffer,
    SignatureAlgorithm,
    SigningKey,
    VerifyKey,
    framed,
    open_envelope,
    sha256,
    sign_envelope,
)
from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange.keyset import check_model_name, is_stamp

__all__ = ["RECEIPT_TYPE", "Receipt", "open_receipt", "salted", "salted_digest", "sign_receipt"]

RECEIPT_TYPE: Final = "application/vnd.cloister.receipt+json"
"""The type of the signed envelope."""
_MAX_ENVELOPE: Final = 4_096
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_canonical: Final = msgspec.json.Encoder(order="sorted").encode
"""A receipt's canonical JSON, as `canonical_bytes` gives it and faster by far: it holds only small integers,
and ASCII without control characters."""


class Receipt(Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/receipt/v1", tag_field="type"):
    """What an enclave says about one answer.

    Attributes:
        keys: digest of the key set, hex.
        policy: digest of the enclave policy that the client named, hex; or empty.
        model: the name of what answered.
        model_digest: SHA-256 of it, hex.
        request: salted digest of the request, hex.
        answer: salted digest of the answer, hex.
        status: of HTTP, as answered.
        at: when the answer ended, by the enclave's clock; UTC, whole seconds.

    Raises:
        InputError: one of them cannot be.
    """

    keys: str
    policy: str
    model: str
    model_digest: str
    request: str
    answer: str
    status: int
    at: datetime

    def __post_init__(self) -> None:
        digests = (self.keys, self.model_digest, self.request, self.answer, self.policy or self.keys)
        if not all(map(_HEX.fullmatch, digests)):
            raise InputError("a receipt's digests are not 64 hexadecimal digits")
        if not is_stamp(self.at) or not 200 <= self.status <= 599:
            raise InputError("a receipt's time is not in whole seconds of UTC, or its status is none")
        check_model_name(self.model)


def salted_digest(salt: bytes, head: Buffer, body_digest: bytes) -> bytes:
    """Return the 32-byte digest of a message whose body has the SHA-256 `body_digest`."""
    return sha256(framed(salt, head, body_digest))


def salted(salt: bytes, head: Buffer, body: Buffer) -> bytes:
    """Return the 32-byte digest of a message, as it stands in a receipt.

    Args:
        salt: 32 bytes from its `Ending`.
        head: the canonical bytes of its head.
        body: its body, without padding.
    """
    return salted_digest(salt, head, sha256(body))


class _Signer:
    """A bare signing key, named by the SHA-256 of its public key."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.fingerprint = _key_id(key.verify_key)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def _key_id(key: VerifyKey) -> str:
    return sha256(key.to_bytes()).hex()


def sign_receipt(receipt: Receipt, key: SigningKey) -> bytes:
    """Return the DSSE envelope of a receipt, signed with the key set's receipt key."""
    return sign_envelope(RECEIPT_TYPE, _canonical(receipt), [_Signer(key)])


def open_receipt(envelope: bytes, receipt_key: bytes) -> Receipt:
    """Return the receipt in an envelope.

    Args:
        envelope: as `sign_receipt` made it.
        receipt_key: the key set's, 32 bytes.

    Raises:
        InputError: `receipt_key` is no key.
        IntegrityError: not signed with it, or no receipt.
    """
    if len(envelope) > _MAX_ENVELOPE:
        raise _no_receipt()
    payload = open_envelope(envelope, RECEIPT_TYPE, _known(receipt_key))  # 1
    try:
        receipt = msgspec.json.decode(payload, type=Receipt)  # 2
    except (msgspec.DecodeError, UnicodeDecodeError, InputError):
        raise _no_receipt() from None
    if _canonical(receipt) != payload:  # 3
        raise _no_receipt()
    return receipt


@lru_cache(maxsize=16)
def _known(receipt_key: bytes) -> Mapping[str, VerifyKey]:
    """Return a key set's receipt key by its name."""
    key = VerifyKey.from_bytes(SignatureAlgorithm.ED25519, receipt_key)
    return MappingProxyType({_key_id(key): key})


def _no_receipt() -> IntegrityError:
    return IntegrityError("this is no receipt", fix="Check that both ends run one version")
