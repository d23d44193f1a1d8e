"""From a source of rows to validated Arrow batches, ready to be encrypted.

Order, for each batch:
1. rows whose consent column does not say yes are left out, before anything else of them is looked at;
2. every stored column is checked against its declaration (`columns`);
3. identifiers must not repeat among the rows that stand;
4. identifiers and units with `pseudonym = true` become pseudonyms.
Columns with the role drop are never parsed.

The first row that breaks the schema stops the ingest with its line and column, or, with `quarantine`, every
such row is left out and listed. Neither ever tells a value. Rows stream: what is held is one batch, and one
short digest for each identifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.errors import SchemaError
from cloister.vault.columns import check_values, consents, storage_type
from cloister.vault.pseudonym import Pseudonyms
from cloister.vault.schema import Schema
from cloister.vault.sources import Progress, Source

__all__ = ["Ingest", "Quarantined", "storage_schema"]

_ID_DIGEST: Final = 16  # bytes; a chance collision among 2**40 rows has probability 2**-49


@dataclass(frozen=True)
class Quarantined:
    """A row left out: its line, the column (None where it has another number of fields), the reason."""

    line: int
    column: str | None
    reason: str


@dataclass(frozen=True)
class _Offence:
    row: int
    column: str
    reason: str


def storage_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow schema of the stored columns, in the declared order."""
    return pa.schema(
        [
            pa.field(name, storage_type(column), nullable=column.missing == "allow")
            for name, column in schema.columns.items()
            if column.stored
        ]
    )


class Ingest:
    """One pass over a source.

    Args:
        source: the rows.
        schema: complete, or SchemaError names the column that is open.
        pseudonyms: for the columns that ask for them.
        quarantine: leave offending rows out instead of refusing the whole source.

    Attributes:
        rows: rows yielded so far.
        without_consent: rows left out so far for want of consent.
        quarantined: rows left out for breaking the schema, by line; filled at the end of the pass.
    """

    def __init__(
        self, source: Source, schema: Schema, pseudonyms: Pseudonyms, *, quarantine: bool = False
    ) -> None:
        schema.require_complete()
        _compare_columns(source.names, schema)
        self.rows = 0
        self.without_consent = 0
        self.quarantined: tuple[Quarantined, ...] = ()
        self._source = source
        self._schema = schema
        self._pseudonyms = pseudonyms
        self._quarantine = quarantine
        self._storage = storage_schema(schema)
        self._consent = next(iter(schema.by_role("consent")), None)
        self._seen: dict[str, set[bytes]] = {name: set() for name in schema.by_role("id")}
        self._offences: dict[int, _Offence] = {}

    def batches(self, progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows that stand, in the stored types and the order of the source.

        Raises:
            SchemaError: a row breaks the schema (without quarantine), or none is left.
            InputError: the source cannot be read.
        """
        wanted = [
            name for name, column in self._schema.columns.items() if column.stored or name == self._consent
        ]
        first_row = 0
        for raw in self._source.batches(wanted, progress):
            batch = self._check(raw, first_row)
            first_row += raw.num_rows
            if self._offences and not self._quarantine:
                self._refuse()
            if batch.num_rows:
                self.rows += batch.num_rows
                yield batch
        if self._source.unreadable and not self._quarantine:
            self._refuse()
        self._list_quarantined()
        if not self.rows:
            raise SchemaError(
                "no row is left to store", fix="Check the consent column, the schema and the source"
            )

    def _check(self, raw: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        numbers = np.arange(first_row, first_row + raw.num_rows)
        if self._consent is not None:  # 1
            agreed = consents(raw.column(self._consent))
            self.without_consent += int(len(agreed) - agreed.sum())
            raw, numbers = raw.filter(pa.array(agreed)), numbers[agreed]
        arrays: dict[str, pa.Array] = {}
        offences: dict[int, _Offence] = {}
        for name in self._storage.names:  # 2
            checked = check_values(name, self._schema.columns[name], raw.column(name))
            arrays[name] = checked.values
            for reason, mask in checked.faults.items():
                for index in np.flatnonzero(mask).tolist():
                    offences.setdefault(index, _Offence(int(numbers[index]), name, reason))
        for name in self._seen:  # 3
            for index in self._repeated(name, arrays[name], offences):
                offences[index] = _Offence(int(numbers[index]), name, "the identifier appears a second time")
        self._offences.update((offence.row, offence) for offence in offences.values())
        stands = _all_but(raw.num_rows, offences)
        return self._stored(arrays, stands)

    def _repeated(self, name: str, values: pa.Array, offences: dict[int, _Offence]) -> list[int]:
        seen, repeated = self._seen[name], []
        for index, value in enumerate(values.cast(pa.string()).to_pylist()):
            if value is None or index in offences:
                continue
            digest = hashlib.blake2b(value.encode(), digest_size=_ID_DIGEST).digest()
            if digest in seen:
                repeated.append(index)
            seen.add(digest)
        return repeated

    def _stored(self, arrays: dict[str, pa.Array], stands: NDArray[np.bool_]) -> pa.RecordBatch:
        mask = None if stands.all() else pa.array(stands)
        kept = {name: array if mask is None else array.filter(mask) for name, array in arrays.items()}
        for name, array in kept.items():  # 4
            if self._schema.columns[name].pseudonym:
                kept[name] = self._pseudonyms.apply(name, array)
        return pa.RecordBatch.from_arrays(list(kept.values()), schema=self._storage)

    def _refuse(self) -> None:
        """Raise for the first row of the source that offends, be it by its number of fields."""
        first = min(self._offences, default=-1)
        for record in self._source.records():
            if record.row is None:
                raise SchemaError(record.reason, line=record.line, fix=_FIX)
            if record.row == first:
                offence = self._offences[first]
                raise SchemaError(offence.reason, line=record.line, column=offence.column, fix=_FIX)
        raise SchemaError("the source changed while it was read", fix="Try again")

    def _list_quarantined(self) -> None:
        if not self._offences and not self._source.unreadable:
            return
        listed = []
        for record in self._source.records():
            if record.row is None:
                listed.append(Quarantined(record.line, None, record.reason))
            elif offence := self._offences.get(record.row):
                listed.append(Quarantined(record.line, offence.column, offence.reason))
        if len(listed) != len(self._offences) + self._source.unreadable:
            raise SchemaError("the source changed while it was read", fix="Try again")
        self.quarantined = tuple(listed)


_FIX: Final = "Correct the row, or leave such rows out with quarantine"


def _all_but(count: int, offences: dict[int, _Offence]) -> NDArray[np.bool_]:
    stands = np.ones(count, dtype=np.bool_)
    stands[list(offences)] = False
    return stands


def _compare_columns(names: Sequence[str], schema: Schema) -> None:
    given = set(names)
    missing = next(
        (n for n, column in schema.columns.items() if n not in given and column.role != "drop"), None
    )
    if missing is not None:
        raise SchemaError(
            "the schema declares a column that the source lacks", column=missing, fix="Correct one of the two"
        )
    extra = next((name for name in names if name not in schema.columns), None)
    if extra is not None:
        raise SchemaError(
            "the source has a column that the schema does not declare",
            column=extra,
            fix='Declare it, if only as role = "drop"',
        )
