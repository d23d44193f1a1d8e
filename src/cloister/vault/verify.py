"""Checking a dataset from its signature to its last row.

1. manifest: signed by the owner, for this dataset, with this schema;
2. pinned: the file's length, magic and footer, and the key material, are the manifest's;
3. whole file: SHA-256 of every byte is the manifest's;
4. encryption: every column of every row group is encrypted under its own key;
5. rows: all of them decrypt, and their number and keyed fingerprints are the manifest's.
The first check that fails is the last one made: what it protects cannot be looked at further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister.crypto import digest_file
from cloister.errors import CloisterError, PolicyRefused
from cloister.types import KeyService
from cloister.vault.catalog import Catalog
from cloister.vault.checkedfile import DATA_NAME, altered
from cloister.vault.fingerprint import Fingerprints
from cloister.vault.ingest import storage_schema
from cloister.vault.manifest import Manifest
from cloister.vault.parquet import EncryptedFile

__all__ = ["Check", "verify_dataset"]


@dataclass(frozen=True)
class Check:
    """One check: its number and name, whether it holds, and what was found."""

    number: int
    name: str
    ok: bool
    detail: str


def verify_dataset(
    catalog: Catalog, name: str, keys: KeyService, owner_secret: Callable[[], bytes]
) -> Iterator[Check]:
    """Yield the checks in order, up to the first that fails.

    Args:
        catalog: where the dataset is.
        name: the dataset's, which must exist.
        keys: opens its data keys.
        owner_secret: returns the secret that keys the fingerprints.

    Raises:
        PolicyRefused: the KEK's keeper, such as a key broker, opens no data key for whoever asks here.
    """
    number, title = 1, "manifest"
    file: EncryptedFile | None = None
    try:
        manifest = catalog.manifest(name)
        yield Check(1, title, True, f"signed by {manifest.owner[:16]}, {manifest.created}")
        number, title = 2, "pinned"
        folder = catalog.require(name)
        file = EncryptedFile(folder, manifest.file, keys, manifest.kek_id)
        yield Check(2, title, True, f"{manifest.file.size} bytes, footer {manifest.file.footer_sha256[:16]}")
        number, title = 3, "whole file"
        _check_whole(folder, manifest)
        yield Check(3, title, True, f"SHA-256 {manifest.file.sha256[:16]}")
        number, title = 4, "encryption"
        columns = storage_schema(manifest.schema).names
        file.require_encrypted(columns)
        yield Check(4, title, True, f"{len(columns)} columns, each under a key of its own")
        number, title = 5, "rows"
        _check_rows(folder, manifest, file, owner_secret())
        yield Check(5, title, True, f"{manifest.rows} rows, fingerprints {manifest.fingerprints_root[:16]}")
    except PolicyRefused as error:  # the key's keeper opens nothing here: that says nothing about the dataset
        raise PolicyRefused(
            f"checks 1 to {number - 1} hold, and the rows stay closed: {error.what}",
            where=name,
            fix=error.fix,
        ) from None
    except CloisterError as error:
        yield Check(number, title, False, str(error))
    finally:
        if file is not None:
            file.close()


def _check_whole(folder: Path, manifest: Manifest) -> None:
    if digest_file(folder / DATA_NAME).hex() != manifest.file.sha256:
        raise altered(folder, "a byte of its data is not what it was")


def _check_rows(folder: Path, manifest: Manifest, file: EncryptedFile, secret: bytes) -> None:
    storage = storage_schema(manifest.schema)
    fingerprints = Fingerprints(secret, storage)
    rows = 0
    for batch in file.batches(storage.names, 65_536):
        rows += batch.num_rows
        fingerprints.add(batch)
    if rows != manifest.rows or fingerprints.root().hex() != manifest.fingerprints_root:
        raise altered(folder, "its rows are not the ones that were added")
