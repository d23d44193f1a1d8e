"""The vault: rows go in through a schema, lie encrypted, and come out for a declared purpose.

`add`, in this order:
1. name, purposes and schema are checked, and the source's columns against the schema;
2. a fresh KEK is made for the dataset, its id holding the dataset's random id;
3. rows stream from the source through the checks into the encrypted file, in a folder beside its place;
4. the file is read back: every column is encrypted under its own key;
5. the manifest is signed, and the folder is renamed into place.
Whatever fails or interrupts this leaves nothing behind: the folder is removed and the KEK destroyed. After
a power cut the folder is removed by the next `list`; its KEK stays in the keystore and opens nothing.

`open`, in this order:
1. the manifest is the owner's and this dataset's;
2. the purpose is one of the dataset's;
3. length, magic, footer and key material of the file are the manifest's, on the descriptor that is then read.

A secret of the owner, wrapped under a KEK of its own, keys the pseudonyms and the row fingerprints.

Not covered: somebody who holds the passphrase can do everything; somebody who puts back an old copy of the
whole vault, keystore included, gives back the old datasets.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from cloister.crypto import Identity, ScryptCost
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused
from cloister.files import new_directory
from cloister.types import KeyService
from cloister.vault.catalog import Catalog
from cloister.vault.dataset import Dataset
from cloister.vault.export import export_rows
from cloister.vault.fingerprint import Fingerprints
from cloister.vault.fingerprintfile import read_fingerprints, write_fingerprints
from cloister.vault.handover import Handover
from cloister.vault.ingest import Ingest, Quarantined, storage_schema
from cloister.vault.keystore import LocalKeystore, Wrapping
from cloister.vault.manifest import MANIFEST_NAME, Manifest, check_purposes, sign_manifest
from cloister.vault.ownersecret import OwnerSecret
from cloister.vault.parquet import EncryptedFile, write_encrypted
from cloister.vault.pseudonym import Pseudonyms
from cloister.vault.schema import Schema
from cloister.vault.sources import Progress, Source, TableSource, open_source
from cloister.vault.splitkeys import SplitKeys
from cloister.vault.verify import Check, verify_dataset

__all__ = ["Vault"]


class Vault:
    """The datasets of one owner.

    Args:
        root: the vault's folder; made on first use.
        identity: the owner; signs manifests.
        keys: keeps the KEKs.
    """

    def __init__(self, root: Path, identity: Identity, keys: KeyService) -> None:
        self._identity = identity
        self._keys = keys
        self._catalog = Catalog(root, identity.public)
        self._secret = OwnerSecret(root, self._catalog, keys)

    @classmethod
    def unlock(
        cls,
        root: Path,
        identity: Identity,
        passphrase: str,
        *,
        wrapping: Wrapping = Wrapping.HPKE_HYBRID,
        cost: ScryptCost | None = None,
    ) -> Vault:
        """Return the vault whose keystore is ROOT/keystore.json, made where the vault is new.

        Args:
            root: the vault's folder.
            identity: the owner.
            passphrase: of the keystore.
            wrapping: how a new keystore wraps its KEKs.
            cost: of a guess at a new keystore's passphrase; None for the default.

        Raises:
            PassphraseError: it is wrong.
            InputError: there are datasets and no keystore.
            IntegrityError: the keystore was altered.
        """
        path = root / "keystore.json"
        if path.exists():
            return cls(root, identity, LocalKeystore.open(path, passphrase))
        if Catalog(root, identity.public).names():
            raise InputError(
                "the vault has lost its keystore", where=str(path), fix="Restore it from a backup"
            )
        return cls(root, identity, LocalKeystore.initialise(path, passphrase, wrapping=wrapping, cost=cost))

    def add(
        self,
        source: Path,
        *,
        name: str,
        schema: Schema,
        purposes: Sequence[str],
        consent: str = "",
        quarantine: bool = False,
        on_quarantined: Callable[[Quarantined], None] | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        """Encrypt the rows of a CSV or Parquet file into a new dataset.

        Args:
            source: the file; it is left as it is.
            name: of the dataset.
            schema: complete.
            purposes: what the rows may be used for.
            consent: on what basis, in words.
            quarantine: leave out rows that break the schema instead of refusing the file.
            on_quarantined: called for every such row, once the dataset is written.
            progress: called with the bytes (rows, for Parquet) read so far and their total.

        Raises:
            SchemaError: a row or a column breaks the schema; line and column, never the value.
            InputError: the name is taken, or the file cannot be read.
            StorageError: the file system refused; nothing is left half-written.
        """
        return self._add(
            open_source(source), name, schema, tuple(purposes), consent, quarantine, on_quarantined, progress
        )

    def add_table(
        self,
        table: pa.Table,
        *,
        name: str,
        schema: Schema,
        purposes: Sequence[str],
        consent: str = "",
        quarantine: bool = False,
        on_quarantined: Callable[[Quarantined], None] | None = None,
    ) -> Manifest:
        """Encrypt the rows of an Arrow table into a new dataset; as `add`, with row numbers for lines."""
        return self._add(
            TableSource(table), name, schema, tuple(purposes), consent, quarantine, on_quarantined, None
        )

    def list(self) -> tuple[str, ...]:
        """Return the names of all datasets, sorted. What an interrupted `add` left behind is removed."""
        return self._catalog.names()

    def manifest(self, name: str) -> Manifest:
        """Return a dataset's manifest, its signature checked. Raises InputError, IntegrityError."""
        return self._catalog.manifest(name)

    def open(self, name: str, *, purpose: str) -> Dataset:
        """Open a dataset for one of its purposes.

        Raises:
            InputError: there is no such dataset.
            PolicyRefused: it was not added for this purpose.
            IntegrityError: it is not what its owner signed; no row was decrypted.
        """
        return self._open(name, purpose)

    def hand_over(self, name: str, *, purpose: str) -> Handover:
        """Return what a process of its own needs to read a dataset for one of its purposes.

        Raises:
            InputError: there is no such dataset.
            PolicyRefused: it was not added for this purpose.
            IntegrityError: it is not what its owner signed.
        """
        with self._open(name, purpose) as dataset:
            manifest, envelope = dataset.manifest, dataset.envelope

        def data_key(wrapped: bytes) -> bytes:
            return self._keys.unwrap(manifest.kek_id, wrapped)

        return Handover(self._catalog.require(name), envelope, manifest, data_key)

    def verify(self, name: str) -> tuple[Check, ...]:
        """Check a dataset from its signature to its last row; return the checks, up to the first that fails.

        Raises:
            InputError: there is no such dataset.
        """
        self._catalog.require(name)
        return tuple(verify_dataset(self._catalog, name, self._keys, self._secret.get))

    def fingerprints(self, name: str) -> bytes:
        """Return keyed fingerprints of a dataset's rows, in their order: 32 bytes a row.

        A privacy ledger uses them to charge rows under whatever name they come. They are computed anew from
        the rows, which are read one batch at a time and compared with the signed manifest. Columns of
        pseudonyms are left out where there are others: the same row, added for another purpose, has another
        pseudonym and must have the same fingerprint. Keep them to yourself. Of a dataset whose KEK lies
        elsewhere they were kept when it was added.

        Raises:
            InputError: there is no such dataset.
            IntegrityError: the dataset is not what its owner signed.
        """
        secret = self._secret.get()
        kept = read_fingerprints(self._catalog.require(name), self._catalog.manifest(name), secret)
        if kept is not None:
            return kept
        with self._open(name, None) as dataset:
            storage = storage_schema(dataset.schema)
            whole = Fingerprints(secret, storage)
            rows = _lasting(secret, dataset.schema) or whole
            found: list[bytes] = []
            for batch in dataset.batches():
                digests = whole.add(batch)
                found += digests if rows is whole else rows.add(batch)
            if whole.root().hex() != dataset.manifest.fingerprints_root:
                raise IntegrityError(
                    "rows of the dataset are not the ones that were added",
                    where=name,
                    fix="Run `cloister vault verify` on it",
                )
        return b"".join(found)

    def export(self, name: str, target: Path) -> int:
        """Write a dataset's rows in the clear to `target` (.csv or .parquet, mode 0600); return their number.

        Raises:
            InputError: there is no such dataset, `target` exists, or has another suffix.
            IntegrityError: the dataset is not what its owner signed; nothing is written.
            StorageError: the file system refused; nothing is left half-written.
        """
        with self._open(name, None) as dataset:
            return export_rows(dataset, target)

    def remove(self, name: str) -> str:
        """Destroy a dataset's KEK and delete its files; return a sentence on what may survive.

        Raises:
            InputError: there is no such dataset.
            StorageError: the keystore cannot be written; the dataset is as it was.
        """
        self._catalog.require(name)
        try:
            kek_id: str | None = self._catalog.manifest(name).kek_id
        except IntegrityError:
            kek_id = None
        sentence = (
            "The manifest was damaged, so the dataset's key could not be found and stays in the keystore."
        )
        if kek_id is not None:
            try:
                sentence = self._keys.destroy(kek_id)
            except InputError:
                sentence = "The key was gone already."
        self._catalog.delete(name)
        return f"The files were deleted. {sentence}"

    def _open(self, name: str, purpose: str | None) -> Dataset:
        """Open a dataset; for its owner's own eyes where `purpose` is None."""
        envelope = self._catalog.envelope(name)
        manifest = self._catalog.read(name, envelope)  # 1
        if purpose is not None and purpose not in manifest.purposes:  # 2
            raise PolicyRefused(
                f"the dataset {name!r} may not be used for {purpose!r}",
                fix=f"It was added for {', '.join(map(repr, manifest.purposes))}",
            )
        file = EncryptedFile(self._catalog.require(name), manifest.file, self._keys, manifest.kek_id)  # 3
        return Dataset(manifest, envelope, file)

    def _add(
        self,
        source: Source,
        name: str,
        schema: Schema,
        purposes: tuple[str, ...],
        consent: str,
        quarantine: bool,
        on_quarantined: Callable[[Quarantined], None] | None,
        progress: Progress | None,
    ) -> Manifest:
        folder = self._catalog.folder(name)  # 1
        if folder.exists():
            raise InputError(f"a dataset {name!r} exists", fix="Choose another name, or remove it first")
        check_purposes(purposes)
        secret = self._secret.get()
        ingest = Ingest(source, schema, Pseudonyms(secret, purposes), quarantine=quarantine)
        dataset_id = os.urandom(16).hex()
        kek_id = f"dataset.{name}.{dataset_id}"
        with (
            self._catalog.writing(),
            self._fresh_kek(kek_id) as keep,  # 2
            new_directory(folder, mode=0o700, placed=keep) as part,
        ):
            storage = storage_schema(schema)
            fingerprints = Fingerprints(secret, storage)
            kept = self._to_keep(kek_id, secret, schema)
            batches = _through(ingest.batches(progress), fingerprints, kept)
            file = write_encrypted(part, batches, storage, self._keys, kek_id)  # 3, 4
            if kept is not None:
                write_fingerprints(part, dataset_id, secret, kept.digests)
            manifest = Manifest(
                version=1,
                name=name,
                dataset_id=dataset_id,
                kek_id=kek_id,
                owner=self._identity.fingerprint,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                purposes=purposes,
                consent=consent,
                schema=schema,
                schema_sha256=schema.digest().hex(),
                rows=ingest.rows,
                without_consent=ingest.without_consent,
                quarantined=len(ingest.quarantined),
                fingerprints_root=fingerprints.root().hex(),
                file=file,
            )
            (part / MANIFEST_NAME).write_bytes(sign_manifest(manifest, self._identity))  # 5
        if on_quarantined:
            for row in ingest.quarantined:
                on_quarantined(row)
        return manifest

    def _to_keep(self, kek_id: str, secret: bytes, schema: Schema) -> _Kept | None:
        """Return what gathers fingerprints of rows that this vault will not be able to open again."""
        if not (isinstance(self._keys, SplitKeys) and self._keys.elsewhere(kek_id)):
            return None
        return _Kept(_lasting(secret, schema))

    @contextlib.contextmanager
    def _fresh_kek(self, kek_id: str) -> Iterator[Callable[[], None]]:
        """Make a KEK that is destroyed again if the block fails; yield what keeps it from then on."""
        self._keys.create(kek_id)
        kept = threading.Event()
        try:
            yield kept.set
        except BaseException:
            if not kept.is_set():
                with contextlib.suppress(CloisterError):  # the KEK of files that are gone opens nothing
                    self._keys.destroy(kek_id)
            raise


class _Kept:
    """Fingerprints that are written down: those over lasting columns, or else over all."""

    def __init__(self, lasting: Fingerprints | None) -> None:
        self._lasting = lasting
        self.digests: list[bytes] = []

    def add(self, batch: pa.RecordBatch, whole: list[bytes]) -> None:
        self.digests += whole if self._lasting is None else self._lasting.add(batch)


def _lasting(secret: bytes, schema: Schema) -> Fingerprints | None:
    """Return fingerprints over the columns that are no pseudonyms; None where all are."""
    lasting = [field for field in storage_schema(schema) if not schema.columns[field.name].pseudonym]
    return Fingerprints(secret, pa.schema(lasting)) if lasting else None


def _through(
    batches: Iterator[pa.RecordBatch], fingerprints: Fingerprints, kept: _Kept | None
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        digests = fingerprints.add(batch)
        if kept is not None:
            kept.add(batch, digests)
        yield batch
