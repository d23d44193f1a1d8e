"""What a plan starts from, before any weight is read.

1. The files are those of a language model, and have the digest that the plan names.
2. Their configuration is one of transformers' own.
3. The tokenizer has the digest that the plan names, and a template where the plan learns conversations.
4. The base can do what the plan asks: predict next tokens, read rows of the plan's context.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import IntegrityError, PlanError
from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.modelfiles.folder import LanguageModel, check_language_model
from cloister.learning.sections import LanguageSection, ModelSection
from cloister.learning.torch.language.pretrained import configuration, end_ids, quiet_transformers
from cloister.learning.torch.language.words import Words

__all__ = ["Base", "open_base"]


@dataclass(frozen=True, eq=False)
class Base:
    """A base without its weights.

    Args:
        found: what its files hold.
        config: as transformers has it.
        words: its tokenizer.
        ends: tokens that end an answer.
        places: tokens of a row that the base was made for, at most.
    """

    found: LanguageModel
    config: Any
    words: Words
    ends: frozenset[int]
    places: int


def open_base(section: ModelSection, language: LanguageSection, files: ModelFiles, scratch: Path) -> Base:
    """Return the base of a plan.

    Args:
        section: `[model]`.
        language: `[language]`.
        files: of the base.
        scratch: a folder, best in memory, for the tokenizer's files while it is loaded.

    Raises:
        PlanError: plan and base do not fit each other.
        InputError: the files are none of a base that can be trained.
        IntegrityError: base or tokenizer is not the one that the plan names.
    """
    if not section.is_language:
        raise PlanError(
            "this is no plan of a language model", where="[model] kind", fix="Use another learner"
        )
    found = check_language_model(files)  # 1: what is missing or may not be there says more than a digest
    if files.digest != language.base:
        same = tokenizer_digest(files, found) == language.tokenizer
        raise _other("base model", "base", f"its tokenizer is {'the same' if same else 'another too'}")
    quiet_transformers()
    config = configuration(found)  # 2
    words = Words(files, found, scratch)  # 3
    if words.digest != language.tokenizer:
        raise _other("tokenizer", "tokenizer")
    if language.format == "chat":
        words.require_template()
    if section.kind == "causal-lm" and found.kind != "causal":  # 4
        raise PlanError(
            "the base is an encoder, which predicts no next token",
            where="[model] kind",
            fix='Write kind = "text-classifier", or use a causal base',
        )
    most = _context_of(files, found, config)
    if language.context > most:
        raise PlanError(
            f"a context of {language.context} is more than the {most} tokens the base was made for",
            where="[language] context",
            fix=f"Write {most} or less",
        )
    ends = {*end_ids(files, found), *(() if words.end is None else (words.end,))}
    return Base(found, config, words, frozenset(ends), most)


def _context_of(files: ModelFiles, found: LanguageModel, config: Any) -> int:
    """Return the most tokens the base was made for; an encoder may have fewer places than it says."""
    most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 20)
    if found.kind == "encoder" and "tokenizer_config.json" in files.names:
        document = msgspec.json.decode(files.read("tokenizer_config.json"))
        written = document.get("model_max_length") if isinstance(document, dict) else None
        if isinstance(written, int) and written >= 1:
            return min(most, written)
    return most


def _other(what: str, field: str, more: str = "") -> IntegrityError:
    return IntegrityError(
        f"the {what} here is not the one that the plan names" + (f"; {more}" if more else ""),
        where=f"[language] {field}",
        fix="Ask the plan's author for the files, and give their folder as --base",
    )
