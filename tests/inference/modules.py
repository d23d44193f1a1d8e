"""A released torch module, put together by hand: its code is data here, and runs where it is allowed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from tests.inference.artifacts import make_schema

from cloister.inference import ModelArtifact, ModelCard
from cloister.learning import DataSection, FeatureMap
from cloister.learning.sections import ModelSection

CODE = b"""
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, outputs)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x) * self.scale))

def build():
    return Model(2)

def build_three():
    return Model(3)

def build_number():
    return Model(1)
"""


def make_module(
    label: str = "boolean",
    classes: int = 2,
    *,
    factory: str = "build",
    code: bytes = CODE,
    pinned: str | None = None,
    scratch: Path,
) -> ModelArtifact:
    """Return the release of a module for `tests.inference.models`' columns; its parameters are its start, moved."""
    from cloister.learning.start import pin_of
    from cloister.learning.torch import TorchPrivate, load_factory

    schema = make_schema(label)
    section = ModelSection(
        kind="torch", classes=classes, seed=7, code=hashlib.sha256(code).hexdigest(), factory=factory
    )
    data = DataSection(schema=schema.digest().hex(), features=("age", "pain", "fluid"), label="y")
    features = FeatureMap.build(schema, data, section)
    path = scratch / "author.py"
    path.write_bytes(code)
    made = TorchPrivate(
        load_factory(path, factory, str(section.code), True),
        classes=classes,
        shape=features.width,
        seed=section.seed,
    )
    start = made.initial(section.seed)
    initial = pin_of(start, made.fixed_digest) if pinned is None else pinned
    section = ModelSection(
        kind="torch", classes=classes, seed=7, code=section.code, factory=factory, initial=initial
    )
    card = ModelCard("cloister-model/1", "heart", "a" * 64, 5, section, data.features, features)
    return ModelArtifact(card, start + np.sin(np.arange(start.size, dtype=np.float64)))
