from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.privacy.mechanisms import MINIMUM_SHARE_VARIANCE, share_variance


@pytest.mark.parametrize(
    ("minimum", "colluders", "adversary", "counted"),
    [
        (4, 1, "colluders", 3),
        (4, 0, "colluders", 3),
        (7, 3, "colluders", 4),
        (4, 1, "hub", 4),
        (7, 3, "hub", 7),
    ],
)
def test_shares_that_count(minimum: int, colluders: int, adversary: str, counted: int) -> None:
    share = share_variance(1200.0, minimum=minimum, colluders=colluders, adversary=adversary)  # type: ignore[arg-type]
    assert share == pytest.approx(1200.0 / counted)


@given(st.integers(1, 200), st.integers(0, 200), st.floats(1e5, 1e12))
def test_whoever_colludes_enough_noise_is_left(minimum: int, colluders: int, variance: float) -> None:
    if minimum - max(colluders, 1) < 1:
        with pytest.raises(PlanError, match="none is left"):
            share_variance(variance, minimum=minimum, colluders=colluders, adversary="colluders")
        return
    share = share_variance(variance, minimum=minimum, colluders=colluders, adversary="colluders")
    # even a single site that is curious knows its own share
    assert (minimum - max(colluders, 1)) * share == pytest.approx(variance)
    assert share >= share_variance(variance, minimum=minimum, colluders=colluders, adversary="hub")


def test_a_share_that_is_too_small_for_the_accounting_is_refused() -> None:
    limit = 3 * MINIMUM_SHARE_VARIANCE
    assert share_variance(limit, minimum=4, colluders=1, adversary="colluders") == MINIMUM_SHARE_VARIANCE
    for variance in (limit * 0.999, 0.0, -1.0, float("nan")):
        with pytest.raises(PlanError, match="less than 8"):
            share_variance(variance, minimum=4, colluders=1, adversary="colluders")
    with pytest.raises(PlanError, match="unknown"):
        share_variance(100.0, minimum=4, colluders=1, adversary="nobody")  # type: ignore[arg-type]
    with pytest.raises(PlanError):
        share_variance(100.0, minimum=4, colluders=-1, adversary="hub")
