from __future__ import annotations

from fractions import Fraction

import pytest

from cloister.errors import InputError
from cloister.learning.private.ladder import BLOCK_TOKENS, CANCELLATION, most_rows, rung, tokens_float_bound


@pytest.mark.parametrize("context", [8, 16, 100, 512, 5000])
def test_rungs_hold_their_rows_and_are_few(context: int) -> None:
    rungs = [rung(length, context) for length in range(1, context + 1)]
    assert all(length <= each <= context for length, each in enumerate(rungs, start=1))
    assert rungs == sorted(rungs)
    assert len(set(rungs)) <= 8 + 14 + 12 + context // 1024 + 1
    if context == 512:
        assert [rung(n, 512) for n in (1, 16, 17, 128, 129, 512)] == [16, 16, 32, 128, 192, 512]


@pytest.mark.parametrize("length", [0, -1, 65])
def test_what_no_rung_holds_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="context is 64"):
        rung(length, 64)


@pytest.mark.parametrize("context", [16, 512, 40_000])
@pytest.mark.parametrize("microbatch", [1, 64, 4096])
def test_the_bound_covers_sum_and_scaling(context: int, microbatch: int) -> None:
    """Twice gamma_n C M, and 2 u M for the factor, in exact arithmetic."""
    u = Fraction(1, 2**53)
    positions = max(rung(n, context) * most_rows(rung(n, context)) for n in range(1, context + 1, 7))
    assert positions <= max(BLOCK_TOKENS, context)
    terms = positions + microbatch + 4
    gamma = terms * u / (1 - terms * u)
    due = 2 * gamma * int(CANCELLATION) * microbatch + 2 * u * microbatch
    assert due <= Fraction(tokens_float_bound(context, microbatch))
