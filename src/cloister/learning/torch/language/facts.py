"""What hub and site know of a language model, stated without its weights in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloister.errors import PlanError
from cloister.learning.facts import ModelFacts
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.plan import Plan
from cloister.learning.private.ladder import tokens_float_bound
from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["facts_of", "language_facts"]


def language_facts(plan: Plan, files: ModelFiles, scratch: Path) -> ModelFacts:
    """Return the facts of a plan's language model. Nothing is compared with what the plan pins of its start.

    The base's numbers are read for method "full" alone, whose start they are.

    Args:
        plan: of a language model.
        files: of the base.
        scratch: a folder, best in memory, for the tokenizer's files while it is loaded.

    Raises:
        PlanError: the plan is of another model, or does not fit the base.
        InputError: the base cannot be trained.
        IntegrityError: base or tokenizer is not the one that the plan names.
    """
    if plan.language is None:
        raise PlanError("the plan names no base model", where="[language]", fix="Name one")
    full = plan.language.method == "full"
    return facts_of(plan, LanguageLearner(plan.model, plan.language, files, scratch=scratch, weights=full))


def facts_of(plan: Plan, learner: LanguageLearner) -> ModelFacts:
    """Return the facts of a model that is there already."""
    start = learner.initial(plan.model.seed)
    microbatch = 0 if plan.privacy is None else plan.privacy.microbatch
    return ModelFacts(
        size=learner.size,
        inputs=learner.inputs,
        loss="softmax" if learner.classes else "tokens",
        classes=learner.classes,
        weights=np.packbits(learner.penalised).tobytes(),
        start=start.astype("<f4", copy=False).tobytes() if start.any() else b"",
        fixed=learner.fixed,
        microbatch=microbatch,
        error=tokens_float_bound(learner.inputs, microbatch) if microbatch else 0.0,
        tensors=learner.tensors,
        windows=learner.windows,
        single=True,
    )
