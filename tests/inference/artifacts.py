"""Released models of every kind, put together by hand."""

from __future__ import annotations

import numpy as np

from cloister.inference import ModelArtifact, ModelCard
from cloister.learning import DataSection, FeatureMap, build_model
from cloister.learning.sections import ModelSection
from cloister.vault import Schema, load_schema

FEATURES = """
[columns.age]
type = "integer"
bounds = [18, 100]
[columns.pain]
type = "category"
categories = ["none", "typical", "atypical"]
[columns.fluid]
type = "number"
bounds = [0.0, 2.0]
missing = "allow"
[columns.patient]
type = "text"
role = "id"
"""
LABELS = {
    "boolean": '[columns.y]\ntype = "boolean"\nrole = "label"\n',
    "category": '[columns.y]\ntype = "category"\nrole = "label"\ncategories = ["mild", "severe", "none"]\n',
    "integer": '[columns.y]\ntype = "integer"\nrole = "label"\nbounds = [3, 5]\n',
    "number": '[columns.y]\ntype = "number"\nrole = "label"\nbounds = [0.0, 50.0]\n',
}


def make_schema(label: str) -> Schema:
    return load_schema((FEATURES + LABELS[label]).encode())


def make_artifact(
    label: str, model: ModelSection, *, scaling: str = "bounds", seed: int = 1
) -> ModelArtifact:
    schema = make_schema(label)
    data = DataSection(
        schema=schema.digest().hex(),
        features=("age", "pain", "fluid"),
        label="y",
        scaling=scaling,  # type: ignore[arg-type]
    )
    features = FeatureMap.build(schema, data, model)
    size = build_model(model, features.width).size
    card = ModelCard("cloister-model/1", "heart", "a" * 64, 5, model, data.features, features)
    return ModelArtifact(card, np.sin(np.arange(size, dtype=np.float64) + seed))
