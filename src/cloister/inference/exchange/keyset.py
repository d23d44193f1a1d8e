"""The keys of a service: what evidence vouches for, and what a client seals to.

    report data = SHA-512 over {purpose, the client's nonce, SHA-256 of the key set}

A key set names both keys, how long they hold and which model answers under them; its digest stands in report
data, in every request and in every receipt. It has one form, canonical JSON; other bytes are refused.

Whether evidence is good, and whether a key set holds now, its client judges: nothing here knows the time.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from cloister.crypto import canonical_bytes, sha256
from cloister.enclave.evidence import MAX_EVIDENCE, report_data
from cloister.errors import InputError

__all__ = ["PURPOSE", "KeySet", "Published", "keys_report_data"]

PURPOSE: Final = "cloister/inference/v1"
"""What evidence of a service is for."""
MAX_KEY_SET: Final = 4_096
"""Bytes of a key set's canonical form."""
_MAX_PUBLISHED: Final = 4 * (MAX_EVIDENCE + MAX_KEY_SET) // 3 + 1_024
_MAX_ACCELERATORS: Final = 64
_MODEL: Final = re.compile(r"[ -~]{1,128}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class KeySet(
    Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/keys/v1", tag_field="type", dict=True
):
    """Public keys of a service, and what they stand for.

    Attributes:
        encryption_key: ML-KEM768-X25519, 1,216 bytes: requests are sealed to it.
        receipt_key: Ed25519, 32 bytes: receipts are signed with it.
        not_before: from when it holds, UTC, whole seconds.
        not_after: until when requests under it may be taken, UTC, whole seconds.
        model: the name of what answers, 1 to 128 printable ASCII characters.
        model_digest: SHA-256 of it, hex.
        accelerators: how many GPUs the service computes on; each needs accepted evidence.

    Raises:
        InputError: one of them cannot be.
    """

    encryption_key: bytes
    receipt_key: bytes
    not_before: datetime
    not_after: datetime
    model: str
    model_digest: str
    accelerators: int = 0

    def __post_init__(self) -> None:
        if len(self.encryption_key) != 1216 or len(self.receipt_key) != 32:
            raise InputError("a key set's keys have other lengths than 1,216 and 32 bytes")
        if not (is_stamp(self.not_before) and is_stamp(self.not_after)):
            raise InputError("a key set's times are not whole seconds of UTC")
        if self.not_before >= self.not_after:
            raise InputError("a key set ends before it begins")
        check_model_name(self.model)
        if not _DIGEST.fullmatch(self.model_digest):
            raise InputError("a model's digest is not 64 hexadecimal digits")
        if not 0 <= self.accelerators <= _MAX_ACCELERATORS:
            raise InputError(f"a key set names more than {_MAX_ACCELERATORS} accelerators")

    @cached_property
    def _canonical(self) -> tuple[bytes, bytes]:
        data = canonical_bytes(self)
        return data, sha256(data)

    def to_bytes(self) -> bytes:
        """Return its canonical JSON."""
        return self._canonical[0]

    @property
    def digest(self) -> bytes:
        """SHA-256 of its canonical JSON, 32 bytes."""
        return self._canonical[1]

    @classmethod
    def from_bytes(cls, data: bytes) -> KeySet:
        """Return the key set in `data`.

        Raises:
            InputError: too large, none, or not in canonical form.
        """
        if len(data) > MAX_KEY_SET:
            raise InputError(f"a key set has more than {MAX_KEY_SET} bytes", fix="Ask for it again")
        try:
            keys = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InputError("this is no key set", fix="Ask the service again") from None
        if keys.to_bytes() != data:
            raise InputError("a key set is not in canonical form", fix="Ask the service again")
        return keys

    def __repr__(self) -> str:
        return f"<KeySet {self.digest.hex()[:16]} of {self.model}>"


def is_stamp(time: datetime) -> bool:
    """Return whether a time is in whole seconds of UTC, which has one written form."""
    return time.utcoffset() == timedelta(0) and not time.microsecond


def check_model_name(name: str) -> None:
    """Raise InputError unless `name` is 1 to 128 printable ASCII characters."""
    if not _MODEL.fullmatch(name):
        raise InputError(
            "a model's name is not 1 to 128 printable ASCII characters", fix="Serve it under another name"
        )


def keys_report_data(nonce: bytes, keys: KeySet) -> bytes:
    """Return the 64 bytes that a service's evidence must carry.

    Args:
        nonce: the client's own fresh 32 bytes.
        keys: the key set that it was given with the evidence.

    Raises:
        InputError: the nonce has not 32 bytes.
    """
    if len(nonce) != 32:
        raise InputError(f"a nonce has 32 bytes, not {len(nonce)}")
    return report_data(PURPOSE, nonce, keys.digest)


class Published(Struct, frozen=True, forbid_unknown_fields=True):
    """What a service answers to whoever asks for its keys; nothing in it was checked.

    Attributes:
        keys: canonical bytes of a `KeySet`.
        evidence: an `Evidence` document whose report data is `keys_report_data` of the asker's nonce.
    """

    keys: Annotated[bytes, Meta(max_length=MAX_KEY_SET)]
    evidence: Annotated[bytes, Meta(max_length=MAX_EVIDENCE)]

    def __repr__(self) -> str:
        return f"<Published {len(self.evidence)} bytes of evidence>"

    def to_json(self) -> bytes:
        """Return the document; bytes are base64."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Published:
        """Return what a document holds.

        Raises:
            InputError: too large, or not strictly one document.
        """
        if len(data) > _MAX_PUBLISHED:
            raise InputError("a service's keys and evidence are too large", fix="Check the address")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InputError(
                "this is not what a service answers for its keys", fix="Check the address: is it a service?"
            ) from None
