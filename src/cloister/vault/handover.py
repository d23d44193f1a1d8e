"""Handing a dataset to another process: what it needs to read the rows itself, and no more.

The vault's own process keeps the keystore. The reader gets the folder of one dataset, its signed manifest,
and somebody to ask for that dataset's data keys, one by one. It takes nothing on trust:

1. the manifest is the owner's, and the dataset may be used for the purpose;
2. length, magic, footer and key material of the file are the manifest's, on the descriptor that is read.

A data key opens one column of one dataset; the KEK that wraps it does not leave its keeper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cloister.crypto import PublicIdentity
from cloister.errors import InputError, PolicyRefused
from cloister.vault.dataset import Dataset
from cloister.vault.manifest import Manifest, open_manifest
from cloister.vault.parquet import EncryptedFile

__all__ = ["Handover", "OpenDataKey", "open_handed"]

OpenDataKey = Callable[[bytes], bytes]
"""Takes a data key as the dataset's key material has it, wrapped, and returns it. Raises IntegrityError."""


@dataclass(frozen=True)
class Handover:
    """One dataset, for a reader in another process. Made by `Vault.hand_over`, once its purpose was checked.

    Attributes:
        folder: where the encrypted file and its key material lie.
        envelope: the signed manifest.
        manifest: what it says.
        data_key: opens this dataset's data keys and no others; stays with the vault.
    """

    folder: Path
    envelope: bytes
    manifest: Manifest
    data_key: OpenDataKey


class _OneKek:
    """A key service of which nothing can be asked but one dataset's data keys."""

    def __init__(self, kek_id: str, data_key: OpenDataKey) -> None:
        self._kek_id, self._data_key = kek_id, data_key

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Return the data key. Raises InputError for another KEK, IntegrityError as the keeper does."""
        if kek_id != self._kek_id:
            raise self._refuse()
        return self._data_key(wrapped)

    def create(self, kek_id: str) -> None:
        """Raise InputError."""
        self._refuse()

    def wrap(self, kek_id: str, data_key: bytes) -> bytes:
        """Raise InputError."""
        self._refuse()

    def destroy(self, kek_id: str) -> str:
        """Raise InputError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError("a reader of one dataset has no other keys", where=self._kek_id)


def open_handed(
    folder: Path, envelope: bytes, owner: PublicIdentity, *, purpose: str, data_key: OpenDataKey
) -> Dataset:
    """Open a dataset that was handed over; see the module's docstring for the order.

    Args:
        folder: where it lies.
        envelope: its signed manifest, as the vault's process has it.
        owner: whose signature counts.
        purpose: what the rows are used for.
        data_key: asks the vault's process, or whoever keeps the KEK.

    Raises:
        IntegrityError: the manifest is not the owner's, or the file is not the manifest's.
        PolicyRefused: the dataset was not added for this purpose.
    """
    manifest = open_manifest(envelope, owner)  # 1
    if purpose not in manifest.purposes:
        raise PolicyRefused(
            f"the dataset {manifest.name!r} may not be used for {purpose!r}",
            fix=f"It was added for {', '.join(map(repr, manifest.purposes))}",
        )
    keys = _OneKek(manifest.kek_id, data_key)
    return Dataset(manifest, envelope, EncryptedFile(folder, manifest.file, keys, manifest.kek_id))  # 2
