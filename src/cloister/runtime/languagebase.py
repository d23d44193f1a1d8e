"""The base of a plan's language model at a party: opened, checked and stated, before a row is looked at.

`preload` imports what it takes; `plan_texts` and `base_files` are steps 1 and 2 of a worker
(`runtime.languageworker`), and whoever trains outside of one begins with them too.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import InputError, PlanError
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.learning.language.extra import extra_error
from cloister.learning.language.texts import TextMap
from cloister.learning.modelfiles import PlainFolder
from cloister.learning.sections import LanguageSection
from cloister.learning.start import check_unit
from cloister.vault import Schema

__all__ = [
    "base_files",
    "facts_of_base",
    "facts_of_files",
    "plan_texts",
    "preload",
    "require_device",
    "scratch_folder",
]


def preload() -> None:
    """Import what a language model's worker needs, where files of libraries can still be read; it takes
    seconds. Raises InputError where the extra is not installed, or cannot be loaded."""
    try:
        from cloister.learning.torch.language.pretrained import quiet_transformers

        quiet_transformers()
        import cloister.learning.torch.language.learner
        import cloister.learning.torch.language.private  # noqa: F401
    except ImportError as error:
        raise extra_error(error) from None


def plan_texts(plan: Plan, schema: Schema) -> tuple[LanguageSection, TextMap]:
    """Return what a plan of a language model says of it, and of its texts: step 1.

    Raises:
        PlanError: the plan is of another model, or schema and plan do not fit.
    """
    if plan.language is None:
        raise PlanError("the plan names no base model", where="[language]", fix="Use another kind of worker")
    check_unit(plan, schema)
    return plan.language, TextMap.build(schema, plan.data, plan.model, plan.language)


def base_files(plan: Plan, base: Path | None) -> PlainFolder:
    """Return the files of the base that a plan starts from: step 2.

    Raises:
        InputError: none is given, or the folder is none of a model.
    """
    if base is None:
        raise InputError(
            f"the plan trains a {plan.model.kind}, and the base that it starts from is not given",
            where=f"study {plan.study.name}",
            fix="Give the folder of the base model with --base DIR",
        )
    return PlainFolder(base)


def facts_of_base(plan: Plan, schema: Schema, base: Path | None, scratch: Path | None = None) -> ModelFacts:
    """Return the facts of a plan's language model, without its weights in memory.

    Args:
        plan: the plan; what it pins of its start is not looked at.
        schema: of the rows.
        base: folder of the base.
        scratch: a folder in which the tokenizer's files lie for a moment; a temporary one by default.

    Raises:
        PlanError, InputError, IntegrityError: plan, schema and base do not fit together.
    """
    plan_texts(plan, schema)
    with scratch_folder(scratch) as place, contextlib.closing(base_files(plan, base)) as files:
        return facts_of_files(plan, files, place)


def facts_of_files(plan: Plan, files: PlainFolder, scratch: Path) -> ModelFacts:
    """Return the facts of a plan's language model from files that are open. Raises as `facts_of_base`."""
    try:
        from cloister.learning.torch.language.facts import language_facts
    except ImportError as error:
        raise extra_error(error) from None
    return language_facts(plan, files, scratch)


def require_device(name: str) -> None:
    """Raise InputError where there is no such device: before a study begins, not at its first round."""
    from cloister.learning.torch.language.build import device_of

    device_of(name)


@contextlib.contextmanager
def scratch_folder(given: Path | None) -> Iterator[Path]:
    """Give a folder for what lies there for a moment: the one that is given, or a temporary one."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="cloister-base-") as folder:
        yield Path(folder)
