"""How long rows of tokens are made, and the float error of sums over them; for whoever may not know torch.

Rows go through a model in blocks of one length, and a row is padded to its rung, the least rung that holds
it. The rung follows from the row's own length and from the plan's context, from nothing else, so that no row
decides how another one is computed.

**The bound.** A sum over M rows is made of at most M pieces, each of rows that have at most
P = max(2**14, context) tokens in all (`most_rows` keeps to it). As for any module (`learning.torch.terms`),
with n = P + M + 4 it errs by at most gamma_n C M clip; twice that, and 2 u M for the factor K / clip and its
product, is below (n + 4) C M 2**-52. Plan and microbatch alone decide it, so hub and sites agree on it.
"""

from __future__ import annotations

from typing import Final

from cloister.errors import InputError

__all__ = ["BLOCK_ROWS", "BLOCK_TOKENS", "CANCELLATION", "most_rows", "rung", "tokens_float_bound"]

BLOCK_TOKENS: Final = 1 << 14
"""Tokens of a block at most, padding counted; a single row may have more."""

BLOCK_ROWS: Final = 64
"""Rows of a block at most."""

CANCELLATION: Final = 1024.0
"""By how much positions of one row may cancel before its factor is reduced, in `learning.torch.terms`."""

_STEPS: Final = ((128, 16), (1024, 64), (4096, 256))
_LAST_STEP: Final = 1024


def rung(length: int, context: int) -> int:
    """Return the number of tokens that a row is padded to.

    Args:
        length: the row's own tokens, 1 to `context`.
        context: of the plan.

    Raises:
        InputError: the row is empty or longer than the context.
    """
    if not 1 <= length <= context:
        raise InputError(
            f"a row has {length} tokens and the context is {context}",
            fix='Write a larger context, or overlong = "truncate"',
        )
    step = next((step for end, step in _STEPS if length <= end), _LAST_STEP)
    return min(-(-length // step) * step, context)


def most_rows(length: int) -> int:
    """Return how many rows of so many tokens a block has room for, by its tokens alone."""
    return max(1, BLOCK_TOKENS // length)


def tokens_float_bound(context: int, microbatch: int) -> float:
    """Return the float error of one microbatch's sum, relative to the clip, as `Bounded.float_bound` says.

    Args:
        context: of the plan.
        microbatch: rows of one sum.
    """
    terms = max(BLOCK_TOKENS, context) + microbatch + 8
    return terms * microbatch * CANCELLATION * 2.0**-52
