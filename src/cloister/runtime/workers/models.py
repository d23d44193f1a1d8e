"""What a plan's model is, for whoever has no rows: hub, author, a site that looks before it takes part."""

from __future__ import annotations

from pathlib import Path

from cloister.learning import Plan, plan_model
from cloister.learning.facts import ModelFacts
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.proxy import inspected
from cloister.vault import Schema

__all__ = ["known_model"]


def known_model(
    plan: Plan, schema: Schema, *, user_code: Path | None = None, sandboxed: bool = True
) -> ModelFacts:
    """Return the facts of a plan's model; whether the plan pins its start is for the caller to ask.

    Args:
        plan: the plan.
        schema: of the rows.
        user_code: the Python file of a module of the user's own, which whoever asks has read and allows.
        sandboxed: whether that file runs in a walled worker, or in this process. A built-in model is data
            and needs neither.

    Raises:
        PolicyRefused: the model is code that was not allowed, or the machine lacks a wall.
        PlanError, InputError, IntegrityError, ProtocolError: as `plan_model`, or the worker ended.
    """
    if sandboxed and plan.model.kind == "torch":
        return inspected(plan, schema, sandbox(), user_code)
    return ModelFacts.of(plan, plan_model(plan, schema, user_code=user_code)[1])
