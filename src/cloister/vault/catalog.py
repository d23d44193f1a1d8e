"""The datasets of a vault as a reader without keys sees them: names and signed manifests.

    ROOT/datasets/NAME/{data.parquet, _KEY_MATERIAL_FOR_data.parquet.json, manifest.dsse.json}

Whatever else lies there is not a dataset. Folders whose name begins with a dot and ends in .part are
datasets that an interrupted `add` left behind; `names` removes them, unless somebody is writing at this
moment (a shared lock says so).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import Identity, PublicIdentity, envelope_signers
from cloister.errors import InputError, IntegrityError, StorageError
from cloister.files import read_bytes, write_atomic
from cloister.types import check_name
from cloister.vault.manifest import MANIFEST_NAME, MAX_MANIFEST, Manifest, open_manifest, sign_manifest

__all__ = ["Catalog"]

_LOCK: Final = ".lock"


class Catalog:
    """The datasets under a vault's folder.

    Args:
        root: the vault's folder.
        owner: whose signatures count.
    """

    def __init__(self, root: Path, owner: PublicIdentity) -> None:
        self._folder = root / "datasets"
        self._owner = owner

    def names(self) -> tuple[str, ...]:
        """Return the names of all datasets, sorted; leftovers of interrupted writers are removed."""
        if not self._folder.is_dir():
            return ()
        self._clean()
        return tuple(sorted(path.name for path in self._folder.iterdir() if _is_dataset(path)))

    def folder(self, name: str) -> Path:
        """Return where a dataset of this name is or would be.

        Raises InputError for a name that is not allowed.
        """
        return self._folder / check_name(name, "a dataset's name")

    def require(self, name: str) -> Path:
        """Return the folder of a dataset. Raises InputError where there is none of this name."""
        folder = self.folder(name)
        if not folder.is_dir():
            raise InputError(f"there is no dataset {name!r}", fix="See `cloister vault ls`")
        return folder

    def envelope(self, name: str) -> bytes:
        """Return the signed manifest as it is stored.

        Raises:
            InputError: there is no such dataset.
            IntegrityError: it has lost its manifest.
        """
        path = self.require(name) / MANIFEST_NAME
        if not path.is_file():
            raise IntegrityError(
                "the dataset has no manifest", where=str(path), fix="Restore it from a backup"
            )
        return read_bytes(path, limit=MAX_MANIFEST, what="manifest")

    def manifest(self, name: str) -> Manifest:
        """Return the manifest, its signature checked, and that it is this dataset's.

        Raises:
            InputError: there is no such dataset.
            IntegrityError: the manifest is not the owner's, or another dataset's.
        """
        return self.read(name, self.envelope(name))

    def read(self, name: str, envelope: bytes) -> Manifest:
        """Return the manifest in an envelope as `manifest` does."""
        manifest = open_manifest(envelope, self._owner)
        if manifest.name != name:
            raise IntegrityError(
                "the manifest is another dataset's",
                where=name,
                fix="Restore the dataset's folder from a backup",
            )
        return manifest

    def resign(self, former: Sequence[PublicIdentity], owner: Identity) -> tuple[str, ...]:
        """Sign every manifest of a former identity anew; return the names of those datasets.

        Args:
            former: earlier identities of the owner; that they are is for the caller to know.
            owner: the identity of this catalog, with its private keys.

        Raises:
            IntegrityError: a manifest is nobody's of these; those before it are done.
            StorageError: one cannot be written; those before it are done.
        """
        done = []
        for name in self.names():
            envelope = self.envelope(name)
            signer = next((each for each in former if each.fingerprint in envelope_signers(envelope)), None)
            if signer is None:
                self.read(name, envelope)
                continue
            manifest = Catalog(self._folder.parent, signer).read(name, envelope)
            renewed = msgspec.structs.replace(manifest, owner=owner.fingerprint)
            write_atomic(self.folder(name) / MANIFEST_NAME, sign_manifest(renewed, owner))
            done.append(name)
        return tuple(done)

    def delete(self, name: str) -> None:
        """Delete a dataset's files, first of all from their place. Raises InputError, StorageError."""
        folder = self.require(name)
        part = folder.with_name(f".{name}.{secrets.token_hex(6)}.part")
        try:
            folder.rename(part)
        except OSError as error:
            raise StorageError(
                f"cannot delete the dataset: {error.strerror}", where=str(folder), fix="Check the permissions"
            ) from None
        shutil.rmtree(part, ignore_errors=True)
        if os.path.lexists(part):  # a link among them, which is not followed
            raise StorageError(
                "files of the dataset could not be deleted",
                where=str(part.resolve()),
                fix="Delete them yourself",
            )

    @contextlib.contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[None]:
        """Say that somebody writes below while the block runs; `alone` waits until nobody else does."""
        with self._lock(fcntl.LOCK_EX if alone else fcntl.LOCK_SH) as locked:
            if not locked:
                raise StorageError("the vault cannot be locked", where=str(self._folder), fix="Try again")
            yield

    def _clean(self) -> None:
        leftovers = [path for path in self._folder.glob(".*.part") if path.is_dir()]
        if not leftovers:
            return
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            for path in leftovers if alone else ():
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[bool]:
        """Hold the lock file; yield whether it was had."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot lock the vault: {error.strerror}", where=str(self._folder), fix="Check the folder"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, kind)
                locked = True
            except BlockingIOError:
                locked = False
            yield locked
        finally:
            os.close(descriptor)


def _is_dataset(path: Path) -> bool:
    with contextlib.suppress(InputError):
        check_name(path.name)
        return (path / MANIFEST_NAME).is_file()
    return False
