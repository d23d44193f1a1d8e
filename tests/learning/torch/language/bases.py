"""Tiny bases and what trains them, for tests: a Llama, a Bert, a GPT-2 with random weights, and rows of tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tests.inference.language.models import make_tiny_model, make_tokenizer

from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles import PlainFolder, check_language_model
from cloister.learning.sections import LanguageSection, ModelSection, TrainingSection
from cloister.learning.torch.language.examples import Examples, joined
from cloister.learning.torch.language.learner import LanguageLearner

VOCABULARY = 300
MakeBase = Callable[[str], Path]


def make_base(path: Path, name: str) -> Path:
    """Write a base: "llama", "untied" (in three shards), "bert" or "gpt2"."""
    if name == "gpt2":
        return _make_gpt2(path)
    if name == "bert":
        return make_tiny_model(path, kind="bert", hidden=32)
    if name == "untied":
        return make_tiny_model(path, hidden=32, tied=False, shards=3)
    return make_tiny_model(path, hidden=32)


def _make_gpt2(path: Path) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=256,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    logging.disable_progress_bar()
    try:
        model.save_pretrained(path)
    finally:
        logging.enable_progress_bar()
    tokenizer.save_pretrained(path)
    return path


def section(classes: int = 0, *, seed: int = 7) -> ModelSection:
    return ModelSection(kind="text-classifier" if classes else "causal-lm", classes=classes, seed=seed)


def language(path: Path, **changes: Any) -> LanguageSection:
    """Return `[language]` for a base, its digests filled in."""
    with closing(PlainFolder(path)) as files:
        digests = {
            "base": files.digest,
            "tokenizer": tokenizer_digest(files, check_language_model(files)),
        }
    full = changes.get("method") == "full"
    return LanguageSection(**{**digests, "rank": 0 if full else 4, "context": 64, **changes})


def learner(
    path: Path, *, classes: int = 0, seed: int = 7, weights: bool = True, **changes: Any
) -> LanguageLearner:
    with closing(PlainFolder(path)) as files:
        return LanguageLearner(
            section(classes, seed=seed),
            language(path, **changes),
            files,
            scratch=path.parent,
            weights=weights,
        )


def rows(count: int = 12, *, classes: int = 0, seed: int = 0, longest: int = 24) -> Examples:
    """Return rows of several lengths whose second half of tokens is learnt."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, VOCABULARY, n).astype(np.int32) for n in rng.integers(4, longest + 1, count)]
    counted = [np.arange(len(each)) >= len(each) // 2 for each in ids]
    labels = rng.integers(0, classes, count).astype(np.float64) if classes else None
    return joined(ids, counted, labels, pad=0)


def training(**changes: Any) -> TrainingSection:
    return TrainingSection(**{"rounds": 1, "batch": 5, "local_steps": 4, "learning_rate": 0.05, **changes})
