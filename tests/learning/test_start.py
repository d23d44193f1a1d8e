from __future__ import annotations

import hashlib
import struct

import msgspec
import numpy as np
import pytest
from tests.learning.plans import make_plan

from cloister.errors import PlanError
from cloister.learning import Plan, initial_model, model_digest, pin_initial, plan_model
from cloister.vault import load_schema

SCHEMA = load_schema(
    b"""
[columns.x1]
type = "number"
bounds = [0, 1]
[columns.x2]
type = "category"
categories = ["a", "b", "c"]
[columns.y]
type = "boolean"
role = "label"
"""
)


def plan(**model: str) -> Plan:
    changes = {"data.schema": f'"{SCHEMA.digest().hex()}"'} | {f"model.{k}": v for k, v in model.items()}
    return make_plan(changes)


def test_the_digest_is_over_float64_little_endian() -> None:
    params = np.array([1.5, -2.0, 1e-300])
    assert model_digest(params) == hashlib.sha256(struct.pack("<3d", *params)).hexdigest()
    assert model_digest(params.astype(">f8")) == model_digest(params)


def test_plan_and_schema_decide_width_and_model() -> None:
    features, model = plan_model(plan(), SCHEMA)
    assert features.width == 3
    assert model.size == 4


def test_a_pinned_plan_gives_its_start() -> None:
    for unpinned in (plan(), plan(kind='"mlp"', hidden="[4]", classes="2", seed="9")):
        pinned = pin_initial(unpinned, SCHEMA)
        assert pinned.digest != unpinned.digest
        start = initial_model(pinned, SCHEMA)
        assert model_digest(start) == pinned.model.initial
        assert pin_initial(pinned, SCHEMA) == pinned


def test_a_site_refuses_an_absent_or_foreign_pin() -> None:
    with pytest.raises(PlanError, match="does not pin"):
        initial_model(plan(), SCHEMA)
    pinned = pin_initial(plan(kind='"mlp"', hidden="[4]", classes="2"), SCHEMA)
    other = msgspec.structs.replace(pinned, model=msgspec.structs.replace(pinned.model, seed=1))
    with pytest.raises(PlanError, match="another initial model"):
        initial_model(other, SCHEMA)
