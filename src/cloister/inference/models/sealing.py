"""Sealing a model: from its files, as they were checked, to an encrypted folder signed by its owner.

`seal_model`, in this order:
1. the name and the files' names are allowed;
2. a fresh KEK is made for this sealing, and a fresh data key is wrapped under it;
3. each file is encrypted chunk by chunk, in memory, into a folder beside its place; the next chunk is read
   (and, of a plain folder, hashed) in another thread meanwhile;
4. the manifest is signed, and the folder is renamed into place.
Whatever fails or interrupts this leaves nothing behind: the folder is removed and the KEK destroyed. Nothing
in clear is written anywhere at any time. The source is left as it is; to delete it is for its owner.

What is sealed is what was checked: `ModelFiles` returns nothing that its digest was not made of.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes

from cloister.crypto import KEY_BYTES, Identity, PublicIdentity, Sealer, sha256
from cloister.errors import CloisterError
from cloister.files import new_directory
from cloister.inference.models.manifest import (
    CHUNK,
    FILES,
    MANIFEST_NAME,
    Kind,
    ModelManifest,
    SealedFile,
    check_files,
    chunks_of,
    model_kek,
    sign_manifest,
    stored_name,
)
from cloister.inference.models.sealedfile import chunk_label, commitment, file_key
from cloister.learning.modelfiles.files import ModelFiles, check_range, no_such_file, set_digest
from cloister.types import KeyService, RandomBytes, check_name

__all__ = ["MemoryFiles", "seal_model"]


class MemoryFiles:
    """A model's files in memory, such as that of a verified release; a `ModelFiles`.

    Args:
        contents: name to content.
    """

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = dict(sorted(contents.items()))
        self.names: Final = tuple(self._contents)
        self.digest: Final = set_digest(
            (name, len(data), sha256(data)) for name, data in self._contents.items()
        )

    def __repr__(self) -> str:
        return f"MemoryFiles({', '.join(self.names)})"

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises InputError where there is none of that name."""
        return len(self.read(name))

    def read(self, name: str) -> bytes:
        """Return a whole file. Raises InputError where there is none of that name."""
        if name not in self._contents:
            raise no_such_file(name)
        return self._contents[name]

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on. Raises InputError beyond the end."""
        data = self.read(name)
        check_range(name, len(data), offset, length)
        return data[offset : offset + length]

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on; raises as `read_at`."""
        view = out.cast("B")
        view[:] = self.read_at(name, offset, len(view))


@dataclass(frozen=True)
class _Keys:
    """What is known of the keys once step 2 is done. Its `repr` shows none."""

    kek_id: str
    model_id: str
    wrapped: bytes
    data_key: bytes
    kept: threading.Event

    def __repr__(self) -> str:
        return f"<_Keys {self.kek_id}>"


def seal_model(
    source: ModelFiles,
    target: Path,
    owner: Identity,
    *,
    name: str,
    kind: Kind,
    keys: KeyService,
    broker: PublicIdentity | None = None,
    release: str | None = None,
    insecure_test_random: RandomBytes | None = None,
) -> ModelManifest:
    """Encrypt a model into a new folder; see the module's docstring for the order.

    Args:
        source: its files, checked.
        target: the folder to make; it must not exist, unless as an empty one.
        owner: signs the manifest.
        name: under which clients will ask for it.
        kind: what serves it.
        keys: makes the KEK and wraps the data key: a keystore, or a key broker.
        broker: the identity of that broker; None for a keystore.
        release: digest of the certificate of the release that it came from.
        insecure_test_random: source of id and data key in tests.

    Raises:
        InputError: a name is not allowed, `target` exists, or the source cannot be read.
        IntegrityError: the source was changed while it was read.
        StorageError: the file system refused; nothing is left half-written.
        CloisterError: as `keys` does.
    """
    check_name(name, "a model's name")  # 1
    check_files(source.names)
    random = insecure_test_random or os.urandom
    with (
        _fresh(keys, name, random) as fresh,  # 2
        new_directory(target, mode=0o700, placed=fresh.kept.set) as part,
    ):
        (part / FILES).mkdir()
        sealed = tuple(
            _seal_file(source, part, number, each, fresh) for number, each in enumerate(source.names)
        )
        manifest = ModelManifest(
            version=1,
            name=name,
            model_id=fresh.model_id,
            kind=kind,
            owner=owner.fingerprint,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            kek_id=fresh.kek_id,
            broker=None if broker is None else broker.to_json(),
            wrapped=fresh.wrapped,
            commitment=commitment(fresh.data_key),
            chunk=CHUNK,
            digest=source.digest,
            release=release,
            files=sealed,
        )
        (part / MANIFEST_NAME).write_bytes(sign_manifest(manifest, owner))  # 4
    return manifest


@contextlib.contextmanager
def _fresh(keys: KeyService, name: str, random: RandomBytes) -> Iterator[_Keys]:
    """Make a KEK that is destroyed again if the block fails before it is `kept`, and a data key under it."""
    model_id, data_key, kept = random(16).hex(), random(KEY_BYTES), threading.Event()
    kek_id = model_kek(name, model_id)
    keys.create(kek_id)
    try:
        yield _Keys(kek_id, model_id, keys.wrap(kek_id, data_key), data_key, kept)
    except BaseException:
        if not kept.is_set():
            with contextlib.suppress(CloisterError):  # the KEK of files that are gone opens nothing
                keys.destroy(kek_id)
        raise


def _seal_file(source: ModelFiles, folder: Path, number: int, name: str, keys: _Keys) -> SealedFile:
    """Encrypt one file: step 3."""
    size = source.size(name)
    key = file_key(keys.data_key, keys.model_id, source.digest, number, name, size)
    sealer, state, last = Sealer(key, CHUNK), hashes.Hash(hashes.SHA256()), chunks_of(size) - 1
    with (folder / stored_name(number)).open("xb", buffering=0) as out, ThreadPoolExecutor(1) as ahead:

        def read(index: int) -> Future[bytes]:
            start = index * CHUNK
            return ahead.submit(source.read_at, name, start, min(CHUNK, size - start))

        coming = read(0)
        for index in range(last + 1):
            chunk = coming.result()
            if index < last:
                coming = read(index + 1)
            sealed = sealer.seal(chunk, chunk_label(index, last=index == last))
            state.update(sealed)
            _write(out.fileno(), sealed)
    return SealedFile(name, size, state.finalize().hex())


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
