"""The secret of a vault's owner: 32 bytes that key pseudonyms and row fingerprints.

It lies beside the keystore, wrapped under a KEK of its own. It is made with the first dataset. It is never
replaced while there are datasets: another secret would give the same people other pseudonyms without a
word.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from cloister.errors import InputError, IntegrityError
from cloister.files import read_bytes, write_atomic
from cloister.types import KeyService
from cloister.vault.catalog import Catalog

__all__ = ["OwnerSecret"]

_KEK: Final = "vault.owner"


class OwnerSecret:
    """Reads the secret, and makes it where the vault is new.

    Args:
        root: the vault's folder.
        catalog: the vault's datasets.
        keys: keeps the secret's KEK.
    """

    def __init__(self, root: Path, catalog: Catalog, keys: KeyService) -> None:
        self._path = root / "owner.key"
        self._catalog = catalog
        self._keys = keys

    def get(self) -> bytes:
        """Return the 32 secret bytes.

        Raises:
            IntegrityError: it was altered, or is missing though there are datasets.
            StorageError: it cannot be written.
        """
        if not self._path.exists():
            with self._catalog.writing(alone=True):
                if not self._path.exists():  # still
                    self._make()
        return self._keys.unwrap(_KEK, read_bytes(self._path, limit=1024, what="owner's secret"))

    def _make(self) -> None:
        if self._catalog.names():
            raise IntegrityError(
                "the vault has lost its owner's secret", where=str(self._path), fix="Restore it from a backup"
            )
        with contextlib.suppress(InputError):  # of a first attempt that did not get as far as the file
            self._keys.destroy(_KEK)
        self._keys.create(_KEK)
        write_atomic(self._path, self._keys.wrap(_KEK, os.urandom(32)), mode=0o600)
