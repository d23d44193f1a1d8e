"""Private keys in PKCS#8: encrypted PEM for other tools, DER for callers who hold `SECRET_ACCESS`.

The library writes encrypted PEM under 2048 rounds of PBKDF2 and offers no choice, which an attacker's
graphics card guesses through. So the envelope is written here: PBES2 (RFC 8018) with scrypt (RFC 7914,
section 7; n = 2**14, r = 8, p = 8: OWASP's strongest that fits the memory OpenSSL allows itself) and
AES-256-CBC. The library, and OpenSSL from 1.1, read it.
"""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cloister.crypto.kdf import SALT_BYTES, ScryptCost, passphrase_bytes, scrypt
from cloister.errors import InputError, PassphraseError

__all__ = ["load_private", "private_der", "private_pem"]

_COST: Final = ScryptCost(n=2**14, r=8, p=8)
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42
_MAX_KEY: Final = 32 << 10


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    length = bytes([len(body)]) if len(body) < 0x80 else bytes([0x80 | len(size)]) + size
    return bytes([tag]) + length + body


def _number(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def private_pem(key: PrivateKeyTypes, passphrase: str) -> bytes:
    """Return the key in PKCS#8 PEM, encrypted. Raises PassphraseError for an empty or overlong passphrase."""
    salt, iv = os.urandom(SALT_BYTES), os.urandom(16)
    pad = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(scrypt(passphrase, salt, _COST)), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(pad.update(private_der(key)) + pad.finalize()) + encryptor.finalize()
    cost = (_number(_COST.n), _number(_COST.r), _number(_COST.p), _number(32))
    derivation = _der(_SEQUENCE, _SCRYPT, _der(_SEQUENCE, _der(_OCTETS, salt), *cost))
    scheme = _der(
        _SEQUENCE, _PBES2, _der(_SEQUENCE, derivation, _der(_SEQUENCE, _AES_256_CBC, _der(_OCTETS, iv)))
    )
    text = base64.b64encode(_der(_SEQUENCE, scheme, _der(_OCTETS, ciphertext)))
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join(
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, b"-----END ENCRYPTED PRIVATE KEY-----", b"")
    )


def private_der(key: PrivateKeyTypes) -> bytes:
    """Return the key in PKCS#8 DER, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_private(data: bytes, passphrase: str | None = None) -> PrivateKeyTypes:
    """Return the key in encrypted PEM, or in DER where there is no passphrase.

    Raises:
        PassphraseError: the passphrase is wrong, or the PEM is not encrypted.
        InputError: these bytes are not a private key.
    """
    if len(data) > _MAX_KEY:
        raise InputError("bytes are too many for a private key", fix="Check which file it is")
    secret = None if passphrase is None else passphrase_bytes(passphrase)
    try:
        if secret is None:
            return serialization.load_der_private_key(data, None)
        return serialization.load_pem_private_key(data, secret)
    except TypeError:
        raise PassphraseError(
            "a private key is not encrypted", fix="Encrypt it, or check which file it is"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        if secret is not None and b"BEGIN ENCRYPTED PRIVATE KEY" in data:
            raise PassphraseError("the private key does not open", fix="Check the passphrase") from None
        raise InputError("bytes are not a private key in PKCS#8", fix="Check which file it is") from None
