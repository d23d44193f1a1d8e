"""The initial model: drawn from the plan's seed, pinned in the plan by its digest.

The digest is SHA-256 over the parameters as float64, little-endian (float32 for a language model, whose
vector is that), with the digest of what is not trained behind them where there is such a thing. The study's
author pins it (`pin_initial`); every site draws the start for itself and refuses a plan whose pin is absent
or another (`initial_model`), so nobody is made to train from a start that a hub chose to read updates with.

A module is Python code in a file. It is run only for who names the file (`user_code`), and only if it has the
SHA-256 that the plan states: naming it is consent.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, PlanError, PolicyRefused
from cloister.learning.features import FeatureMap
from cloister.learning.heads import Array
from cloister.learning.models import Model, build_model
from cloister.learning.plan import Plan
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch import TorchPrivate

__all__ = [
    "check_pin",
    "check_unit",
    "initial_model",
    "model_digest",
    "pin_initial",
    "pin_of",
    "plan_features",
    "plan_model",
    "start_of",
    "with_pin",
]

_PIN_AGAIN = "Its author writes it anew with `cloister study init`"
_OF_LANGUAGE = ", where --base, --method, --rank, --alpha and --target are what the pin depends on"


def model_digest(params: NDArray[np.floating[Any]]) -> str:
    """Return SHA-256, in hex, over the parameters, little-endian: float32 where they are that, else
    float64."""
    dtype = "<f4" if params.dtype == np.float32 else "<f8"
    return hashlib.sha256(np.ascontiguousarray(params, dtype=dtype).view(np.uint8).data).hexdigest()


def plan_features(plan: Plan, schema: Schema) -> FeatureMap:
    """Return the feature map of a plan.

    Raises:
        PlanError: as `FeatureMap.build` and `check_unit`.
    """
    check_unit(plan, schema)
    return FeatureMap.build(schema, plan.data, plan.model)


def check_unit(plan: Plan, schema: Schema) -> None:
    """Raise PlanError where the plan's unit of privacy is no unit column of the schema."""
    privacy = plan.privacy
    if privacy is not None and not privacy.by_record:
        column = schema.columns.get(privacy.unit)
        if column is None or column.role != "unit":
            raise PlanError(
                f"the schema declares no unit column {privacy.unit!r}",
                where="[privacy] unit",
                fix='Name the column with role = "unit", or write unit = "record"',
            )


def plan_model(
    plan: Plan, schema: Schema, *, user_code: Path | None = None
) -> tuple[FeatureMap, Model | TorchPrivate]:
    """Return the feature map and the model of a plan.

    Args:
        plan: the plan, of any model but a language model.
        schema: of the rows.
        user_code: the Python file of a plan with kind "torch", which is run; None allows none.

    Raises:
        PolicyRefused: the model is code, and running it was not allowed.
        PlanError, InputError, IntegrityError: plan, schema, module or file do not fit together.
    """
    section = plan.model
    if section.is_language:
        raise PlanError(
            "what a language model is follows from its base, and that is not given",
            where="[language]",
            fix="Give the folder of the base model with --base DIR",
        )
    features = plan_features(plan, schema)
    if section.kind != "torch":
        return features, build_model(section, features.width)
    if user_code is None:
        raise PolicyRefused(
            "the model is Python code, which would run with your rights and could read whatever you can",
            where=f"study {plan.study.name}",
            fix="Read the file; if you trust it, run again with --allow-user-code FILE",
        )
    try:
        from cloister.learning.torch import TorchPrivate, load_factory
    except ImportError as error:
        raise InputError(
            "this model needs torch", where="[model] kind", fix="pip install 'cloister[torch]'"
        ) from error
    factory = load_factory(user_code, str(section.factory), str(section.code), True)
    model = TorchPrivate(factory, classes=section.classes, shape=features.width, seed=section.seed)
    return features, model


def start_of(plan: Plan, model: Model | TorchPrivate) -> Array:
    """Return the start that the plan pins, float64[d].

    Raises:
        PlanError: nothing is pinned, or the plan's fields give another start.
    """
    params = model.initial(plan.model.seed)
    check_pin(plan, pin_of(params, _fixed(model)))
    return params


def check_pin(plan: Plan, pin: str) -> None:
    """Return if the plan pins this start. Raises PlanError as `start_of`."""
    if not plan.model.initial:
        raise PlanError(
            "the plan does not pin its initial model",
            where="[model] initial",
            fix="Its author pins it with `cloister study init`",
        )
    if pin != plan.model.initial:
        raise PlanError(
            "the plan pins another initial model than its fields give, as where one was edited later",
            where="[model] initial",
            fix=_PIN_AGAIN + (_OF_LANGUAGE if plan.model.is_language else ""),
        )


def pin_initial(plan: Plan, schema: Schema, *, user_code: Path | None = None) -> Plan:
    """Return the plan with `[model] initial` filled in for its seed; errors as `plan_model`."""
    _, model = plan_model(plan, schema, user_code=user_code)
    return with_pin(plan, pin_of(model.initial(plan.model.seed), _fixed(model)))


def with_pin(plan: Plan, pin: str) -> Plan:
    """Return the plan with this pin."""
    return msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, initial=pin))


def initial_model(plan: Plan, schema: Schema, *, user_code: Path | None = None) -> Array:
    """Return the start that the plan pins, float64[d]; errors as `plan_model` and `start_of`."""
    return start_of(plan, plan_model(plan, schema, user_code=user_code)[1])


def pin_of(params: NDArray[np.floating[Any]], fixed: str = "") -> str:
    """Return what a plan pins: the digest of the start, and of what is not trained where there is such."""
    if not fixed:
        return model_digest(params)
    return hashlib.sha256(f"{model_digest(params)} {fixed}".encode()).hexdigest()


def _fixed(model: Model | TorchPrivate) -> str:
    return "" if isinstance(model, Model) else model.fixed_digest
