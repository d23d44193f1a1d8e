"""Sealed models to test with: three small files, one of several chunks, one empty, and a key service in memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloister.crypto import Identity, decrypt, encrypt, sign_envelope
from cloister.errors import InputError
from cloister.inference.models.manifest import (
    CHUNK,
    MANIFEST_NAME,
    PAYLOAD_TYPE,
    ModelManifest,
    open_manifest,
)
from cloister.inference.models.sealed import SealedModel, opened_model, read_envelope
from cloister.inference.models.sealing import seal_model
from cloister.learning.modelfiles.files import PlainFolder

WEIGHTS = os.urandom(2 * CHUNK + 4321)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "empty.json": b"",
    "model.safetensors": WEIGHTS,
    "tokenizer/tokenizer.json": b'{"version": "1.0"}' * 100,
}


@functools.cache
def person(name: str) -> Identity:
    return Identity.generate(name)


class Keys:
    """A key service whose keys are in a dictionary."""

    def __init__(self) -> None:
        self.keks: dict[str, bytes] = {}

    def create(self, kek_id: str) -> None:
        if kek_id in self.keks:
            raise InputError("taken")
        self.keks[kek_id] = os.urandom(32)

    def wrap(self, kek_id: str, data_key: bytes) -> bytes:
        return encrypt(self.keks[kek_id], data_key, kek_id.encode())

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        if kek_id not in self.keks:
            raise InputError("unknown")
        return decrypt(self.keks[kek_id], wrapped, kek_id.encode())

    def destroy(self, kek_id: str) -> str:
        del self.keks[kek_id]
        return "gone"

    def of(self, manifest: ModelManifest) -> Callable[[bytes], bytes]:
        return lambda wrapped: self.unwrap(manifest.kek_id, wrapped)


def write_files(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, data in (FILES if files is None else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sealed(
    root: Path, keys: Keys, *, name: str = "ada", owner: str = "ann", files: dict[str, bytes] | None = None
) -> Path:
    """Seal a model below `root`; return its folder."""
    source = PlainFolder(write_files(root / f"{name}-plain", files))
    seal_model(source, root / name, person(owner), name=name, kind="language", keys=keys)
    source.close()
    return root / name


def manifest_of(folder: Path, owner: str = "ann") -> ModelManifest:
    return open_manifest(read_envelope(folder), person(owner).public)


def opened(folder: Path, keys: Keys, owner: str = "ann") -> SealedModel:
    manifest = manifest_of(folder, owner)
    return opened_model(folder, read_envelope(folder), person(owner).public, keys.of(manifest))


def read_all(folder: Path, keys: Keys, owner: str = "ann") -> dict[str, bytes]:
    with opened(folder, keys, owner) as model:
        for name in model.names:
            model.check(name)
        return {name: model.read(name) for name in model.names}


def resigned(folder: Path, payload: object, signer: str = "ann", kind: str = PAYLOAD_TYPE) -> None:
    """Put a manifest of anybody's making into a folder."""
    (folder / MANIFEST_NAME).write_bytes(sign_envelope(kind, msgspec.json.encode(payload), [person(signer)]))
