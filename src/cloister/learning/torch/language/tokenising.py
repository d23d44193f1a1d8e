"""Texts through a tokenizer that may fail on some of them.

Tokenizers are Rust with regular expressions that come with the base. One may give up on a text, or panic; a
panic is no `Exception`, and its words may quote the text. Either way that text alone is without tokens.

A text may spell a control token, such as "</s>". A tokenizer that is told to read it as text may still have
the whole of it among its words, and one that normalises may make it of other characters: `Controls` looks at
what came out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Controls", "encodings", "is_failure"]


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


class Controls:
    """A tokenizer's control tokens.

    Args:
        tokenizer: of transformers, fast.

    Attributes:
        ids: int32[n], sorted.
        spelled: finds one as it is spelled.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        special |= {i: text for i, text in named if i is not None}  # a base may name one that it has not
        self.ids = np.array(sorted(special), dtype=np.int32)
        spelled = "|".join(re.escape(text) for text in special.values() if text)
        self.spelled = re.compile(spelled or r"(?!)")
        # what stands for unknown letters comes of any text, unless it is a control token by another name, too
        others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        unknown = {tokenizer.unk_token_id} - others
        self._never = np.array(sorted(set(special) - unknown), dtype=np.int32)

    def among(self, ids: Any) -> bool:
        """Tell whether tokens that were made of a text alone hold one."""
        return bool(np.isin(ids, self._never).any())

    def become(self, texts: Sequence[str]) -> bool:
        """Tell whether one of these would become one where control tokens are meant, as in a template's."""
        if any(self.spelled.search(text) for text in texts):
            return True
        self._backend.encode_special_tokens = False
        found = encodings(self._backend.encode_batch_fast, texts)
        return any(each is None or self.among(each.ids) for each in found)
