"""Credential activation: how a verifier learns that an attestation key is inside a TPM it knows.

A TPM's maker certifies its endorsement key (EK), which cannot sign. A verifier encrypts a secret to that EK
together with the name of an attestation key (AK); the TPM gives the secret away only if it holds both. Who
has seen the secret come back may sign that, and others may take that word:

    offer = challenge(ek, ak_public)                     # verifier; offer.credential and offer.secret travel
    answer = ...                                         # TPM2_ActivateCredential, by the attester
    if offer.answers(answer): statement = certify(...)   # verifier; travels as the endorsement "activation"

Source: TPM 2.0 Library, part 1, section 24 (credential protection), 11.4.10 (KDFa, KDFe), B.10.4, C.6.4. EKs
are those of the TCG EK Credential Profile's low-range templates: RSA-2048 or P-256, SHA-256, AES-128-CFB.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.crypto import VerifyKey, canonical_bytes, constant_time_equal, open_envelope, sign_envelope
from cloister.crypto.dsse import Signer
from cloister.enclave.kinds.tpmwire import PublicKey, parse_public
from cloister.errors import CloisterError, InputError

__all__ = ["ACTIVATION_TYPE", "Offer", "certify", "challenge", "is_activated", "key_digest"]

ACTIVATION_TYPE: Final = "application/vnd.cloister.tpm-activation+json"
_SECRET: Final = 32
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ak: Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{2}){34,66}\Z")]
    ek: _Digest
    since: datetime
    until: datetime


class Offer(NamedTuple):
    """What a verifier sends, and what it keeps.

    Attributes:
        credential: TPM2B_ID_OBJECT, to the TPM.
        secret: TPM2B_ENCRYPTED_SECRET, to the TPM.
        expected: what must come back, 32 bytes; kept.
    """

    credential: bytes
    secret: bytes
    expected: bytes

    def __repr__(self) -> str:
        return "<Offer of a credential>"

    def answers(self, answer: bytes) -> bool:
        """Tell, in constant time, whether `answer` is what only that TPM could find."""
        return constant_time_equal(self.expected, answer)


def challenge(ek: PublicKey, ak_public: bytes) -> Offer:
    """Return a challenge that only the TPM with both keys can answer (TPM2_MakeCredential, in software).

    Args:
        ek: the endorsement key, from its certificate.
        ak_public: TPMT_PUBLIC of the attestation key.

    Raises:
        InputError: the attestation key is not a restricted signing key of its TPM, or a key is of a kind
            that is not accepted.
    """
    ak = parse_public(ak_public)
    if not ak.restricted:
        raise InputError("an attestation key is not a restricted signing key that stays in its TPM")
    expected = os.urandom(_SECRET)
    seed, secret = _share_seed(ek)
    encrypted = _cfb(_kdfa(seed, b"STORAGE", ak.name, 128), _sized(expected))
    tag = hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), encrypted + ak.name, "sha256")
    return Offer(_sized(_sized(tag) + encrypted), _sized(secret), expected)


def certify(signer: Signer, *, ak_name: bytes, ek: PublicKey, at: datetime, days: int = 30) -> bytes:
    """Return a signed statement that the challenge was answered: the endorsement "activation".

    Args:
        signer: the verifier's identity.
        ak_name: name of the attestation key, as `PublicArea.name`.
        ek: the endorsement key.
        at: when, with its zone.
        days: for how long others may rely on it.
    """
    since = at.astimezone(UTC).replace(microsecond=0)
    statement = _Statement(ak_name.hex(), key_digest(ek), since, since + timedelta(days=days))
    return sign_envelope(ACTIVATION_TYPE, canonical_bytes(statement), [signer])


def is_activated(
    data: bytes, keys: Mapping[str, VerifyKey], *, ak_name: bytes, ek: PublicKey, at: datetime
) -> tuple[bool, str]:
    """Tell whether a trusted verifier states that an AK and an EK are in one TPM, and if not, why.

    Args:
        data: what `certify` returned.
        keys: the trusted verifiers, by fingerprint.
        ak_name: name of the key that signed the quote.
        ek: the key that the maker's certificate names.
        at: the time of appraisal.
    """
    try:
        payload = open_envelope(data, ACTIVATION_TYPE, keys)
        statement = msgspec.json.decode(payload, type=_Statement)
    except (CloisterError, msgspec.DecodeError) as error:
        return False, f"credential activation is not stated by a trusted verifier: {error}"
    if not hmac.compare_digest(statement.ak, ak_name.hex()) or statement.ek != key_digest(ek):
        return False, "credential activation was of other keys"
    if statement.since.tzinfo is None or statement.until.tzinfo is None:
        return False, "credential activation has a time without a zone"
    if not statement.since <= at <= statement.until:
        return False, "credential activation is not in force at this time"
    return True, ""


def key_digest(key: PublicKey) -> str:
    """Return SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _share_seed(ek: PublicKey) -> tuple[bytes, bytes]:
    """Return a fresh seed and what tells it to the TPM: RSA-OAEP (B.10.4) or one-pass ECDH (C.6.4)."""
    if isinstance(ek, rsa.RSAPublicKey) and ek.key_size == 2048:
        seed = os.urandom(32)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        return seed, ek.encrypt(seed, oaep)
    if isinstance(ek, ec.EllipticCurvePublicKey) and isinstance(ek.curve, ec.SECP256R1):
        once = ec.generate_private_key(ec.SECP256R1())
        point = once.public_key().public_numbers()
        x, y = point.x.to_bytes(32), point.y.to_bytes(32)
        shared = once.exchange(ec.ECDH(), ek)
        party = ek.public_numbers().x.to_bytes(32)
        seed = hashlib.sha256(b"\0\0\0\1" + shared + b"IDENTITY\0" + x + party).digest()  # KDFe
        return seed, _sized(x) + _sized(y)
    raise InputError("an endorsement key is neither RSA-2048 nor P-256")


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa: SP 800-108 in counter mode with HMAC-SHA-256, one block (part 1, 11.4.10.2)."""
    message = b"\0\0\0\1" + label + b"\0" + context + bits.to_bytes(4)
    return hmac.digest(key, message, "sha256")[: bits // 8]


def _cfb(key: bytes, data: bytes) -> bytes:
    """AES-CFB with an IV of zeros (B.2): the key is used once; the tag over it is the caller's."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # the block cipher itself
    previous, parts = bytes(16), []
    for at in range(0, len(data), 16):
        pad = block.update(previous)
        previous = bytes(a ^ b for a, b in zip(data[at : at + 16], pad, strict=False))
        parts.append(previous)
    return b"".join(parts)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data
