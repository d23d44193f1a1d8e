"""Parquet with Parquet Modular Encryption: standard files, a data key for each column, an encrypted footer.

Arrow's library encrypts and decrypts. What it does not do is notice: it reads a file swapped for another
under the same keys, and even a plaintext file, without complaint, and leaves a column it was not told of in
the clear. Hence:

Writing (`write_encrypted`), in this order:
1. every leaf column is listed and gets its own data key, wrapped under the dataset's KEK, in a key-material
   file beside the data;
2. the file is read back: the encrypted footer names exactly the columns that were meant, and the metadata
   of every column of every row group opens under that column's own key and no other.

Reading (`EncryptedFile`), in this order:
1. `CheckedFile` opens the file once and checks length, magic, footer and key material against the manifest;
2. the library gets footer and key material from the memory that was digested, and pages from that one
   descriptor, each authenticated by its own GCM tag under keys that only this footer and key material lead
   to, and bound to its place in this file.
So replacing the file after the check changes nothing, and changing a page yields an error and never a row.

Statistics (minima and maxima) are not written. Column names are percent-encoded where the library's list
syntax would misread them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pq_encryption

from cloister.errors import StorageError
from cloister.types import KeyService
from cloister.vault.checkedfile import (
    DATA_NAME,
    KEY_MATERIAL_NAME,
    CheckedFile,
    FileDigests,
    altered,
    digest_files,
)
from cloister.vault.keymaterial import KeyClient, KeyMaterial

__all__ = ["EncryptedFile", "write_encrypted"]

_ROW_GROUP_ROWS: Final = 65_536
_SPECIAL: Final = "%.,:; "  # what means something in the library's list of columns, or in a path


def write_encrypted(
    folder: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema, keys: KeyService, kek_id: str
) -> FileDigests:
    """Write rows as an encrypted file and its key material into `folder`.

    Args:
        folder: where to; it must not have such files.
        batches: the rows, in the types of `schema`, any number in a batch.
        schema: flat columns.
        keys: the key service.
        kek_id: an existing KEK, used for this file alone.

    Raises:
        IntegrityError: a column came out unencrypted.
        OSError: the file system refused (for `files.new_directory` to translate).
    """
    files: dict[str, bytes] = {}
    factory, client = _factory(keys, kek_id)
    stored = pa.schema([field.with_name(_encode(field.name)) for field in schema])
    properties = factory.file_encryption_properties(
        pq_encryption.KmsConnectionConfig(kms_instance_id="cloister"),
        pq_encryption.EncryptionConfiguration(
            footer_key=kek_id,
            column_keys={kek_id: stored.names},
            encryption_algorithm="AES_GCM_V1",
            plaintext_footer=False,
            double_wrapping=False,
            internal_key_material=False,
            data_key_length_bits=256,
        ),
        parquet_file_path=DATA_NAME,
        filesystem=pa_fs.PyFileSystem(KeyMaterial(files)),
    )
    try:
        with (folder / DATA_NAME).open("xb") as file:
            _write_rows(file, batches, stored, properties)
    finally:
        _forget(factory, client)
    with (folder / KEY_MATERIAL_NAME).open("xb") as file:
        file.write(files[KEY_MATERIAL_NAME])
    digests = digest_files(folder)
    written = EncryptedFile(folder, digests, keys, kek_id)
    try:
        written.require_encrypted(schema.names)
    finally:
        written.close()
    return digests


def _write_rows(
    file: io.BufferedWriter,
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    properties: pq_encryption.FileEncryptionProperties,
) -> None:
    writer = pq.ParquetWriter(
        file, schema, encryption_properties=properties, compression="zstd", write_statistics=False
    )
    try:
        for group in _row_groups(batches):
            writer.write_table(
                group.rename_columns(schema.names).cast(schema), row_group_size=_ROW_GROUP_ROWS
            )
    except BaseException:
        with contextlib.suppress(Exception):  # the file is thrown away; what went wrong first is what counts
            writer.close()
        raise
    writer.close()


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows in tables of one row group each; the last may be shorter."""
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        pending.append(batch)
        rows += batch.num_rows
        while rows >= _ROW_GROUP_ROWS:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, _ROW_GROUP_ROWS)
            pending = table.slice(_ROW_GROUP_ROWS).to_batches()
            rows -= _ROW_GROUP_ROWS
    if rows:
        yield pa.Table.from_batches(pending)


