"""Rows that belong to one unit of privacy: a patient, a vehicle, a customer; named by a column of the schema.

The column is never a feature. Who the units are stays at their site; what is used is which rows belong
together.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cloister.errors import InputError

__all__ = ["unit_rows"]


def unit_rows(column: pa.ChunkedArray, name: str) -> list[NDArray[np.int64]]:
    """Return the row numbers of each unit, in order within it; int64, at least one each.

    Args:
        column: the unit of each row.
        name: of the column, for messages.

    Raises:
        InputError: a row has no unit, so nothing says with which others it must be protected.
    """
    if column.null_count:
        raise InputError(
            f"{column.null_count} rows have no unit",
            where=f"column {name}",
            fix="Fill the column in, or leave those rows out, and add the dataset again",
        )
    codes = pc.dictionary_encode(column.combine_chunks()).indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))
    return [part.astype(np.int64) for part in np.split(order, ends[:-1])]
