"""An open dataset: its rows, decrypted batch by batch, for one of its purposes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

import pyarrow as pa

from cloister.errors import InputError
from cloister.vault.ingest import storage_schema
from cloister.vault.manifest import Manifest
from cloister.vault.parquet import EncryptedFile
from cloister.vault.schema import Schema

__all__ = ["Dataset"]


class Dataset:
    """The rows of one dataset, checked by `Vault.open`. Close it, or use it in a with-statement.

    Rows come as Arrow batches: number float64, integer int64, boolean bool, category, text and pseudonyms
    string; null where a value is missing and the schema allows it. Every batch is authenticated when it is
    decrypted.

    Attributes:
        manifest: what its owner signed.
        envelope: the signed bytes of the manifest, for partners.
    """

    def __init__(self, manifest: Manifest, envelope: bytes, file: EncryptedFile) -> None:
        self.manifest = manifest
        self.envelope = envelope
        self._file = file
        self._names = tuple(storage_schema(manifest.schema).names)

    @property
    def schema(self) -> Schema:
        """The declared columns."""
        return self.manifest.schema

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.manifest.rows

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the stored columns, in their order."""
        return self._names

    def batches(
        self, columns: Sequence[str] | None = None, batch_rows: int = 65_536
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order.

        Args:
            columns: which columns, in which order; None for all. The others are not decrypted.
            batch_rows: rows in a batch, at most.

        Raises:
            InputError: there is no such column, or `batch_rows` is below 1.
            IntegrityError: a page was altered; rows yielded before it were authentic.
        """
        chosen = self._names if columns is None else tuple(columns)
        self._check(chosen, batch_rows)
        return self._file.batches(chosen, batch_rows)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows as one table. Raises as `batches`."""
        return pa.Table.from_batches(list(self.batches(columns)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Dataset {self.manifest.name}: {self.rows} rows, {len(self._names)} columns>"

    def _check(self, columns: tuple[str, ...], batch_rows: int) -> None:
        unknown = next((name for name in columns if name not in self._names), None)
        if unknown is not None:
            raise InputError(f"the dataset has no column {unknown!r}", fix=f"It has {', '.join(self._names)}")
        if not columns or len(set(columns)) < len(columns):
            raise InputError("columns are none, or one is named twice", fix="Name each column once")
        if batch_rows < 1:
            raise InputError("a batch must have at least one row", fix="Give batch_rows >= 1")
