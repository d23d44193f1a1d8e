"""Hybrid public key encryption (RFC 9180), base mode, single shot: HKDF-SHA256 and AES-256-GCM.

Two key encapsulations: X25519 (RFC 9180, 0x0020) for traffic of the day, and ML-KEM-768 with X25519 (X-Wing,
0x647a) for what must stay closed when quantum computers come.

The library's public interface takes no associated data, only the private one does. Here both contexts go into
HPKE's info, as label | SHA-256(info) | SHA-256(associated data): every call encapsulates anew and info enters
the key schedule, so bytes sealed under one context do not open under another, exactly as with an AAD. An
implementation elsewhere that follows RFC 9180 opens them with this info and an empty AAD.

Base mode says nothing about the sender. The sealed form is enc | ciphertext | tag.
"""

from __future__ import annotations

import enum
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from cloister.crypto._base import HoldsSecret, SecretAccess, check_length, require_secret_access
from cloister.crypto.hashing import sha256
from cloister.errors import InputError, IntegrityError

__all__ = ["HpkePrivateKey", "HpkePublicKey", "KemSuite", "hpke_open", "hpke_seal"]

_LABEL: Final = b"cloister hpke v1"
_X25519_BYTES: Final = 32
_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_SEED_BYTES: Final = 64


class KemSuite(enum.Enum):
    """Which key encapsulation a key is for."""

    X25519 = "x25519"
    HYBRID = "mlkem768-x25519"

    @property
    def public_bytes(self) -> int:
        """Length of a public key: 32, or 1216 (ML-KEM-768 | X25519)."""
        return _X25519_BYTES + (_MLKEM_PUBLIC_BYTES if self is KemSuite.HYBRID else 0)

    @property
    def private_bytes(self) -> int:
        """Length of a private key: 32, or 96 (ML-KEM-768 seed d | z, then X25519)."""
        return _X25519_BYTES + (_MLKEM_SEED_BYTES if self is KemSuite.HYBRID else 0)

    @property
    def _suite(self) -> Suite:
        kem = KEM.MLKEM768_X25519 if self is KemSuite.HYBRID else KEM.X25519
        return Suite(kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class HpkePublicKey:
    """A recipient's public key; equal where suite and bytes are equal."""

    __slots__ = ("_data", "_key", "suite")

    def __init__(self, suite: KemSuite, data: bytes) -> None:
        check_length(data, suite.public_bytes, f"a public key for {suite.value}")
        self.suite: Final = suite
        self._data = bytes(data)
        self._key: X25519PublicKey | MLKEM768X25519PublicKey
        try:
            x25519 = X25519PublicKey.from_public_bytes(self._data[-_X25519_BYTES:])
            if suite is KemSuite.HYBRID:
                mlkem = MLKEM768PublicKey.from_public_bytes(self._data[:_MLKEM_PUBLIC_BYTES])
                self._key = MLKEM768X25519PublicKey(mlkem, x25519)
            else:
                self._key = x25519
        except ValueError:
            raise InputError(
                f"bytes are not a public key for {suite.value}", fix="Get the key again"
            ) from None
        except UnsupportedAlgorithm:
            raise InputError(
                "this build of cryptography lacks ML-KEM", fix="Install the official wheel"
            ) from None

    @classmethod
    def from_bytes(cls, suite: KemSuite, data: bytes) -> HpkePublicKey:
        """Return the key stored as `data`. Raises InputError where it is none of this suite."""
        return cls(suite, data)

    def to_bytes(self) -> bytes:
        """Return 32 bytes (X25519) or 1216 bytes (ML-KEM-768 | X25519)."""
        return self._data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HpkePublicKey) and (self.suite, self._data) == (other.suite, other._data)

    def __hash__(self) -> int:
        return hash((self.suite, self._data))

    def __repr__(self) -> str:
        return f"<HpkePublicKey {self.suite.value} {sha256(self._data).hex()[:16]}>"


class HpkePrivateKey(HoldsSecret):
    """A recipient's private key."""

    __slots__ = ("_key", "_mlkem", "_x25519", "public_key", "suite")

    def __init__(self, suite: KemSuite, data: bytes) -> None:
        check_length(data, suite.private_bytes, f"a private key for {suite.value}")
        self.suite: Final = suite
        self._x25519 = X25519PrivateKey.from_private_bytes(data[-_X25519_BYTES:])
        self._mlkem: MLKEM768PrivateKey | None = None
        self._key: X25519PrivateKey | MLKEM768X25519PrivateKey = self._x25519
        public = self._x25519.public_key().public_bytes_raw()
        if suite is KemSuite.HYBRID:
            self._mlkem = MLKEM768PrivateKey.from_seed_bytes(data[:_MLKEM_SEED_BYTES])
            self._key = MLKEM768X25519PrivateKey(self._mlkem, self._x25519)
            public = self._mlkem.public_key().public_bytes_raw() + public
        self.public_key: Final = HpkePublicKey(suite, public)

    @classmethod
    def generate(cls, suite: KemSuite = KemSuite.HYBRID) -> HpkePrivateKey:
        """Return a new key from the operating system's randomness."""
        x25519 = X25519PrivateKey.generate().private_bytes_raw()
        mlkem = MLKEM768PrivateKey.generate().private_bytes_raw() if suite is KemSuite.HYBRID else b""
        return cls(suite, mlkem + x25519)

    @classmethod
    def from_bytes(cls, suite: KemSuite, data: bytes) -> HpkePrivateKey:
        """Return the key stored as `data`. Raises InputError for a wrong length."""
        return cls(suite, data)

    def to_bytes(self, token: SecretAccess) -> bytes:
        """Return 32 secret bytes (X25519) or 96 (ML-KEM-768 seed | X25519); needs `SECRET_ACCESS`."""
        require_secret_access(token)
        seed = self._mlkem.private_bytes_raw() if self._mlkem else b""
        return seed + self._x25519.private_bytes_raw()


def _context(info: bytes, associated_data: bytes) -> bytes:
    return b"".join((_LABEL, sha256(info), sha256(associated_data)))


def hpke_seal(public: HpkePublicKey, plaintext: bytes, *, info: bytes, associated_data: bytes) -> bytes:
    """Return `plaintext` encrypted to the owner of `public`: 48 bytes longer (X25519) or 1136 (hybrid).

    Args:
        public: the recipient's key.
        plaintext: the message.
        info: the protocol and its version; the opener must give the same.
        associated_data: what this message belongs to; the opener must give the same.

    Raises:
        InputError: the key is one of small order.
    """
    try:
        return public.suite._suite.encrypt(plaintext, public._key, _context(info, associated_data))
    except ValueError:
        raise InputError(
            "this public key cannot be sealed to", fix="Get the key again from its owner"
        ) from None


def hpke_open(private: HpkePrivateKey, sealed: bytes, *, info: bytes, associated_data: bytes) -> bytes:
    """Return the message in `sealed`.

    Raises:
        IntegrityError: altered, sealed to another key, or under other info or associated data.
    """
    try:
        return private.suite._suite.decrypt(sealed, private._key, _context(info, associated_data))
    except (InvalidTag, ValueError):
        raise IntegrityError(
            "sealed bytes do not open: they were altered, or are for another key or context",
            fix="Ask the sender to seal them again",
        ) from None
