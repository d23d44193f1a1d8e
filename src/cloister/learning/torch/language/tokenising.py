"""Texts through a tokenizer that may fail on some of them.

Tokenizers are Rust with regular expressions that come with the base. One may give up on a text, or panic; a
panic is no `Exception`, and its words may quote the text. Either way that text alone is without tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["encodings", "is_failure"]


def is_failure(error: BaseException) -> bool:
    """Tell whether a library failed; a wish to end the program is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def encodings(encode: Callable[..., Sequence[Any]], texts: Sequence[str]) -> list[Any]:
    """Return the encoding of each text, None where the tokenizer fails on it.

    Args:
        encode: `encode_batch` or `encode_batch_fast` of the tokenizer.
        texts: without regard to control tokens; none are put around them.
    """
    try:
        return list(encode(list(texts), add_special_tokens=False))
    except BaseException as error:  # a panic is no Exception
        if not is_failure(error):
            raise
    if len(texts) <= 1:
        return [None] * len(texts)
    half = len(texts) // 2
    return [*encodings(encode, texts[:half]), *encodings(encode, texts[half:])]
