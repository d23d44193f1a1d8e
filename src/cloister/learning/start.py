"""The initial model: drawn from the plan's seed, pinned in the plan by its digest.

The digest is SHA-256 over the parameters as float64, little-endian. The study's author pins it
(`pin_initial`); every site draws the start for itself and refuses a plan whose pin is absent or another
(`initial_model`), so nobody is made to train from a start that a hub chose to read updates with.
"""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np

from cloister.errors import PlanError
from cloister.learning.features import FeatureMap
from cloister.learning.heads import Array
from cloister.learning.models import Model, build_model
from cloister.learning.plan import Plan
from cloister.vault import Schema

__all__ = ["initial_model", "model_digest", "pin_initial", "plan_model"]


def model_digest(params: Array) -> str:
    """Return SHA-256, in hex, over the parameters as float64 little-endian."""
    return hashlib.sha256(np.ascontiguousarray(params, dtype="<f8").tobytes()).hexdigest()


def plan_model(plan: Plan, schema: Schema) -> tuple[FeatureMap, Model]:
    """Return the feature map and the model of a plan. Raises as `FeatureMap.build`."""
    features = FeatureMap.build(schema, plan.data, plan.model)
    return features, build_model(plan.model, features.width)


def pin_initial(plan: Plan, schema: Schema) -> Plan:
    """Return the plan with `[model] initial` filled in for its seed."""
    _, model = plan_model(plan, schema)
    pinned = msgspec.structs.replace(plan.model, initial=model_digest(model.initial(plan.model.seed)))
    return msgspec.structs.replace(plan, model=pinned)


def initial_model(plan: Plan, schema: Schema) -> Array:
    """Return the start that the plan pins, float64[d].

    Raises:
        PlanError: nothing is pinned, or the seed gives another start.
    """
    _, model = plan_model(plan, schema)
    params = model.initial(plan.model.seed)
    if not plan.model.initial:
        raise PlanError(
            "the plan does not pin its initial model",
            where="[model] initial",
            fix="Its author pins it with `cloister study init`",
        )
    if model_digest(params) != plan.model.initial:
        raise PlanError(
            "the seed gives another initial model than the plan pins",
            where="[model] initial",
            fix="Ask the plan's author to pin it again",
        )
    return params
