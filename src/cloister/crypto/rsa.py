"""RSA-OAEP with SHA-256 (RFC 8017) from 3072 bits, for key stores and HSMs; everything else uses `hpke`.

PKCS#1 v1.5 encryption does not exist here: its padding is an oracle.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cloister.crypto._base import HoldsSecret, SecretAccess, require_secret_access
from cloister.crypto._pem import load_private, private_der, private_pem
from cloister.crypto.hashing import refuse_weak, sha256
from cloister.errors import InputError, IntegrityError

__all__ = ["RsaKey", "RsaPublicKey"]

_MAX_BITS: Final = 16384


def _oaep(label: bytes) -> padding.OAEP:
    if not label:
        raise InputError("an OAEP label is empty", fix="Name what is encrypted")
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=label)


def _check_size(bits: int, exponent: int) -> None:
    refuse_weak(f"rsa-{bits:03d}")
    if bits > _MAX_BITS or exponent < 65537:
        raise InputError(
            "this RSA key is too long, or its exponent is below 65537", fix="Use RSA-3072 with 65537"
        )


class RsaPublicKey:
    """Encrypts short secrets to the owner of the private key."""

    __slots__ = ("_key",)

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        _check_size(key.key_size, key.public_numbers().e)
        self._key = key

    @classmethod
    def from_bytes(cls, data: bytes) -> RsaPublicKey:
        """Return the key in SubjectPublicKeyInfo DER. Raises InputError: it is none, or below 3072 bits."""
        try:
            key = serialization.load_der_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, rsa.RSAPublicKey):
            raise InputError("bytes are not an RSA public key", fix="Get the key again")
        return cls(key)

    def to_bytes(self) -> bytes:
        """Return SubjectPublicKeyInfo in DER."""
        return self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def encrypt(self, plaintext: bytes, label: bytes) -> bytes:
        """Return `plaintext` encrypted under OAEP, as long as the modulus.

        Args:
            plaintext: at most 318 bytes with RSA-3072.
            label: what it is for, at least one byte; the opener must give the same.

        Raises:
            InputError: too long, or an empty label.
        """
        try:
            return self._key.encrypt(plaintext, _oaep(label))
        except ValueError:
            raise InputError(
                "the plaintext is too long for RSA-OAEP", fix="Encrypt a key, and the rest under it"
            ) from None

    def __repr__(self) -> str:
        return f"<RsaPublicKey {self._key.key_size} {sha256(self.to_bytes()).hex()[:16]}>"


class RsaKey(HoldsSecret):
    """An RSA private key for OAEP; `public` is its public half."""

    __slots__ = ("_key", "public")

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self.public: Final = RsaPublicKey(key.public_key())
        self._key = key

    @classmethod
    def generate(cls, bits: int = 3072) -> RsaKey:
        """Return a new key. Raises InputError below 3072 bits."""
        _check_size(bits, 65537)
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=bits))

    def decrypt(self, ciphertext: bytes, label: bytes) -> bytes:
        """Return the plaintext. Raises IntegrityError: it was altered, or is for another key or label."""
        try:
            return self._key.decrypt(ciphertext, _oaep(label))
        except ValueError:
            raise IntegrityError(
                "RSA-encrypted bytes do not open: altered, or for another key or label", fix="Get them again"
            ) from None

    @classmethod
    def from_bytes(cls, data: bytes) -> RsaKey:
        """Return the key stored by `to_bytes`. Raises InputError where it is none."""
        return cls._checked(load_private(data))

    def to_bytes(self, token: SecretAccess) -> bytes:
        """Return the unencrypted PKCS#8 in DER; needs `SECRET_ACCESS`."""
        require_secret_access(token)
        return private_der(self._key)

    @classmethod
    def from_pem(cls, data: bytes, passphrase: str) -> RsaKey:
        """Return the key in an encrypted PEM. Raises PassphraseError or InputError if it does not open."""
        return cls._checked(load_private(data, passphrase))

    def to_pem(self, passphrase: str) -> bytes:
        """Return encrypted PKCS#8 in PEM, for other tools."""
        return private_pem(self._key, passphrase)

    @classmethod
    def _checked(cls, key: object) -> RsaKey:
        if not isinstance(key, rsa.RSAPrivateKey):
            raise InputError("this private key is not RSA", fix="Check which file it is")
        return cls(key)
