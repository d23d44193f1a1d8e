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
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.crypto import (
    HoldsSecret,
    ScryptCost,
    canonical_bytes,
    constant_time_equal,
    decrypt,
    encrypt,
)
from cloister.errors import InputError, IntegrityError, PassphraseError, StorageError
from cloister.files import write_atomic
from cloister.vault.keyfile import Header, KeyFile, StoreKey, Wrapping, read_keyfile, root_keys, table_mac

__all__ = ["LocalKeystore", "Wrapping"]

_FORMAT: Final = "cloister-keystore-v1"
_DATA_KEY: Final = b"cloister data key v1\x00"
_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z", re.ASCII)
_SURVIVORS: Final = (
    "The key was removed from the keystore, so this copy of the data can no longer be read; copies of the "
    "keystore that may survive, in backups, snapshots or unused blocks of an SSD, still hold it under the "
    "passphrase."
)


class LocalKeystore(HoldsSecret):
    """A `KeyService` in a file. Use `initialise` once, then `open`."""

    __slots__ = ("_keks", "_key", "_mac_key", "_path")

    def __init__(self, path: Path, key: StoreKey, mac_key: bytes) -> None:
        self._path = path
        self._key = key
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
        key = StoreKey.generate(wrapping)
        header = Header(_FORMAT, wrapping, cost or ScryptCost(), os.urandom(16), key.public_bytes())
        seal_key, mac_key = root_keys(passphrase, header)
        keystore = cls(path, key, mac_key)
        with keystore._locked():
            if path.exists():
                raise InputError(
                    "a keystore exists here", where=str(path), fix="Open it, or choose another place"
                )
            keystore._write(header, encrypt(seal_key, key.secret_bytes(), canonical_bytes(header)), {})
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
        file = read_keyfile(path)
        seal_key, mac_key = root_keys(passphrase, file.header)
        secret = None
        with contextlib.suppress(IntegrityError):
            secret = decrypt(seal_key, file.private, canonical_bytes(file.header))
        if secret is None:
            raise PassphraseError("the keystore does not open", where=str(path), fix="Check the passphrase")
        keystore = cls(path, StoreKey.from_bytes(file.header.wrapping, secret), mac_key)
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
            wrapped = StoreKey.wrap(file.header, kek_id, kek)
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
            self._keks[kek_id] = self._key.unwrap(kek_id, file.keks[kek_id])
        return self._keks[kek_id]

    def _load(self) -> KeyFile:
        file = read_keyfile(self._path)
        if not constant_time_equal(file.mac, table_mac(self._mac_key, file.header, file.keks)):
            raise IntegrityError(
                "the keystore was altered, or is another one",
                where=str(self._path),
                fix="Restore it from a backup",
            )
        return file

    def _write(self, header: Header, private: bytes, keks: dict[str, bytes]) -> None:
        file = KeyFile(header, private, keks, table_mac(self._mac_key, header, keks))
        write_atomic(self._path, file.to_bytes(), mode=0o600)

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
