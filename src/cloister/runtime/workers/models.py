"""What a plan's model is, for whoever has no rows: hub, author, a site that looks before it takes part."""

from __future__ import annotations

from pathlib import Path

from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.runtime.worker import model_facts
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.proxy import inspected
from cloister.vault import Schema

__all__ = ["known_model"]


def known_model(
    plan: Plan,
    schema: Schema,
    *,
    user_code: Path | None = None,
    base: Path | None = None,
    sandboxed: bool = True,
) -> ModelFacts:
    """Return the facts of a plan's model; whether the plan pins its start is for the caller to ask.

    Args:
        plan: the plan.
        schema: of the rows.
        user_code: the Python file of a module of the user's own, which whoever asks has read and allows.
        base: folder of the base that a language model starts from; its weights are not loaded.
        sandboxed: whether code runs, and a base is read, in a walled worker that ends with this, or in this
            process. A built-in model of tables is data and needs neither.

    Raises:
        PolicyRefused: the model is code that was not allowed, or the machine lacks a wall.
        PlanError, InputError, IntegrityError, ProtocolError: as `plan_model`, or the worker ended.
    """
    if sandboxed and (plan.model.kind == "torch" or plan.model.is_language):
        return inspected(plan, schema, sandbox(), user_code, base=base)
    return model_facts(plan, schema, user_code=user_code, base=base)
