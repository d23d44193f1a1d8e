"""Released language models of tiny bases: a vector of small random numbers, as a study would have trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tests.inference.adapters import CLASSES, text_schema

from cloister.inference.adapter import AdapterArtifact
from cloister.inference.language.adapted import released_adapter
from cloister.learning import Plan
from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.modelfiles.folder import check_language_model
from cloister.learning.sections import (
    DataSection,
    HubEntry,
    LanguageSection,
    ModelSection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.learning.torch.language.learner import LanguageLearner


def base_section(base: Path, **changes: Any) -> LanguageSection:
    files = PlainFolder(base)
    tokenizer = tokenizer_digest(files, check_language_model(files))
    section = LanguageSection(base=files.digest, tokenizer=tokenizer, rank=4, context=64)
    return msgspec.structs.replace(section, **changes)


def language_plan(base: Path, kind: str = "causal-lm", **language: Any) -> Plan:
    classes = 0 if kind == "causal-lm" else len(CLASSES)
    section = base_section(base, **({"format": "text" if classes else "pairs"} | language))
    prompted = bool(classes) or section.format == "pairs"
    return Plan(
        study=StudySection(name="support", purpose="answers to customers", minimum_sites=3),
        hub=HubEntry(name="hub", identity="0" * 64),
        sites=tuple(SiteEntry(name=f"site{n}", identity=f"{n + 1:064x}", dataset="rows") for n in range(4)),
        data=DataSection(
            schema=text_schema(kind).digest().hex(),
            features=("question", "hint") if prompted else (),
            label="intent" if classes else "answer",
        ),
        model=ModelSection(kind=kind, classes=classes, seed=7),  # type: ignore[arg-type]
        training=TrainingSection(rounds=5, batch=8, local_steps=2, learning_rate=0.1),
        language=section,
    )


def trained_vector(plan: Plan, base: Path, scratch: Path, *, spread: float = 0.3) -> np.ndarray:
    """What training might have made: the start, moved at random."""
    assert plan.language is not None
    full = plan.language.method == "full"
    language = msgspec.structs.replace(plan.language, quantised="no")  # which needs a GPU
    learner = LanguageLearner(plan.model, language, PlainFolder(base), scratch=scratch, weights=full)
    start = learner.initial(plan.model.seed)
    moved = np.random.default_rng(5).normal(0.0, 0.02 if full else spread, start.size)
    return (start + moved).astype(np.float32)


def released(base: Path, scratch: Path, kind: str = "causal-lm", **language: Any) -> AdapterArtifact:
    """A release's model, read back from its bytes."""
    plan = language_plan(base, kind, **language)
    vector = trained_vector(plan, base, scratch)
    made = released_adapter(plan, text_schema(kind), vector, base, scratch=scratch)
    return AdapterArtifact.from_bytes(made.to_bytes())
