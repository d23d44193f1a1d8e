"""What `cloister study init` writes for a language model: its base by digest, its texts, how it is trained.

Defaults are those of adapters: Adam at the sites, a range of values as wide as its steps can reach, so that a
narrow ring keeps what matters. Under [privacy] a site sends clipped sums, and Adam is at the hub.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.cli.studyinit import Kind, no_label
from cloister.errors import InputError, PlanError

if TYPE_CHECKING:
    from cloister.vault import Schema

__all__ = ["Format", "LanguageOptions", "Method", "Overlong", "Precision", "Quantised", "is_language"]

_CONTEXT: Final = 512
_RANK: Final = 8
_TEXTS: Final = ("text", "category")


class Format(enum.StrEnum):
    """What a row is."""

    TEXT = "text"
    PAIRS = "pairs"
    CHAT = "chat"


class Method(enum.StrEnum):
    """What is trained of a base."""

    LORA = "lora"
    ALTERNATING = "lora-alternating"
    FULL = "full"


class Precision(enum.StrEnum):
    """What a base computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Overlong(enum.StrEnum):
    """What becomes of a row that is too long."""

    REFUSE = "refuse"
    TRUNCATE = "truncate"


class Quantised(enum.StrEnum):
    """How a base is kept in memory."""

    NO = "no"
    NF4 = "nf4"


def is_language(kind: Kind) -> bool:
    """Return whether a kind of model starts from a base."""
    return kind in (Kind.CAUSAL_LM, Kind.TEXT_CLASSIFIER)


@dataclass(frozen=True)
class LanguageOptions:
    """What the command line says of a language model; None where it says nothing, or a flag is not set."""

    base: Path | None
    format: Format | None
    method: Method | None
    rank: int | None
    context: int | None
    precision: Precision | None
    alpha: float | None = None
    target: list[str] | None = None
    overlong: Overlong | None = None
    quantised: Quantised | None = None
    rows_per_pass: int | None = None
    checkpointing: bool | None = None
    packing: bool | None = None

    def tables(self, kind: Kind, schema: Schema) -> dict[str, Any]:
        """Return `[language]` and what of `[data]` and `[training]` is another than for tables.

        Args:
            kind: of the model.
            schema: of the datasets.

        Raises:
            InputError: options do not fit the kind, or the folder is none of a language model.
            PlanError: the schema has no column of text.
        """
        if not is_language(kind):
            return self._nothing(kind)
        if self.base is None:
            raise InputError(
                f"a {kind.value} starts from a base model",
                where="--base",
                fix="Give the folder of one, with safetensors and tokenizer",
            )
        if self.format is not None and kind is Kind.TEXT_CLASSIFIER:
            raise InputError(
                "--format is for --model causal-lm; a text-classifier reads text", where="--format"
            )
        label = schema.columns[schema.label or no_label()].type
        if kind is Kind.TEXT_CLASSIFIER and label == "text":
            raise PlanError(
                f"column {schema.label!r} is of type text, and a text-classifier tells categories",
                where="[data] label",
                fix="Declare a category as the label, or take --model causal-lm",
            )
        method, shape = self.method or Method.LORA, self._format(kind, schema)
        language = self._language(self.base, method, shape)
        rate = 0.0002 if method is Method.FULL else 0.002
        training = {"batch": 16, "local_steps": 20, "optimiser": "adam", "learning_rate": rate}
        prompted = kind is Kind.TEXT_CLASSIFIER or shape is Format.PAIRS
        return {
            "language": language,
            "features": _texts(schema) if prompted else [],
            "training": training,
            "value_range": 20 * rate,
        }

    def _format(self, kind: Kind, schema: Schema) -> Format:
        """Return what a row is: what was said, else an answer where there is something to give before it."""
        prompted = kind is Kind.CAUSAL_LM and any(
            schema.columns[name].type in _TEXTS for name in schema.features
        )
        return self.format or (Format.PAIRS if prompted else Format.TEXT)

    def _nothing(self, kind: Kind) -> dict[str, Any]:
        """Return nothing; raise InputError where an option was given."""
        for name, given in vars(self).items():
            if given is not None and given is not False:
                raise InputError(
                    f"--{name.replace('_', '-')} is for language models, and this is a {kind.value} model",
                    fix="Leave it out, or take --model causal-lm or text-classifier",
                )
        return {}

    def _language(self, base: Path, method: Method, shape: Format) -> dict[str, Any]:
        from cloister.learning.language.tokenizer import tokenizer_digest
        from cloister.learning.modelfiles import PlainFolder, check_language_model

        if method is Method.FULL:
            for option, given in (("--rank", self.rank), ("--alpha", self.alpha), ("--target", self.target)):
                if given:
                    raise InputError(f"{option} is of adapters, and --method full has none", where=option)
        with contextlib.closing(PlainFolder(base)) as files:
            found = check_language_model(files)
            digest, tokenizer = files.digest, tokenizer_digest(files, found)
        most = found.config.get("max_position_embeddings")
        context = self.context or (min(_CONTEXT, most) if isinstance(most, int) else _CONTEXT)
        rank = 0 if method is Method.FULL else self.rank or _RANK
        return {
            "base": digest,
            "tokenizer": tokenizer,
            "format": shape.value,
            "context": context,
            "method": method.value,
            "rank": rank,
            "alpha": self.alpha if self.alpha is not None else 2.0 * rank or 1.0,
            "precision": (self.precision or Precision.FLOAT32).value,
        } | self._more()

    def _more(self) -> dict[str, Any]:
        """Return the fields whose defaults are the plan's own, as far as they were given."""
        given = {
            "targets": self.target,
            "overlong": self.overlong and self.overlong.value,
            "quantised": self.quantised and self.quantised.value,
            "rows_per_pass": self.rows_per_pass,
            "checkpointing": self.checkpointing,
            "packing": self.packing,
        }
        return {name: value for name, value in given.items() if value}


def _texts(schema: Schema) -> list[str]:
    """Return the columns that are given to the model. Raises PlanError where there are none."""
    names = [name for name in schema.features if schema.columns[name].type in _TEXTS]
    if not names:
        raise PlanError(
            "the schema has no column of text to give to the model",
            where="[data] features",
            fix='Declare one with type = "text"; for --format text or chat the label alone is the text',
        )
    return names
