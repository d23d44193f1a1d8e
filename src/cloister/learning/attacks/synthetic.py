"""Rows that nobody has, drawn from a schema alone: for attacks that are not to touch anybody's rows.

Each value is uniform over what the schema allows, independently of the others, and so are labels: rows that
can only be learned by heart, which is the worst case for membership.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cloister.crypto import StreamRandom
from cloister.learning.attacks.mechanism import Rows
from cloister.learning.features import FeatureMap
from cloister.vault import Column

__all__ = ["synthetic_rows", "synthetic_table"]


def synthetic_table(features: FeatureMap, rows: int, random: StreamRandom) -> pa.Table:
    """Return a table of `rows` rows with the features and the label of a plan, none of them missing."""
    columns = {name: _values(column, rows, random) for name, column in features.columns.items()}
    return pa.table({**columns, features.label_name: _values(features.label, rows, random)})


def synthetic_rows(features: FeatureMap, rows: int, random: StreamRandom) -> Rows:
    """Return X float64[n, f] and y float64[n] of such rows, scaled as the plan scales."""
    table = synthetic_table(features, rows, random)
    return features.fit(table).transform(table)


def _values(column: Column, rows: int, random: StreamRandom) -> pa.Array:
    if column.type == "boolean":
        return pa.array(random.integers(2, rows).astype(np.bool_))
    if column.type == "category":
        categories = column.categories or ("",)
        return pa.array(categories).take(pa.array(random.integers(len(categories), rows)))
    low, high = column.bounds or (-1.0, 1.0)
    if column.type == "integer":
        return pa.array(int(low) + random.integers(int(high - low) + 1, rows))
    return pa.array(np.minimum(high, low + random.uniform(rows) * (high - low)))
