"""What a language model's base takes at a site: its weights, and one pass of rows through it. An estimate.

With b rows of T tokens in a pass, L layers of width h, a vocabulary of V, and c bytes a number (4 in float32,
2 in bfloat16):

    weights       c bytes a number of the files; half a byte with nf4; 4 with method "full"
    activations   17 c b T h L              what backward needs of layers whose attention keeps no scores
                                            (Korthikanti et al. 2022); with checkpointing 2 c b T h L, and
                                            one layer's 17 c b T h
    scores        12 b T V                  of next tokens, their logarithms and their gradient, as float32

Under [privacy] by record b is a block's rows, whatever rows_per_pass says. The configuration is read as JSON;
what it does not say counts as nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import InputError
from cloister.files import read_bytes
from cloister.learning import Plan
from cloister.learning.private.ladder import BLOCK_ROWS, most_rows

__all__ = ["base_bytes"]

_MAX_CONFIG: Final = 1 << 20


class _Config(msgspec.Struct, frozen=True):
    """What is read of config.json."""

    hidden_size: int = 0
    num_hidden_layers: int = 0
    vocab_size: int = 0
    dtype: str | None = None
    torch_dtype: str | None = None


def base_bytes(plan: Plan, base: Path) -> int:
    """Return the bytes that a base and one pass of rows take at a site; 0 for a plan that names none.

    Args:
        plan: the plan.
        base: folder of the base.

    Raises:
        InputError: it cannot be read.
    """
    language = plan.language
    if language is None:
        return 0
    config = _config(base)
    each = 2 if language.precision == "bfloat16" else 4
    weights = _numbers(base, config) * (4 if language.method == "full" else each)
    if language.quantised == "nf4":
        weights = _numbers(base, config) // 2
    rows = language.rows_per_pass or plan.training.batch
    if plan.privacy is not None and plan.privacy.by_record:
        rows = min(BLOCK_ROWS, most_rows(language.context))
    tokens = rows * language.context
    layer = each * tokens * config.hidden_size
    kept = 2 * config.num_hidden_layers + 17 if language.checkpointing else 17 * config.num_hidden_layers
    scores = 12 * tokens * config.vocab_size if plan.model.kind == "causal-lm" else 0
    return weights + kept * layer + scores


def _numbers(base: Path, config: _Config) -> int:
    """Return how many numbers the base's files hold, from their size."""
    try:
        stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    except OSError as error:
        raise InputError("cannot read the model folder", where=str(base), fix="Check the path") from error
    return stored // (2 if (config.dtype or config.torch_dtype) in ("bfloat16", "float16") else 4)


def _config(base: Path) -> _Config:
    try:
        data = read_bytes(base / "config.json", limit=_MAX_CONFIG, what="model's configuration")
        return msgspec.json.decode(data, type=_Config)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            "the model's configuration cannot be read", where="config.json", fix="Copy the model again"
        ) from error
