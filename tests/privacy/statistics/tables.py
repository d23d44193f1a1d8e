"""Small tables and their declarations, and noise for simulations. Importable, not collected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cloister.privacy.statistics import Declarations, Declared

COLUMNS = {
    "age": Declared(kind="integer", bounds=(0, 120)),
    "pressure": Declared(kind="number", bounds=(50.0, 250.0), missing=True),
    "income": Declared(kind="number", bounds=(-1000.0, 9000.0)),
    "sex": Declared(kind="category", categories=("female", "male")),
    "ward": Declared(kind="category", categories=("a", "b", "c", "empty"), missing=True),
    "ill": Declared(kind="boolean"),
}


def declarations(rows: int, *, unit: str | None = None) -> Declarations:
    return Declarations(columns=COLUMNS, rows=rows, unit=unit)


def table(rows: int, seed: int = 0, *, people: int | None = None) -> pa.Table:
    random = np.random.default_rng(seed)
    pressure = random.normal(130, 25, rows).clip(50, 250)
    absent = random.random(rows) < 0.1
    ward = random.choice(np.array(["a", "b", "c"]), rows)
    columns: dict[str, Any] = {
        "age": pa.array(random.integers(20, 95, rows)),
        "pressure": pa.array(pressure, mask=absent),
        "income": pa.array(random.gamma(2.0, 1000.0, rows).clip(-1000, 9000) - 500),
        "sex": pa.array(np.where(random.random(rows) < 0.4, "female", "male")),
        "ward": pa.array(ward, mask=random.random(rows) < 0.05),
        "ill": pa.array(random.random(rows) < 0.3),
    }
    if people is not None:
        columns["person"] = pa.array([f"p{number}" for number in random.integers(0, people, rows)])
    return pa.table(columns)


def laplace_noise(random: np.random.Generator, scale: float, size: Any) -> np.ndarray:
    """The difference of two geometric variables: the discrete Laplace, by another route than the product's."""
    p = 1.0 - np.exp(-1.0 / scale)
    return random.geometric(p, size).astype(np.int64) - random.geometric(p, size)


def gaussian_noise(random: np.random.Generator, sigma: float, size: Any) -> np.ndarray:
    """A rounded Gaussian: at a sigma of thousands of units nobody can tell."""
    return np.rint(random.normal(0.0, sigma, size)).astype(np.int64)
