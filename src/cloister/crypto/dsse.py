"""Signed envelopes: DSSE v1.0 (github.com/secure-systems-lab/dsse), in JSON.

What is signed is PAE(type, payload): the type is inside the signature, so that a manifest is never taken for
a plan. Payload and signatures are in standard base64; the URL-safe alphabet, which the specification also
lets a reader accept, is not.

`open_envelope`, in this order:
1. the envelope parses, within its size, with no field more or less;
2. its type is the expected one;
3. every signature whose key id the caller knows verifies; those of unknown keys are ignored, and count for
   nothing;
4. at least `required` different keys have signed.
Only then the payload is returned; nothing has parsed it before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Protocol

import msgspec

from cloister.crypto.signing import VerifyKey
from cloister.errors import InputError, IntegrityError

__all__ = [
    "Signer",
    "countersign",
    "envelope_signers",
    "open_envelope",
    "pre_authentication_encoding",
    "sign_envelope",
]

MAX_ENVELOPE: Final = 64 << 20


class Signer(Protocol):
    """Whoever signs envelopes: an `Identity`."""

    @property
    def fingerprint(self) -> str:
        """The key id that goes into the envelope."""

    def sign(self, message: bytes, /) -> bytes:
        """Return the signature over `message`."""


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: Annotated[str, msgspec.Meta(max_length=256)]
    sig: Annotated[bytes, msgspec.Meta(min_length=1, max_length=4096)]


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: bytes
    payloadType: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]  # noqa: N815  # the name in the specification
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1024)]


_DECODER: Final = msgspec.json.Decoder(_Envelope)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: "DSSEv1" SP len(type) SP type SP len(payload) SP payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _encode(envelope: _Envelope) -> bytes:
    return msgspec.json.encode(envelope)


def _decode(data: bytes) -> _Envelope:
    if len(data) > MAX_ENVELOPE:
        raise IntegrityError(
            f"a signed envelope is larger than {MAX_ENVELOPE} bytes", fix="Check where it came from"
        )
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(
            f"this is not a signed envelope: {error}", fix="Check which file it is"
        ) from None


def sign_envelope(payload_type: str, payload: bytes, signers: Sequence[Signer]) -> bytes:
    """Return the JSON envelope of `payload`, signed by each of `signers` in order.

    Raises:
        InputError: no signer, or an empty type.
    """
    if not signers or not payload_type:
        raise InputError("an envelope needs a type and a signer", fix="Give both")
    message = pre_authentication_encoding(payload_type, payload)
    signatures = tuple(_Signature(signer.fingerprint, signer.sign(message)) for signer in signers)
    return _encode(_Envelope(payload, payload_type, signatures))


def countersign(data: bytes, payload_type: str, signer: Signer) -> bytes:
    """Return the envelope with `signer`'s signature added or replaced; the others are kept, unverified.

    Raises:
        IntegrityError: not an envelope, or of another type.
    """
    envelope = _decode(data)
    _check_type(envelope, payload_type)
    message = pre_authentication_encoding(payload_type, envelope.payload)
    kept = tuple(s for s in envelope.signatures if s.keyid != signer.fingerprint)
    return _encode(
        _Envelope(
            envelope.payload, payload_type, (*kept, _Signature(signer.fingerprint, signer.sign(message)))
        )
    )


def open_envelope(
    data: bytes, payload_type: str, keys: Mapping[str, VerifyKey], *, required: int = 1
) -> bytes:
    """Return the payload, if enough of the given keys have signed it.

    Args:
        data: the JSON envelope.
        payload_type: the only type that is accepted.
        keys: key id (an identity's fingerprint) to key; the caller's trust.
        required: how many different keys must have signed.

    Raises:
        InputError: `required` is below 1.
        IntegrityError: any of the four steps fails.
    """
    if required < 1:
        raise InputError("an envelope must need at least one signature", fix="Give required >= 1")
    envelope = _decode(data)  # 1
    _check_type(envelope, payload_type)  # 2
    message = pre_authentication_encoding(payload_type, envelope.payload)
    signed: set[VerifyKey] = set()
    for signature in envelope.signatures:  # 3
        key = keys.get(signature.keyid)
        if key is not None:
            key.verify(signature.sig, message)
            signed.add(key)
    if len(signed) < required:  # 4
        raise IntegrityError(
            f"a signed envelope has {len(signed)} of {required} needed signatures by known keys",
            fix="Check who should have signed, and that their identities are trusted",
        )
    return envelope.payload


def envelope_signers(data: bytes) -> tuple[str, ...]:
    """Return the key ids that claim to have signed; nothing is verified. Raises IntegrityError."""
    return tuple(signature.keyid for signature in _decode(data).signatures)


def _check_type(envelope: _Envelope, payload_type: str) -> None:
    if envelope.payloadType != payload_type:
        raise IntegrityError(
            f"a signed envelope is of another type than {payload_type}", fix="Check which file it is"
        )
