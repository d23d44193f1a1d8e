"""The audit of a language model: of a plan's training, run anew with planted secrets, or of a finished model.

`rehearse`, in this order:

1. terms: the claim of the plan for this roster, where it makes one, and the model's pinned start;
2. plant: secrets and canaries that nobody has, drawn here, beside rows that nobody wrote (or given ones);
3. checks: the mechanism's sums, samples, noise and steps are those that were accounted for, where single rows
   are protected and the model is small enough to ask that often;
4. training: all rounds of the plan; where it claims privacy once more, the same steps without their noise;
5. asking: what each of the models has kept (`learning.attacks.languagememory`).

`ask_model` asks a finished model for what its owner planted before training: step 5 alone.

The bound is that of the coins under the model as planned, and is held against the claim. Exposure has no
claim to be held against: a secret that is planted twenty times is protected by twenty times the epsilon of a
row, so that it falls to chance is measured and not promised. A secret that is remembered is a verdict of its
own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.governance.audit import AuditReport, LanguageFindings, numbers_digest
from cloister.governance.languagereport import language_report
from cloister.governance.languagestage import Progress, checks_of, opened
from cloister.governance.languagestudy import LanguageStudy
from cloister.governance.plantedrows import planted_rows
from cloister.learning import Plan
from cloister.learning.attacks.languagememory import Remembered, Run
from cloister.learning.attacks.languagesecrets import KINDS, Kind, Plant, make_plant
from cloister.learning.language.adapter import vector_of
from cloister.learning.learner import Vector
from cloister.runtime.languageworker import preload
from cloister.vault import Schema

__all__ = ["Planting", "ask_model", "rehearse"]

_ROWS: Final = 100  # of a site, where nobody says how many


@dataclass(frozen=True)
class Planting:
    """What an audit plants.

    Attributes:
        copies: how often secrets are planted.
        each: secrets of each number of copies.
        coins: canaries that a coin puts in once or leaves out.
        kinds: of secrets, taken in turn; a classifier gets phrases.
        others: that each secret is ranked among, at most; a whole space where it has no more.
    """

    copies: tuple[int, ...] = (1, 4, 20)
    each: int = 5
    coins: int = 40
    kinds: tuple[Kind, ...] = KINDS
    others: int = 1000


def rehearse(
    plan: Plan,
    schema: Schema,
    base: Path | None,
    *,
    created: str,
    rows: Mapping[str, int] | None = None,
    tables: Mapping[str, pa.Table] | None = None,
    planting: Planting | None = None,
    confidence: float = 0.95,
    device: str = "auto",
    progress: Progress | None = None,
) -> AuditReport:
    """Audit the training of a plan as a roster of these sites runs it.

    Args:
        plan: of a language model.
        schema: of its rows.
        base: folder of the base.
        created: the time, "2026-01-31T12:00:00Z".
        rows: rows of each site of the roster; None for 100 at each of the plan's sites.
        tables: rows to train on beside what is planted, by site; synthetic ones elsewhere. They may be
            anybody's, and then so is the report.
        planting: what is planted; None for the default.
        confidence: of verdict and bound.
        device: "cpu", "cuda", or "auto" for what is there.
        progress: told how far it is.

    Raises:
        PlanError: the plan's claim does not hold for this roster, its start is another, or training diverged.
        InputError: the base is not given or cannot be trained, or an argument is out of range.
    """
    began = time.monotonic()
    preload()
    if not 0.0 < confidence < 1.0:
        raise InputError("an audit needs a confidence between 0 and 1", fix="Leave it out for 0.95")
    counts = dict(rows or dict.fromkeys((site.name for site in plan.sites), _ROWS))
    asked = planting or Planting()
    with opened(plan, schema, base, device) as stage:
        terms = stage.terms(counts)  # 1
        plant = make_plant(
            copies=asked.copies,
            each=asked.each,
            coins=asked.coins,
            kinds=asked.kinds,
            classes=stage.learner.classes,
        )
        examples, sites, background = planted_rows(plan, schema, stage.learner, plant, counts, tables)  # 2
        tell = progress or (lambda name, done, total: None)
        checks = checks_of(stage, terms, plant, tell)  # 3
        runs: list[Remembered] = []
        kinds: tuple[Run, ...] = ("as planned",) if terms.privacy is None else ("as planned", "without noise")
        for number, kind in enumerate(kinds):
            study = LanguageStudy(
                plan, stage.learner, stage.facts, terms, examples, sites, noise=kind == "as planned"
            )
            params = study.run(_share(tell, "training", number, len(kinds)))  # 4
            found = stage.ask(
                asked.others,
                kind,
                params,
                plant,
                terms,
                confidence,
                _share(tell, "asking", number, len(kinds)),
            )
            runs.append(found)  # 5
    findings = LanguageFindings(stage.base, stage.kind, "rehearsed", background, tuple(runs))
    whose: Literal["synthetic", "own"] = "own" if tables else "synthetic"
    return language_report(plan, terms, plant, findings, checks, confidence, whose, began, created)


def ask_model(
    plan: Plan,
    schema: Schema,
    base: Path | None,
    parameters: Vector | Mapping[str, NDArray[np.float32]],
    plant: Plant,
    *,
    created: str,
    rows: Mapping[str, int],
    others: int = 1000,
    confidence: float = 0.95,
    device: str = "auto",
    progress: Progress | None = None,
) -> AuditReport:
    """Ask a finished model for what was planted among its rows.

    Args:
        plan: that it was trained by.
        schema: of its rows.
        base: folder of the base.
        parameters: float32[d], or the tensors of a release by name.
        plant: what its owner planted before training.
        created: the time.
        rows: rows of each site of the last roster.
        others: that each secret is ranked among, at most.
        confidence: of verdict and bound.
        device: as `rehearse`.
        progress: told how far it is.

    Raises:
        PlanError, InputError: as `rehearse`; or the plant is one of another kind of model.
    """
    began = time.monotonic()
    preload()
    tell = progress or (lambda name, done, total: None)
    with opened(plan, schema, base, device) as stage:
        classes = stage.learner.classes
        if any(each.secret.classes != classes for each in plant.canaries):
            raise InputError(
                "these canaries were made for another kind of model, or other classes",
                where="audit",
                fix="Give the list that belongs to this study's rows",
            )
        terms = stage.terms(dict(rows))
        trained = (
            vector_of(stage.learner.tensors, parameters) if isinstance(parameters, Mapping) else parameters
        )
        found = stage.ask(
            others, "the model", trained, plant, terms, confidence, _share(tell, "asking", 0, 1)
        )
    findings = LanguageFindings(stage.base, stage.kind, "planted", 0, (found,), numbers_digest(trained))
    return language_report(plan, terms, plant, findings, (), confidence, "synthetic", began, created)


def _share(tell: Progress, stage: str, number: int, runs: int) -> Callable[[int, int], None]:
    """Return progress of one of several runs of a stage."""
    return lambda done, total: tell(stage, number * total + done, runs * total)
