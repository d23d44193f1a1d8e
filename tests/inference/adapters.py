"""Released language models put together by hand: small numbers in the shapes of a tiny Llama's layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from cloister.inference.adapter import AdapterArtifact
from cloister.learning.language.adapter import draw_a
from cloister.learning.language.card import AdapterCard
from cloister.learning.language.texts import TextMap
from cloister.learning.sections import DataSection, LanguageSection, ModelSection
from cloister.vault import Schema, load_schema

CLASSES = ("card", "loan", "transfer")
COLUMNS = """
[columns.question]
type = "text"
[columns.hint]
type = "text"
missing = "allow"
[columns.customer]
type = "text"
role = "id"
"""
LABELS = {
    "causal-lm": '[columns.answer]\ntype = "text"\nrole = "label"\n',
    "text-classifier": '[columns.intent]\ntype = "category"\nrole = "label"\n'
    'categories = ["card", "loan", "transfer"]\n',
}
PREFIX = "base_model.model."
LAYERS = {"layers.0.q_proj": (64, 64), "layers.0.v_proj": (32, 64)}
"""Layer to (outputs, inputs)."""


def text_schema(kind: str = "causal-lm") -> Schema:
    return load_schema((COLUMNS + LABELS[kind]).encode())


def language_section(**changes: Any) -> LanguageSection:
    return LanguageSection(**({"base": "b" * 64, "tokenizer": "c" * 64, "rank": 2, "context": 64} | changes))


def make_card(kind: str = "causal-lm", **language: Any) -> AdapterCard:
    """`kind` is "causal-lm", with pairs, or "text-classifier" of three classes."""
    classes = 0 if kind == "causal-lm" else len(CLASSES)
    model = ModelSection(kind=kind, classes=classes, seed=7)  # type: ignore[arg-type]
    section = language_section(**({"format": "text" if classes else "pairs"} | language))
    prompted = bool(classes) or section.format == "pairs"
    data = DataSection(
        schema=text_schema(kind).digest().hex(),
        features=("question", "hint") if prompted else (),
        label="intent" if classes else "answer",
    )
    texts = TextMap.build(text_schema(kind), data, model, section)
    return AdapterCard("cloister-adapter/1", "support", "a" * 64, 5, model, section, data.features, texts)


def make_tensors(
    card: AdapterCard, layers: dict[str, tuple[int, int]] | None = None
) -> dict[str, np.ndarray]:
    """An honest release's tensors: A as drawn, B and the head of small numbers."""
    found: dict[str, np.ndarray] = {}
    rank, random = card.language.rank, np.random.default_rng(3)
    for layer, (outputs, inputs) in (layers or LAYERS).items():
        a, b = (f"{PREFIX}{layer}.lora_{part}.weight" for part in "AB")
        if card.adapted:
            found[a] = draw_a(card.model.seed, a, (rank, inputs))
            found[b] = random.normal(0.0, 0.1, (outputs, rank)).astype(np.float32)
        else:
            found[f"{layer}.weight"] = random.normal(0.0, 0.1, (outputs, inputs)).astype(np.float32)
    if card.model.classes:
        found["head.weight"] = random.normal(size=(card.model.classes, 64)).astype(np.float32)
        found["head.bias"] = random.normal(size=card.model.classes).astype(np.float32)
    return found


def make_adapter(kind: str = "causal-lm", **language: Any) -> AdapterArtifact:
    card = make_card(kind, **language)
    return AdapterArtifact(card, make_tensors(card))
