from __future__ import annotations

import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning import DataSection, FeatureMap, ModelSection
from cloister.learning.attacks import synthetic_rows, synthetic_table
from cloister.vault import load_schema

SCHEMA = load_schema(b"""
[columns.age]
type = "integer"
bounds = [18, 21]
[columns.dose]
type = "number"
bounds = [0.5, 2.0]
missing = "allow"
[columns.kind]
type = "category"
categories = ["x", "y", "z"]
[columns.smokes]
type = "boolean"
[columns.ill]
type = "category"
role = "label"
categories = ["no", "maybe", "yes"]
""")


def features(scaling: str = "bounds") -> FeatureMap:
    data = DataSection(
        schema=SCHEMA.digest().hex(),
        features=SCHEMA.features,
        label="ill",
        scaling=scaling,  # type: ignore[arg-type]
    )
    return FeatureMap.build(SCHEMA, data, ModelSection(kind="softmax", classes=3))


def test_rows_are_what_the_schema_allows_and_reach_its_ends() -> None:
    table = synthetic_table(features(), 400, StreamRandom.system())
    columns = table.to_pydict()
    assert set(columns["age"]) == {18, 19, 20, 21}
    assert min(columns["dose"]) >= 0.5
    assert max(columns["dose"]) <= 2.0
    assert set(columns["kind"]) == {"x", "y", "z"}
    assert set(columns["smokes"]) == {True, False}
    assert set(columns["ill"]) == {"no", "maybe", "yes"}


def test_rows_are_scaled_as_the_plan_scales() -> None:
    X, y = synthetic_rows(features(), 50, StreamRandom.system())
    assert X.shape == (50, features().width)
    assert np.abs(X).max() <= 1.0
    assert set(y) <= {0.0, 1.0, 2.0}
    X, _ = synthetic_rows(features("local"), 200, StreamRandom.system())
    np.testing.assert_allclose(X.mean(axis=0), 0.0, atol=1e-9)
