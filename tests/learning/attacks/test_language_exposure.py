"""Exposure: ranks in bits, intervals that hold, a law's tail, and a test of chance that keeps its level."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm, skewnorm

from cloister.errors import InputError
from cloister.learning.attacks.languageexposure import CHANCE_BITS, Exposure, chance_p_value, exposure_of


def exposure(planted: float, others: object, space: int = 10**8, **options: float) -> Exposure:
    return exposure_of("code", 1, space, planted, np.asarray(others, dtype=np.float64), **options)


def test_an_exact_rank_is_counted_from_the_most_likely() -> None:
    others = np.arange(1.0, 8.0)  # with the planted one a space of 8
    assert exposure(0.5, others, 8).bits == 3.0
    assert exposure(7.5, others, 8).bits == 0.0
    found = exposure(1.5, others, 8)
    assert (found.bits, found.low, found.high, found.fitted) == (2.0, 2.0, 2.0, None)
    assert found.p_value == 2 / 8


def test_a_model_that_prefers_nothing_has_remembered_nothing() -> None:
    found = exposure(3.0, np.full(7, 3.0), 8)
    assert (found.bits, found.p_value) == (0.0, 1.0)


def test_a_sample_cannot_say_more_than_its_size() -> None:
    others = np.random.default_rng(0).normal(20.0, 2.0, 1000)
    found = exposure(0.0, others)
    assert found.p_value == 1 / 1001
    assert found.bits == pytest.approx(math.log2(1001))
    assert found.low < found.bits < found.high == pytest.approx(math.log2(10**8))
    assert found.fitted == pytest.approx(math.log2(10**8))


@pytest.mark.slow
def test_the_interval_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    planted, space = 17.5, 10**6
    true = math.log2(space) - math.log2(1.0 + norm.cdf(planted, 20.0, 2.0) * (space - 1))
    held = 0
    for _ in range(300):
        found = exposure(planted, rng.normal(20.0, 2.0, 200), space, confidence=0.9)
        held += found.low <= true <= found.high
    assert held >= 255  # 270 expected, or more


@pytest.mark.parametrize(("shape", "at"), [(0.0, -5.0), (4.0, 4.4), (-4.0, -8.0)])
def test_the_fitted_law_reaches_beyond_the_sample(shape: float, at: float) -> None:
    law = skewnorm(shape, 5.0 if shape else 0.0, 3.0 if shape else 1.0)
    found = exposure(at, law.rvs(3000, random_state=2), 10**12)
    assert found.fitted == pytest.approx(-law.logcdf(at) / math.log(2.0), rel=0.15)
    assert found.fit_p_value is not None
    assert found.fit_p_value > 0.01


def test_a_law_that_does_not_fit_says_so() -> None:
    rng = np.random.default_rng(3)
    two = np.concatenate([rng.normal(0.0, 0.1, 400), rng.normal(9.0, 0.1, 400)])
    found = exposure(4.0, two)
    assert found.fit_p_value is not None
    assert found.fit_p_value < 1e-6
    assert exposure(4.0, np.full(100, 5.0)).fitted is None


def test_at_chance_exposure_is_a_bit_and_a_half() -> None:
    draws = np.random.default_rng(4).normal(size=(3000, 256))
    bits = [exposure(row[0], row[1:], 256).bits for row in draws]
    assert np.mean(bits) == pytest.approx(CHANCE_BITS, abs=0.12)


@pytest.mark.parametrize(("others", "space"), [(1, 2), (4, 5), (76, 77), (300, 301)])
def test_secrets_that_nobody_knows_are_at_chance(others: int, space: int) -> None:
    draws = np.random.default_rng(5).normal(size=(400, 6, others + 1))
    found = [chance_p_value([exposure(row[0], row[1:], space) for row in rows]) for rows in draws]
    for level in (0.05, 0.2):  # never more often than that, by more than five deviations
        assert np.mean(np.array(found) <= level) <= level + 5.0 * math.sqrt(level / 400)


def test_few_ranks_are_added_up_by_their_own_law() -> None:
    """Against the whole table of 4 secrets with 3 values each."""
    ranks = (1, 1, 2, 3)
    found = [exposure(float(rank), [1.5, 2.5] if rank == 2 else [1.0, 1.0][: rank - 1] + [9.0] * (3 - rank), 3)
             for rank in ranks]  # fmt: skip
    assert [round(each.p_value * 3) for each in found] == list(ranks)
    total = math.prod(ranks)
    exact = sum(math.prod(each) <= total for each in product((1, 2, 3), repeat=4)) / 3**4
    assert exact <= chance_p_value(found) <= exact * 1.5


def test_secrets_together_show_what_none_shows_alone() -> None:
    others = np.arange(100.0)
    each = exposure(14.5, others)
    assert each.p_value > 0.1
    assert chance_p_value([each] * 12) < 0.01
    assert chance_p_value([exposure(50.0, others)] * 12) > 0.5


@pytest.mark.parametrize(("planted", "others"), [(1.0, []), (math.nan, [1.0]), (1.0, [1.0, math.inf])])
def test_what_cannot_be_ranked_is_refused(planted: float, others: list[float]) -> None:
    with pytest.raises(InputError, match="finite losses"):
        exposure(planted, others)
    with pytest.raises(InputError, match="no secret"):
        chance_p_value([])
