"""The local key service: key-encryption keys (KEKs) in one file under a passphrase.

    passphrase --scrypt--> root key --+--> opens the keystore's private key (HPKE or RSA-OAEP)
                                      +--> authenticates the table of wrapped KEKs
    private key --> opens each KEK --> wraps data keys (AES-256-GCM, associated data = KEK id)

Invariants:
- the file is written with mode 0600, as one step, under a lock, from what the file says at that moment: two
  processes that add KEKs at the same time both keep theirs;
- the table's HMAC covers every id and wrapped KEK, so that nobody without the passphrase adds, replaces or
  renames one;
- a KEK never leaves the process; in memory it stays until `close` or `destroy`.

Not covered: somebody who puts back an older copy of the whole file brings destroyed KEKs back, which is why
`destroy` says what it says. A hardware module is for those who need more.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import re
from collections.abc import Iterator
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
    constant_time_equal,
    decrypt,
    encrypt,
    hkdf,
    hmac_sha256,
    hpke_open,
    hpke_seal,
    scrypt,
)
from cloister.errors import InputError, IntegrityError, PassphraseError, StorageError
from cloister.files import read_bytes, write_atomic

__all__ = ["LocalKeystore", "Wrapping"]

_FORMAT: Final = "cloister-keystore-v1"
_INFO: Final = b"cloister keystore KEK v1"
_DATA_KEY: Final = b"cloister data key v1\x00"
_MAX_FILE: Final = 64 << 20
_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z", re.ASCII)
_SURVIVORS: Final = (
    "The key was removed from the keystore, so this copy of the data can no longer be read; copies of the "
    "keystore that may survive, in backups, snapshots or unused blocks of an SSD, still hold it under the "
    "passphrase."
)


class Wrapping(enum.Enum):
    """How KEKs are encrypted to the keystore's private key."""

    HPKE_HYBRID = "hpke-mlkem768-x25519"
    RSA_OAEP_3072 = "rsa-oaep-3072"


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the private key is bound to."""

    format: Literal["cloister-keystore-v1"]
    wrapping: Wrapping
    cost: ScryptCost
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    public: Annotated[bytes, msgspec.Meta(max_length=4096)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: _Header
    private: Annotated[bytes, msgspec.Meta(max_length=16384)]
    keks: dict[str, Annotated[bytes, msgspec.Meta(max_length=4096)]]
    mac: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class LocalKeystore(HoldsSecret):
    """A `KeyService` in a file. Use `initialise` once, then `open`."""

    __slots__ = ("_keks", "_mac_key", "_path", "_private")

    def __init__(self, path: Path, private: HpkePrivateKey | RsaKey, mac_key: bytes) -> None:
        self._path = path
        self._private = private
        self._mac_key = mac_key
        self._keks: dict[str, bytes] = {}

    @classmethod
    def initialise(
        cls,
        path: Path,
        passphrase: str,
        *,
        wrapping: Wrapping = Wrapping.HPKE_HYBRID,
        cost: ScryptCost | None = None,
    ) -> LocalKeystore:
        """Make a new keystore file and open it.

        Args:
            path: the file; its folder is made where missing.
            passphrase: at least one character.
            wrapping: how KEKs are wrapped.
            cost: of a guess at the passphrase; None for the default.

        Raises:
            InputError: the file exists.
            PassphraseError: an empty or overlong passphrase.
            StorageError: it cannot be written.
        """
        private, public, secret = _new_key(wrapping)
        header = _Header(_FORMAT, wrapping, cost or ScryptCost(), os.urandom(16), public)
        seal_key, mac_key = _root_keys(passphrase, header)
        keystore = cls(path, private, mac_key)
        with keystore._locked():
            if path.exists():
                raise InputError(
                    "a keystore exists here", where=str(path), fix="Open it, or choose another place"
                )
            keystore._write(header, encrypt(seal_key, secret, canonical_bytes(header)), {})
        return keystore

    @classmethod
    def open(cls, path: Path, passphrase: str) -> LocalKeystore:
        """Open the keystore.

        1. The file parses, within its bounds (the cost of the passphrase included).
        2. Its private key opens under the passphrase, bound to the header.
        3. The table of KEKs is authentic.

        Raises:
            InputError: step 1 fails, or the file is missing.
            PassphraseError: step 2 fails: the passphrase is wrong, or header or key were altered.
            IntegrityError: step 3 fails.
        """
        file = _read(path)
        seal_key, mac_key = _root_keys(passphrase, file.header)
        secret = None
        with contextlib.suppress(IntegrityError):
            secret = decrypt(seal_key, file.private, canonical_bytes(file.header))
        if secret is None:
            raise PassphraseError("the keystore does not open", where=str(path), fix="Check the passphrase")
        keystore = cls(path, _stored_key(file.header.wrapping, secret), mac_key)
        keystore._load()
        return keystore

    def create(self, kek_id: str) -> None:
        """Make a fresh KEK.

        Args:
            kek_id: 1 to 128 of a-z, 0-9 and . _ -, starting with a letter or digit.

        Raises:
            InputError: the id is not allowed, or taken.
            IntegrityError: the keystore file was altered.
            StorageError: the file cannot be written; nothing changed.
        """
        if not _ID.match(kek_id):
            raise InputError("a KEK's id is not allowed", fix="Use 1 to 128 of a-z, 0-9 and . _ -")
        with self._locked():
            file = self._load()
            if kek_id in file.keks:
                raise InputError("a KEK of this id exists", where=kek_id, fix="Choose another id")
            kek = os.urandom(32)
            wrapped = self._wrap_kek(file.header, kek_id, kek)
            self._write(file.header, file.private, {**file.keks, kek_id: wrapped})
        self._keks[kek_id] = kek

    def wrap(self, kek_id: str, data_key: bytes) -> bytes:
        """Return `data_key` (16 to 64 bytes) encrypted under the KEK: 28 bytes longer.

        Raises:
            InputError: the id is unknown, or the data key has another length.
            IntegrityError: the keystore file was altered.
        """
        if not 16 <= len(data_key) <= 64:
            raise InputError("a data key must have 16 to 64 bytes", fix="Wrap keys only")
        return encrypt(self._kek(kek_id), data_key, _purpose(kek_id))

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Return the data key.

        Raises:
            InputError: the id is unknown.
            IntegrityError: `wrapped` was not made under this KEK and id, or the keystore file was altered.
        """
        return decrypt(self._kek(kek_id), wrapped, _purpose(kek_id))

    def destroy(self, kek_id: str) -> str:
        """Remove the KEK; return one sentence on what may survive.

        Raises:
            InputError: the id is unknown.
            IntegrityError: the keystore file was altered.
            StorageError: the file cannot be written; nothing changed.
        """
        with self._locked():
            file = self._load()
            if kek_id not in file.keks:
                raise _unknown(kek_id)
            kept = {name: wrapped for name, wrapped in file.keks.items() if name != kek_id}
            self._write(file.header, file.private, kept)
        self._keks.pop(kek_id, None)
        return _SURVIVORS

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all KEKs. Raises IntegrityError where the keystore file was altered."""
        return tuple(self._load().keks)

    def close(self) -> None:
        """Forget the KEKs in memory; they open again on use."""
        self._keks.clear()

    def _kek(self, kek_id: str) -> bytes:
        if kek_id not in self._keks:
            file = self._load()
            if kek_id not in file.keks:
                raise _unknown(kek_id)
            self._keks[kek_id] = self._unwrap_kek(kek_id, file.keks[kek_id])
        return self._keks[kek_id]

    def _wrap_kek(self, header: _Header, kek_id: str, kek: bytes) -> bytes:
        if header.wrapping is Wrapping.RSA_OAEP_3072:
            return RsaPublicKey.from_bytes(header.public).encrypt(kek, _INFO + b"\x00" + kek_id.encode())
        public = HpkePublicKey.from_bytes(KemSuite.HYBRID, header.public)
        return hpke_seal(public, kek, info=_INFO, associated_data=kek_id.encode())

    def _unwrap_kek(self, kek_id: str, wrapped: bytes) -> bytes:
        if isinstance(self._private, RsaKey):
            return self._private.decrypt(wrapped, _INFO + b"\x00" + kek_id.encode())
        return hpke_open(self._private, wrapped, info=_INFO, associated_data=kek_id.encode())

    def _load(self) -> _File:
        file = _read(self._path)
        if not constant_time_equal(file.mac, self._mac(file.header, file.keks)):
            raise IntegrityError(
                "the keystore was altered, or is another one",
                where=str(self._path),
                fix="Restore it from a backup",
            )
        return file

    def _write(self, header: _Header, private: bytes, keks: dict[str, bytes]) -> None:
        file = _File(header, private, keks, self._mac(header, keks))
        write_atomic(self._path, msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n", mode=0o600)

    def _mac(self, header: _Header, keks: dict[str, bytes]) -> bytes:
        table = {name: wrapped.hex() for name, wrapped in keks.items()}
        return hmac_sha256(self._mac_key, canonical_bytes(header), canonical_bytes(table))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot lock the keystore: {error.strerror}", where=str(lock), fix="Check the folder"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _purpose(kek_id: str) -> bytes:
    return _DATA_KEY + kek_id.encode()


def _unknown(kek_id: str) -> InputError:
    return InputError(
        "the keystore has no KEK of this id", where=kek_id[:128], fix="Check which keystore it is"
    )


def _new_key(wrapping: Wrapping) -> tuple[HpkePrivateKey | RsaKey, bytes, bytes]:
    """Return a new private key, its public bytes and its secret bytes."""
    if wrapping is Wrapping.RSA_OAEP_3072:
        rsa = RsaKey.generate(3072)
        return rsa, rsa.public.to_bytes(), rsa.to_bytes(SECRET_ACCESS)
    hpke = HpkePrivateKey.generate(KemSuite.HYBRID)
    return hpke, hpke.public_key.to_bytes(), hpke.to_bytes(SECRET_ACCESS)


def _stored_key(wrapping: Wrapping, secret: bytes) -> HpkePrivateKey | RsaKey:
    if wrapping is Wrapping.RSA_OAEP_3072:
        return RsaKey.from_bytes(secret)
    return HpkePrivateKey.from_bytes(KemSuite.HYBRID, secret)


def _root_keys(passphrase: str, header: _Header) -> tuple[bytes, bytes]:
    root = scrypt(passphrase, header.salt, header.cost)
    return hkdf(root, info=b"cloister keystore private key v1"), hkdf(
        root, info=b"cloister keystore table v1"
    )


def _read(path: Path) -> _File:
    data = read_bytes(path, limit=_MAX_FILE, what="keystore")
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputError("this is not a keystore", where=str(path), fix="Restore it from a backup") from None
