"""Checking a sealed model from its signature to its last byte.

1. manifest: signed by the owner, and well-formed;
2. folder: it holds exactly the manifest's files, each of the length that follows;
3. encrypted files: SHA-256 of each is the manifest's;
4. key: the data key opens and is the one that was committed to;
5. content: every chunk of every file opens, and the files in clear have the manifest's digest.
The first check that fails is the last one made. The first three need no key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.crypto import PublicIdentity, digest_file
from cloister.errors import CloisterError, PolicyRefused
from cloister.inference.models.hashed import check_digest
from cloister.inference.models.manifest import (
    FILES,
    MANIFEST_NAME,
    ModelManifest,
    encrypted_size,
    open_manifest,
    stored_name,
)
from cloister.inference.models.sealed import OpenDataKey, opened_model
from cloister.inference.models.sealedfile import altered
from cloister.vault.verify import Check

__all__ = ["BROKER_NOTE", "Check", "verify_model"]

BROKER_NOTE: Final = "broker.json"
"""Where a folder notes, unsigned, at which socket its key broker is: the one further file it may have."""


def verify_model(
    folder: Path, envelope: bytes, owner: PublicIdentity, data_key: OpenDataKey
) -> Iterator[Check]:
    """Yield the checks in order, up to the first that fails.

    Args:
        folder: where the model lies.
        envelope: its signed manifest.
        owner: whose it must be.
        data_key: opens its data key.

    Raises:
        PolicyRefused: the keeper of the key, such as a key broker, opens nothing for whoever asks here.
    """
    number, title = 1, "manifest"
    try:
        manifest = open_manifest(envelope, owner)
        yield Check(1, title, True, f"signed by {owner.name} {owner.fingerprint[:16]}, {manifest.created}")
        number, title = 2, "folder"
        _check_folder(folder, manifest)
        yield Check(2, title, True, f"{len(manifest.files)} files, {manifest.size} bytes in the clear")
        number, title = 3, "encrypted files"
        for index, file in enumerate(manifest.files):
            if digest_file(folder / stored_name(index)).hex() != file.sealed_sha256:
                raise altered(folder, f"a byte of {stored_name(index)} is not what it was")
        yield Check(3, title, True, "every byte is as it was sealed")
        number, title = 4, "key"
        with opened_model(folder, envelope, owner, data_key) as model:
            yield Check(4, title, True, "the committed one")
            number, title = 5, "content"
            check_digest(model)
        yield Check(5, title, True, f"digest {manifest.digest[:16]}")
    except PolicyRefused as error:  # the key's keeper opens nothing here: that says nothing about the model
        raise PolicyRefused(
            f"checks 1 to {number - 1} hold, and the content stays closed: {error.what}",
            where=str(folder),
            fix=error.fix,
        ) from None
    except CloisterError as error:
        yield Check(number, title, False, str(error))


def _check_folder(folder: Path, manifest: ModelManifest) -> None:
    """Raise IntegrityError where something is missing, of another length, a link, or does not belong."""
    expected = {stored_name(number): encrypted_size(file.size) for number, file in enumerate(manifest.files)}
    found = {each.name for each in os.scandir(folder)} - {MANIFEST_NAME, BROKER_NOTE, FILES}
    inner = folder / FILES
    if inner.is_dir():
        found |= {f"{FILES}/{each.name}" for each in os.scandir(inner)}
    for name in sorted(found ^ set(expected)):
        what = "is missing" if name in expected else "does not belong to it"
        raise altered(folder, f"{name[:100]!r} {what}")
    for name, size in expected.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            raise altered(folder, f"{name} is no file, or not of the length that was signed")
