"""Two key services as one: a local keystore beside one that lies elsewhere, such as a key broker."""

from __future__ import annotations

from typing import Final

from cloister.types import KeyService
from cloister.vault.keystore import LocalKeystore

__all__ = ["SplitKeys"]

_DATASET: Final = "dataset."  # how ids of datasets' KEKs begin


class SplitKeys(KeyService):
    """Keys of datasets that the local keystore does not have are the other's, all else is its own.

    Args:
        local: the keystore; holds the vault's own secret.
        other: where KEKs of datasets are.
        new: whether KEKs of new datasets go to the other.
    """

    def __init__(self, local: LocalKeystore, other: KeyService, *, new: bool) -> None:
        self._local = local
        self._other = other
        self._new = new

    def create(self, kek_id: str) -> None:
        """Make a fresh KEK: in the other service, if it is a dataset's and those go there."""
        (self._other if self._new and kek_id.startswith(_DATASET) else self._local).create(kek_id)

    def wrap(self, kek_id: str, data_key: bytes) -> bytes:
        """Return a wrapped data key."""
        return self._of(kek_id).wrap(kek_id, data_key)

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Return a data key; PolicyRefused where its KEK is with a broker and nothing here is attested."""
        return self._of(kek_id).unwrap(kek_id, wrapped)

    def destroy(self, kek_id: str) -> str:
        """Destroy a KEK where it is; return what may survive."""
        return self._of(kek_id).destroy(kek_id)

    def elsewhere(self, kek_id: str) -> bool:
        """Tell whether a KEK is a dataset's and not in the local keystore."""
        return kek_id.startswith(_DATASET) and kek_id not in self._local.ids()

    def _of(self, kek_id: str) -> KeyService:
        return self._other if self.elsewhere(kek_id) else self._local
