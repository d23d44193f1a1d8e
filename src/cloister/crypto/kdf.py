"""Keys from secrets (HKDF-SHA256, RFC 5869) and from passphrases (scrypt, RFC 7914)."""

from __future__ import annotations

import unicodedata
from typing import Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cloister.errors import InputError, PassphraseError

__all__ = ["SALT_BYTES", "ScryptCost", "hkdf", "passphrase_bytes", "scrypt"]

SALT_BYTES: Final = 16
_MAX_HKDF: Final = 255 * 32
_MAX_PASSPHRASE: Final = 1024
_MAX_MEMORY: Final = 1 << 30  # a stored cost must not let a forged file exhaust the machine


class ScryptCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a guess costs: 128 * n * r bytes of memory, p times. The default is 128 MiB and half a second."""

    n: int = 2**17
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        power_of_two = self.n >= 2 and self.n & (self.n - 1) == 0
        if not (
            power_of_two and 1 <= self.r <= 32 and 1 <= self.p <= 16 and 128 * self.n * self.r <= _MAX_MEMORY
        ):
            raise InputError(
                "a scrypt cost is out of bounds",
                fix="n must be a power of two, r 1 to 32, p 1 to 16, memory at most 1 GiB",
            )


def hkdf(secret: bytes, *, info: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    """Return `length` bytes of key from a secret of high entropy.

    Args:
        secret: what both sides have, such as the result of an exchange; never a passphrase.
        info: what the key is for; different uses, different info.
        salt: anything both sides know, not necessarily secret.
        length: 1 to 8160 bytes.

    Raises:
        InputError: the secret is empty, or the length out of range.
    """
    if not secret or not 1 <= length <= _MAX_HKDF:
        raise InputError(f"HKDF needs a secret and a length of 1 to {_MAX_HKDF} bytes", fix="Check both")
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def passphrase_bytes(passphrase: str | bytes) -> bytes:
    """Return what is hashed: text in NFC and UTF-8. Raises PassphraseError where it is empty or overlong."""
    data = unicodedata.normalize("NFC", passphrase).encode() if isinstance(passphrase, str) else passphrase
    if not 0 < len(data) <= _MAX_PASSPHRASE:
        raise PassphraseError(
            f"a passphrase must have 1 to {_MAX_PASSPHRASE} bytes", fix="Choose another one"
        )
    return data


def scrypt(passphrase: str | bytes, salt: bytes, cost: ScryptCost | None = None) -> bytes:
    """Return a 32-byte key from a passphrase.

    Args:
        passphrase: text is taken in Unicode form NFC and UTF-8, so that it does not depend on the keyboard.
        salt: at least 16 random bytes, stored beside what the key protects.
        cost: stored beside it too; None for the default.

    Raises:
        PassphraseError: empty, or longer than 1024 bytes.
        InputError: the salt is too short.
    """
    data = passphrase_bytes(passphrase)
    if len(salt) < SALT_BYTES:
        raise InputError(f"a salt must have at least {SALT_BYTES} bytes", fix="Take it from os.urandom")
    return _derive(data, salt, cost or ScryptCost())


def _derive(passphrase: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    return Scrypt(salt=salt, length=32, n=cost.n, r=cost.r, p=cost.p).derive(passphrase)
