"""Private keys in PKCS#8: encrypted PEM for other tools, DER for callers who hold `SECRET_ACCESS`."""

from __future__ import annotations

import unicodedata
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization.pkcs12 import PBES

from cloister.errors import InputError, PassphraseError

__all__ = ["load_private", "private_der", "private_pem"]

_ROUNDS: Final = 600_000  # OWASP's figure for PBKDF2-HMAC-SHA-256


def _passphrase(text: str) -> bytes:
    if not text:
        raise PassphraseError("a passphrase is empty", fix="Choose one")
    return unicodedata.normalize("NFC", text).encode()


def private_pem(key: PrivateKeyTypes, passphrase: str) -> bytes:
    """Return the key in PKCS#8 PEM, encrypted."""
    builder = serialization.PrivateFormat.PKCS8.encryption_builder()
    encryption = (
        builder.kdf_rounds(_ROUNDS)
        .key_cert_algorithm(PBES.PBESv2SHA256AndAES256CBC)
        .build(_passphrase(passphrase))
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


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
    secret = None if passphrase is None else _passphrase(passphrase)
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
