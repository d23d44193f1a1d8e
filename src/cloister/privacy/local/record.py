"""The record beside a file of released rows: what was done to each column, to be undone on average.

It holds public facts alone: mechanisms with their bounds, categories and epsilons, the number of rows, the
digest of the file. It is not signed; whoever needs to know who wrote it seals or signs it as any file.

Column names of the file appear in one entry each; planar noise has two columns, in the order of its
coordinates. A category that stands for a missing value is the empty text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.accounting import Event
from cloister.privacy.local.bounded import BoundedGaussian, BoundedLaplace
from cloister.privacy.local.estimates import Estimate, estimate_counts, estimate_mean
from cloister.privacy.local.mechanism import Charge
from cloister.privacy.local.planar import PlanarLaplace
from cloister.privacy.local.positions import MAX_CELLS, estimate_cells, estimate_position
from cloister.privacy.local.response import Response

__all__ = ["MAX_RECORD", "ColumnRecord", "LocalRecord", "Summary", "read_record", "summarise"]

MAX_RECORD: Final = 8 << 20

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ColumnRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was done to one column, or to the two of a position.

    Attributes:
        columns: their names in the file.
        mechanism: what was done.
        missing: what stood for a missing value before noise was added, if some could be missing.
    """

    columns: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)]
    mechanism: Response | BoundedLaplace | BoundedGaussian | PlanarLaplace
    missing: float | None = None

    def __post_init__(self) -> None:
        if (len(self.columns) == 2) != isinstance(self.mechanism, PlanarLaplace):
            raise InputError("a position has two columns, anything else one", fix="Correct the record")

    @property
    def event(self) -> Event | None:
        """What one row's release is to the accountant; None for a position, whose epsilon has a unit."""
        return None if isinstance(self.mechanism, PlanarLaplace) else self.mechanism.event


class LocalRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of released rows is.

    Attributes:
        format: of this record.
        dataset: the owner's name for the rows.
        purpose: what they were released for.
        rows: how many.
        columns: what was done to each released column.
        id_column: the column with people's ids, if it is in the file; it has no noise.
        price: what each row cost its person.
        events: what a row's release is to the accountant.
        sha256: digest of the file.
    """

    format: Literal["cloister-local-v1"]
    dataset: str
    purpose: str
    rows: _Count
    columns: Annotated[tuple[ColumnRecord, ...], msgspec.Meta(min_length=1)]
    id_column: str | None
    price: Charge
    events: tuple[Event, ...]
    sha256: _Hex32


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a released column says about all people together.

    Attributes:
        columns: which.
        kind: mean, counts, position (the mean of both coordinates) or cells.
        estimates: by what they estimate.
        reason: why there is none, where there is none.
    """

    columns: tuple[str, ...]
    kind: Literal["mean", "counts", "position", "cells"] | None
    estimates: dict[str, Estimate] = {}
    reason: str = ""


def read_record(data: bytes) -> LocalRecord:
    """Return the record that JSON spells out. Raises InputError where it is none."""
    try:
        return msgspec.json.decode(data, type=LocalRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error) if isinstance(error, msgspec.ValidationError) else "not JSON"
        raise InputError(
            f"the record of a local release is not valid: {problem}",
            fix="Give the file that was written with it",
        ) from None


def summarise(
    record: LocalRecord, values: Mapping[str, Sequence[Any]], *, confidence: float = 0.95
) -> tuple[Summary, ...]:
    """Return what each released column says about all people together.

    Args:
        record: of the file.
        values: the file's columns: numbers, or categories as text (empty or None for missing).
        confidence: of each interval.

    Raises:
        InputError: a column is absent, has another length, or holds what its mechanism cannot have made.
    """
    summaries = []
    for column in record.columns:
        absent = next((name for name in column.columns if name not in values), None)
        if absent is not None:
            raise InputError("the file lacks a column of its record", where=absent, fix="Give the whole file")
        if any(len(values[name]) != record.rows for name in column.columns):
            raise InputError("the file has another number of rows than its record", fix="Give the whole file")
        summaries.append(_summary(column, [values[name] for name in column.columns], confidence))
    return tuple(summaries)


def _summary(column: ColumnRecord, values: list[Sequence[Any]], confidence: float) -> Summary:
    mechanism = column.mechanism
    if isinstance(mechanism, Response):
        answers = mechanism.encode(["" if value is None else str(value) for value in values[0]])
        counts = estimate_counts(mechanism, answers, confidence=confidence)
        named = dict(zip(mechanism.categories, counts, strict=True))
        return Summary(column.columns, "counts", named)
    numbers = _numbers(values)
    if isinstance(mechanism, PlanarLaplace):
        return _positions(column, mechanism, numbers, confidence)
    return Summary(
        column.columns, "mean", {"mean": estimate_mean(mechanism, numbers[:, 0], confidence=confidence)}
    )


def _positions(
    column: ColumnRecord, planar: PlanarLaplace, numbers: NDArray[np.float64], confidence: float
) -> Summary:
    if not planar.truncated:
        both = estimate_position(planar, numbers, confidence=confidence)
        return Summary(column.columns, "position", dict(zip(column.columns, both, strict=True)))
    first, second = planar.sides
    if (first + 1) * (second + 1) > MAX_CELLS:
        reason = "truncated positions have no unbiased mean, and their lattice is too fine to count cells"
        return Summary(column.columns, None, reason=reason)
    try:
        cells = estimate_cells(planar, numbers, confidence=confidence)
    except InputError as error:
        return Summary(column.columns, None, reason=error.what)
    named = {f"{i},{j}": each for i, row in enumerate(cells) for j, each in enumerate(row)}
    return Summary(column.columns, "cells", named)


def _numbers(values: list[Sequence[Any]]) -> NDArray[np.float64]:
    try:
        return np.column_stack([np.asarray(each, np.float64) for each in values])
    except (TypeError, ValueError):
        raise InputError("a released value is not a number", fix="Give the file as it was written") from None