class EncryptedFile:
    """A file made by `write_encrypted`, opened and checked against what the manifest says.

    Args:
        folder: where data and key material lie.
        digests: from the signed manifest.
        keys: the key service.
        kek_id: the dataset's KEK.

    Raises:
        IntegrityError: a check fails; nothing was decrypted.
    """

    def __init__(self, folder: Path, digests: FileDigests, keys: KeyService, kek_id: str) -> None:
        self._folder, self._keys, self._kek_id = folder, keys, kek_id
        self._checked = CheckedFile(folder, digests)

    def batches(self, names: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some columns, in order.

        Args:
            names: columns to decrypt; the others stay closed.
            batch_rows: rows in a batch, at most.

        Raises:
            IntegrityError: a page was altered, or the keys are not this file's; no wrong row was yielded.
            StorageError: the file system refused to read.
        """
        encoded = [_encode(name) for name in names]
        with self._parquet() as (file, _, _):
            for batch in file.iter_batches(batch_rows, columns=encoded, use_threads=False):
                yield batch.select(encoded).rename_columns(list(names))

    def require_encrypted(self, names: Sequence[str]) -> None:
        """Raise IntegrityError unless exactly these columns are there, each under a key of its own."""
        with self._parquet() as (file, client, column_keys):
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            if leaves != [_encode(name) for name in names] or len(column_keys) != len(names):
                raise altered(self._folder, "its columns are not the declared ones")
            for group in range(file.metadata.num_row_groups):
                asked = [_key_of(client, file.metadata, group, index) for index in range(len(names))]
                if set(asked) != column_keys:
                    raise altered(self._folder, "a column is not encrypted under a key of its own")

    def close(self) -> None:
        """Close the file."""
        self._checked.close()

    @contextlib.contextmanager
    def _parquet(self) -> Iterator[tuple[pq.ParquetFile, KeyClient, frozenset[str]]]:
        """Open the file for the library; translate its errors, and forget the keys afterwards."""
        factory, client = _factory(self._keys, self._kek_id)
        reason = None
        try:
            column_keys = client.prepare(self._checked.material)
            properties = factory.file_decryption_properties(
                pq_encryption.KmsConnectionConfig(kms_instance_id="cloister"),
                parquet_file_path=DATA_NAME,
                filesystem=pa_fs.PyFileSystem(KeyMaterial({KEY_MATERIAL_NAME: self._checked.material})),
            )
            source = pa.PythonFile(self._checked.reader(), "r")
            with pq.ParquetFile(source, decryption_properties=properties) as file:
                yield file, client, column_keys
        except (pa.ArrowException, OSError) as error:
            reason = (isinstance(error, OSError) and error.errno) or 0
        finally:
            _forget(factory, client)
        if reason == 0:
            raise altered(self._folder, "its rows do not decrypt")
        if reason is not None:
            raise StorageError(
                f"cannot read the rows: {os.strerror(reason)}", where=str(self._folder), fix="Check the disk"
            )


def _key_of(client: KeyClient, metadata: pq.FileMetaData, group: int, index: int) -> str | None:
    """Return the one wrapped key that the library needs for a column's metadata; None for none or several."""
    client.asked.clear()
    metadata.row_group(group).column(index)
    return client.asked[0] if len(set(client.asked)) == 1 else None


def _factory(keys: KeyService, kek_id: str) -> tuple[pq_encryption.CryptoFactory, KeyClient]:
    """Return a factory with caches of its own, and the client it uses."""
    client = KeyClient(keys, kek_id)
    return pq_encryption.CryptoFactory(lambda _: client), client


def _forget(factory: pq_encryption.CryptoFactory, client: KeyClient) -> None:
    factory.remove_cache_entries_for_all_tokens()
    client.forget()


def _encode(name: str) -> str:
    """Percent-encode what means something to the library; different names stay different."""
    return "".join(f"%{ord(c):02X}" if c in _SPECIAL else c for c in name)
