"""Rows for the models of `tests.inference.models`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cloister.inference import ModelArtifact, Predictor
from cloister.inference.encrypted import Card, ClientKey, encrypt_rows
from cloister.vault.sources import TableSource


def make_rows(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    fluid = [None if at % 7 == 3 else float(value) for at, value in enumerate(rng.uniform(0, 2, count))]
    return pa.table(
        {
            "age": rng.integers(18, 101, count),
            "pain": rng.choice(["none", "typical", "atypical"], count),
            "fluid": pa.array(fluid, type=pa.float64()),
        }
    )


def encrypted(
    artifact: ModelArtifact, rows: pa.Table, reference: pa.Table | None = None
) -> tuple[bytes, ClientKey]:
    scale_by = None if reference is None else TableSource(reference)
    return encrypt_rows(Card.of(artifact), TableSource(rows), scale_by)


def in_the_clear(artifact: ModelArtifact, rows: pa.Table, reference: pa.Table | None = None) -> pa.Table:
    predictor = Predictor.of(artifact)
    return (predictor if reference is None else predictor.fit(reference)).predict(rows)
