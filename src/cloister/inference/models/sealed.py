"""A sealed model: its files, encrypted in a folder, read at any place without ever being on a disk in clear.

    data key     32 fresh bytes, wrapped by a key service, committed to in the manifest
    files        each under a key of its own, in chunks of 1 MiB (`sealedfile`)

`opened_model`, in this order:
1. the manifest is the owner's (`manifest.open_manifest`);
2. each file is opened once, is no link, is a regular file and has exactly the length that follows;
3. the data key is asked for, once, and is the one that was committed to; keys of files are made, and it goes.
After that the folder is not needed: the files stay open, and walls may go up.

Reading decrypts the chunks that are asked for and returns nothing that did not authenticate. So a chunk that
is changed, moved, repeated, cut off or of another file, another model or another sealing of the same model
fails, and so does a manifest that lists these files otherwise, whoever signed it: the files' keys hang on the
digest of the whole set. Nothing beside the listed files is ever looked at; plaintext put in a file's place
does not decrypt.

`digest` is the owner's word until every byte was read (`hashed`): whoever tells others by it which model
answers, as a service does in its key set, checks it first.

What it does not do: it does not notice an older folder of the same owner in the place of a newer one (see
`manifest`), and does not hide names, sizes, or which chunks are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.crypto import TAG_BYTES, HoldsSecret, PublicIdentity, constant_time_equal
from cloister.errors import InputError
from cloister.files import read_bytes
from cloister.inference.models.manifest import (
    CHUNK,
    MANIFEST_NAME,
    MAX_MANIFEST,
    ModelManifest,
    chunks_of,
    open_manifest,
)
from cloister.inference.models.sealedfile import EncryptedFile, altered, commitment, file_key
from cloister.learning.modelfiles.files import check_range, no_such_file

__all__ = [
    "OpenDataKey",
    "SealedModel",
    "is_sealed_model",
    "opened_model",
    "read_envelope",
]

OpenDataKey = Callable[[bytes], bytes]
"""Takes the wrapped data key, as the manifest has it; returns it. Raises IntegrityError, PolicyRefused."""


def is_sealed_model(folder: Path) -> bool:
    """Tell whether a folder says that it is a sealed model; nothing is verified."""
    return os.path.lexists(folder / MANIFEST_NAME)


def read_envelope(folder: Path) -> bytes:
    """Return the signed manifest of a sealed model, unverified.

    Raises:
        InputError: the folder is no sealed model, or its manifest cannot be read or is too large.
        IntegrityError: its manifest is a link, or no file.
    """
    if not is_sealed_model(folder):
        raise InputError(
            "the folder is no sealed model", where=str(folder), fix="Make one with `cloister model seal`"
        )
    if (folder / MANIFEST_NAME).is_symlink() or not (folder / MANIFEST_NAME).is_file():
        raise altered(folder, "its manifest is no file, or a link")
    return read_bytes(folder / MANIFEST_NAME, limit=MAX_MANIFEST, what="sealed model's manifest")


class SealedModel(HoldsSecret):
    """The files of a sealed model; a `ModelFiles`. Made by `opened_model` or `open`. For several threads.

    Attributes:
        manifest: what the owner signed.
        names: sorted.
        digest: of the files in the clear, as the owner says; see `hashed`.
    """

    def __init__(self, manifest: ModelManifest, files: dict[str, EncryptedFile]) -> None:
        self.manifest: Final = manifest
        self.names: Final = tuple(files)
        self.digest: Final = manifest.digest
        self._files = files
        self._edge: tuple[str, int, bytes] | None = None  # tensors rarely end where chunks do

    @classmethod
    def open(cls, folder: Path, owner: PublicIdentity, data_key: OpenDataKey) -> SealedModel:
        """Open the model in a folder; see `opened_model`."""
        return opened_model(folder, read_envelope(folder), owner, data_key)

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises InputError where there is none of that name."""
        return self._file(name).size

    def read(self, name: str) -> bytes:
        """Return a whole file; raises as `read_at`."""
        return self.read_at(name, 0, self.size(name))

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises:
            InputError: there is no such file, it has no such bytes, or it cannot be read.
            IntegrityError: it was altered; nothing of it is returned.
        """
        file = self._range(name, offset, length)
        first, skip = divmod(offset, CHUNK)
        if length and skip + length <= file.length(first):
            return self._part(file, first)[skip : skip + length]
        out = bytearray(length)
        self.read_into(name, offset, memoryview(out))
        return bytes(out)

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on, decrypted straight into it: the way for large tensors.

        Args:
            name: of the file.
            offset: in bytes.
            out: writable and contiguous, such as a tensor's storage. Where an error is raised, what is in it
                is to be thrown away.

        Raises:
            InputError, IntegrityError: as `read_at`.
        """
        view = out.cast("B")
        file = self._range(name, offset, len(view))
        scratch = memoryview(bytearray(min(CHUNK, max(file.size, 1)) + TAG_BYTES))
        done = 0
        while done < len(view):
            number, skip = divmod(offset + done, CHUNK)
            whole = file.length(number)
            take = min(whole - skip, len(view) - done)
            if take == whole:
                file.chunk_into(number, view[done : done + take], scratch)
            else:
                view[done : done + take] = memoryview(self._part(file, number))[skip : skip + take]
            done += take

    def check(self, name: str) -> None:
        """Raise IntegrityError unless every chunk of a file opens; an empty file has one, too."""
        file = self._file(name)
        scratch, out = memoryview(bytearray(CHUNK + TAG_BYTES)), memoryview(bytearray(CHUNK))
        for number in range(chunks_of(file.size)):
            file.chunk_into(number, out[: file.length(number)], scratch)

    def close(self) -> None:
        """Close the files and drop their keys; nothing can be read afterwards."""
        self._edge = None
        for file in self._files.values():
            file.close()

    def __enter__(self) -> SealedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            file.close()

    def _part(self, file: EncryptedFile, number: int) -> bytes:
        """Return a chunk of which a part is wanted; the last such chunk is kept."""
        kept = self._edge
        if kept is not None and kept[:2] == (file.name, number):
            return kept[2]
        out = bytearray(file.length(number))
        file.chunk_into(number, memoryview(out), memoryview(bytearray(len(out) + TAG_BYTES)))
        self._edge = (file.name, number, bytes(out))
        return self._edge[2]

    def _range(self, name: str, offset: int, length: int) -> EncryptedFile:
        file = self._file(name)
        check_range(name, file.size, offset, length)
        return file

    def _file(self, name: str) -> EncryptedFile:
        found = self._files.get(name)
        if found is None:
            raise no_such_file(name)
        return found


def opened_model(folder: Path, envelope: bytes, owner: PublicIdentity, data_key: OpenDataKey) -> SealedModel:
    """Open a sealed model; see the module's docstring for the order.

    Args:
        folder: where it lies.
        envelope: its signed manifest, as `read_envelope` gave it to whoever asked for the model.
        owner: whose signature counts.
        data_key: asks whoever keeps the key: the home's process, a key service, or a broker. Called once.

    Raises:
        IntegrityError: the manifest is not the owner's, or the folder is not the manifest's.
        InputError: a file cannot be read.
        CloisterError: as `data_key` does.
    """
    manifest = open_manifest(envelope, owner)  # 1
    files: dict[str, EncryptedFile] = {}
    try:
        for number, each in enumerate(manifest.files):
            files[each.name] = EncryptedFile(folder, number, each)  # 2
        key = data_key(manifest.wrapped)  # 3
        if len(key) != 32 or not constant_time_equal(commitment(key), manifest.commitment):
            raise altered(folder, "its data key is not the one that it was sealed under")
        for number, file in enumerate(files.values()):
            place = (manifest.model_id, manifest.digest, number, file.name, file.size)
            file.unlock(file_key(key, *place))
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return SealedModel(manifest, files)
