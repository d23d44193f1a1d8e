"""Signatures: Ed25519 (RFC 8032), ECDSA P-256 (FIPS 186-5), RSA-PSS from 3072 bits (RFC 8017).

Ed25519 is what Cloister signs with; those two, with SHA-256, exist for keys that an organisation already has.
A signature says that the key's owner signed these bytes, so the bytes must say what they are for: `dsse` puts
a type in front, everything else a label.

ECDSA signatures are DER and can be re-encoded by anybody into another valid one: a signature is never used as
an identifier.
"""

from __future__ import annotations

import enum
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from cloister.crypto._base import Buffer, HoldsSecret, SecretAccess, require_secret_access
from cloister.crypto._pem import load_private, private_der, private_pem
from cloister.crypto.hashing import sha256
from cloister.errors import InputError, IntegrityError

__all__ = ["SignatureAlgorithm", "SigningKey", "VerifyKey"]

_PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_PSS: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)
_RSA_BITS: Final = range(3072, 16385)


class SignatureAlgorithm(enum.Enum):
    """What a key signs with."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256-sha256"
    RSA_PSS = "rsa-pss-sha256"


def _algorithm_of(key: object) -> SignatureAlgorithm:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return SignatureAlgorithm.ED25519
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return SignatureAlgorithm.ECDSA_P256
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size in _RSA_BITS and key.public_numbers().e >= 65537:
            return SignatureAlgorithm.RSA_PSS
        raise InputError(
            "RSA below 3072 bits or with a small exponent is refused", fix="Use RSA-3072 or Ed25519"
        )
    raise InputError("this is not a key for Ed25519, ECDSA P-256 or RSA", fix="Make an Ed25519 key")


class VerifyKey:
    """A public key that checks signatures; equal where its bytes are equal."""

    __slots__ = ("_key", "algorithm")

    def __init__(self, key: _PublicKey) -> None:
        self.algorithm: Final = _algorithm_of(key)
        self._key = key

    @classmethod
    def from_bytes(cls, algorithm: SignatureAlgorithm, data: bytes) -> VerifyKey:
        """Return the key stored by `to_bytes`. Raises InputError where it is none of this algorithm."""
        try:
            key: object
            if algorithm is SignatureAlgorithm.ED25519:
                key = ed25519.Ed25519PublicKey.from_public_bytes(data)
            elif algorithm is SignatureAlgorithm.ECDSA_P256:
                key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)
            else:
                key = serialization.load_der_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(
                f"bytes are not a public key for {algorithm.value}", fix="Get the key again"
            ) from None
        if _algorithm_of(key) is not algorithm:
            raise InputError(f"a key is not for {algorithm.value}", fix="Name its own algorithm")
        return cls(key)  # type: ignore[arg-type]  # _algorithm_of has checked the type

    def to_bytes(self) -> bytes:
        """Return 32 raw bytes (Ed25519), the 65-byte point (P-256), or SubjectPublicKeyInfo in DER (RSA)."""
        if isinstance(self._key, ed25519.Ed25519PublicKey):
            return self._key.public_bytes_raw()
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            return self._key.public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
            )
        return self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @classmethod
    def from_pem(cls, data: bytes) -> VerifyKey:
        """Return the key in a "PUBLIC KEY" PEM. Raises InputError where it is none, or a refused one."""
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(
                "this is not a public key in PEM", fix="Export it as SubjectPublicKeyInfo"
            ) from None
        _algorithm_of(key)
        return cls(key)  # type: ignore[arg-type]  # _algorithm_of has checked the type

    def to_pem(self) -> bytes:
        """Return SubjectPublicKeyInfo in PEM, for other tools."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, signature: bytes, message: Buffer) -> None:
        """Return if `signature` is this key's over `message`. Raises IntegrityError if it is not."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, message)
            elif isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, message, _ECDSA)
            else:
                self._key.verify(signature, bytes(message), _PSS, hashes.SHA256())
        except InvalidSignature:
            raise IntegrityError(
                "a signature is not the named key's over these bytes", fix="Get both again from their source"
            ) from None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, VerifyKey)
            and self.algorithm is other.algorithm
            and self.to_bytes() == other.to_bytes()
        )

    def __hash__(self) -> int:
        return hash((self.algorithm, self.to_bytes()))

    def __repr__(self) -> str:
        return f"<VerifyKey {self.algorithm.value} {sha256(self.to_bytes()).hex()[:16]}>"


class SigningKey(HoldsSecret):
    """A private key that signs; `verify_key` is its public half."""

    __slots__ = ("_key", "verify_key")

    def __init__(self, key: _PrivateKey) -> None:
        self.verify_key: Final = VerifyKey(key.public_key())
        self._key = key

    @property
    def algorithm(self) -> SignatureAlgorithm:
        """What this key signs with."""
        return self.verify_key.algorithm

    @classmethod
    def generate(cls, algorithm: SignatureAlgorithm = SignatureAlgorithm.ED25519) -> SigningKey:
        """Return a new key from the operating system's randomness; RSA gets 3072 bits."""
        if algorithm is SignatureAlgorithm.ED25519:
            return cls(ed25519.Ed25519PrivateKey.generate())
        if algorithm is SignatureAlgorithm.ECDSA_P256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=3072))

    def sign(self, message: Buffer) -> bytes:
        """Return the signature over `message`: 64 bytes (Ed25519), DER (P-256), or a modulus long (RSA)."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, _ECDSA)
        return self._key.sign(bytes(message), _PSS, hashes.SHA256())

    @classmethod
    def from_bytes(cls, data: bytes) -> SigningKey:
        """Return the key stored by `to_bytes`. Raises InputError where it is none."""
        return cls._checked(load_private(data))

    def to_bytes(self, token: SecretAccess) -> bytes:
        """Return the unencrypted PKCS#8 in DER; needs `SECRET_ACCESS`."""
        require_secret_access(token)
        return private_der(self._key)

    @classmethod
    def from_pem(cls, data: bytes, passphrase: str) -> SigningKey:
        """Return the key in an encrypted PEM.

        Raises:
            PassphraseError: the passphrase is wrong, or the PEM has none.
            InputError: it is not a private key, or a refused one.
        """
        return cls._checked(load_private(data, passphrase))

    def to_pem(self, passphrase: str) -> bytes:
        """Return PKCS#8 in PEM under scrypt and AES-256-CBC, for other tools."""
        return private_pem(self._key, passphrase)

    @classmethod
    def _checked(cls, key: object) -> SigningKey:
        if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InputError(
                "this private key is not for signing with Ed25519, P-256 or RSA", fix="Make an Ed25519 key"
            )
        return cls(key)
