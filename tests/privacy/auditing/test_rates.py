from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from cloister.errors import InputError
from cloister.privacy.auditing import membership_bound, rate_interval, rate_lower, rate_upper


@pytest.mark.parametrize(("successes", "trials"), [(1, 10), (7, 10), (10, 10), (300, 1000)])
def test_the_lower_end_is_where_so_many_successes_become_unlikely(successes: int, trials: int) -> None:
    """The definition, solved by root finding on the binomial tail instead of the beta quantile."""
    expected = brentq(lambda p: binom.sf(successes - 1, trials, p) - 0.05, 1e-9, 1.0)
    assert rate_lower(successes, trials, confidence=0.95) == pytest.approx(expected, rel=1e-6)
    assert rate_upper(trials - successes, trials, confidence=0.95) == pytest.approx(1 - expected, rel=1e-6)


def test_ends_are_zero_and_one() -> None:
    assert rate_lower(0, 5, confidence=0.95) == 0.0
    assert rate_upper(5, 5, confidence=0.95) == 1.0


def test_the_interval_covers() -> None:
    for rate in (0.02, 0.5, 0.9):
        counts = np.arange(41)
        ends = [rate_interval(int(k), 40, confidence=0.9) for k in counts]
        inside = [low <= rate <= high for low, high in ends]
        assert float(binom.pmf(counts, 40, rate)[inside].sum()) >= 0.9


def test_a_plain_test_of_randomised_response() -> None:
    rng, epsilon, repeats = np.random.default_rng(5), 1.0, 300
    bounds = []
    for _ in range(repeats):
        members = int((rng.random(1000) < 0.5).sum())
        hits = rng.binomial(members, 1 / (1 + math.exp(-epsilon)))
        alarms = rng.binomial(1000 - members, 1 / (1 + math.exp(epsilon)))
        bounds.append(membership_bound(hits, members, alarms, 1000 - members, delta=1e-5, confidence=0.9))
    assert np.mean(np.array(bounds) > epsilon) <= 0.1 + 3 * math.sqrt(0.09 / repeats)
    assert np.mean(bounds) > 0.7 * epsilon


def test_perfect_and_useless_tests() -> None:
    assert membership_bound(500, 500, 0, 500, delta=0.0, confidence=0.95) > 4.5
    assert membership_bound(250, 500, 250, 500, delta=0.0, confidence=0.95) == 0.0
    assert membership_bound(500, 500, 0, 500, delta=1.0, confidence=0.95) == 0.0


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 2)])
def test_bad_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        rate_lower(*counts, confidence=0.95)


def test_bad_levels_are_refused() -> None:
    with pytest.raises(InputError):
        rate_lower(1, 2, confidence=1.5)
    with pytest.raises(InputError):
        membership_bound(1, 2, 1, 2, delta=-1.0, confidence=0.95)
