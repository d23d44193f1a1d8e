"""The file of a local keystore, and the key pair that its KEKs are wrapped to.

    header    format, wrapping, cost and salt of the passphrase, public key
    private   the private key under AES-256-GCM, bound to the header
    keks      id to wrapped KEK
    mac       HMAC over header and keks

Both keys come from the passphrase by scrypt and HKDF. Parsing is strict, and the cost of the passphrase is
checked against its bounds before it is paid.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import (
    SECRET_ACCESS,
    HoldsSecret,
    HpkePrivateKey,
    HpkePublicKey,
    KemSuite,
    RsaKey,
    RsaPublicKey,
    ScryptCost,
    canonical_bytes,
    hkdf,
    hmac_sha256,
    hpke_open,
    hpke_seal,
    scrypt,
)
from cloister.errors import InputError
from cloister.files import read_bytes

__all__ = ["Header", "KeyFile", "StoreKey", "Wrapping", "read_keyfile", "root_keys", "table_mac"]

_INFO: Final = b"cloister keystore KEK v1"
_MAX_FILE: Final = 64 << 20


class Wrapping(enum.Enum):
    """How KEKs are encrypted to the keystore's key pair."""

    HPKE_HYBRID = "hpke-mlkem768-x25519"
    RSA_OAEP_3072 = "rsa-oaep-3072"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the private key is bound to."""

    format: Literal["cloister-keystore-v1"]
    wrapping: Wrapping
    cost: ScryptCost
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    public: Annotated[bytes, msgspec.Meta(max_length=4096)]


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    header: Header
    private: Annotated[bytes, msgspec.Meta(max_length=16384)]
    keks: dict[str, Annotated[bytes, msgspec.Meta(max_length=4096)]]
    mac: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

    def to_bytes(self) -> bytes:
        """Return the JSON of the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class StoreKey(HoldsSecret):
    """The key pair that KEKs are wrapped to."""

    __slots__ = ("_key",)

    def __init__(self, key: HpkePrivateKey | RsaKey) -> None:
        self._key = key

    @classmethod
    def generate(cls, wrapping: Wrapping) -> StoreKey:
        """Return a new key pair."""
        if wrapping is Wrapping.RSA_OAEP_3072:
            return cls(RsaKey.generate(3072))
        return cls(HpkePrivateKey.generate(KemSuite.HYBRID))

    @classmethod
    def from_bytes(cls, wrapping: Wrapping, secret: bytes) -> StoreKey:
        """Return the key pair stored by `secret_bytes`."""
        if wrapping is Wrapping.RSA_OAEP_3072:
            return cls(RsaKey.from_bytes(secret))
        return cls(HpkePrivateKey.from_bytes(KemSuite.HYBRID, secret))

    def secret_bytes(self) -> bytes:
        """Return the private key, to be encrypted at once."""
        return self._key.to_bytes(SECRET_ACCESS)

    def public_bytes(self) -> bytes:
        """Return the public key."""
        key = self._key
        return key.public.to_bytes() if isinstance(key, RsaKey) else key.public_key.to_bytes()

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Return the KEK. Raises IntegrityError where it was not wrapped to this key under this id."""
        if isinstance(self._key, RsaKey):
            return self._key.decrypt(wrapped, _label(kek_id))
        return hpke_open(self._key, wrapped, info=_INFO, associated_data=kek_id.encode())

    @staticmethod
    def wrap(header: Header, kek_id: str, kek: bytes) -> bytes:
        """Return a KEK encrypted to the header's public key, bound to its id."""
        if header.wrapping is Wrapping.RSA_OAEP_3072:
            return RsaPublicKey.from_bytes(header.public).encrypt(kek, _label(kek_id))
        public = HpkePublicKey.from_bytes(KemSuite.HYBRID, header.public)
        return hpke_seal(public, kek, info=_INFO, associated_data=kek_id.encode())


def _label(kek_id: str) -> bytes:
    return _INFO + b"\x00" + kek_id.encode()


def root_keys(passphrase: str, header: Header) -> tuple[bytes, bytes]:
    """Return the keys for the private key and for the MAC. Raises PassphraseError: empty or overlong."""
    root = scrypt(passphrase, header.salt, header.cost)
    private, table = b"cloister keystore private key v1", b"cloister keystore table v1"
    return hkdf(root, info=private), hkdf(root, info=table)


def table_mac(key: bytes, header: Header, keks: dict[str, bytes]) -> bytes:
    """Return the 32-byte MAC over header and wrapped KEKs."""
    table = {name: wrapped.hex() for name, wrapped in keks.items()}
    return hmac_sha256(key, canonical_bytes(header), canonical_bytes(table))


def read_keyfile(path: Path) -> KeyFile:
    """Return the file, nothing of it authenticated yet. Raises InputError where it is no keystore."""
    data = read_bytes(path, limit=_MAX_FILE, what="keystore")
    try:
        return msgspec.json.decode(data, type=KeyFile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputError("this is not a keystore", where=str(path), fix="Restore it from a backup") from None
