from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr
from tests.privacy.auditing.worlds import gaussian_shares

from cloister.errors import InputError
from cloister.privacy.auditing import PrivacyCurve, distance_epsilon, mean_lower, mean_p_value


@pytest.mark.parametrize("kind", ["many canaries", "one canary", "all or nothing", "drifting"])
def test_the_bound_on_a_mean_is_wrong_as_rarely_as_it_says(kind: str) -> None:
    rng, confidence, repeats, truth = np.random.default_rng(6), 0.9, 400, 0.6
    wrong = 0
    for _ in range(repeats):
        if kind == "many canaries":
            values = rng.binomial(10, truth, 60) / 10
        elif kind == "one canary":
            values = rng.binomial(1, truth, 60).astype(float)
        elif kind == "all or nothing":  # the guesses of a run agree entirely
            values = np.repeat(rng.random(60) < truth, 1).astype(float)
        else:
            values = (rng.random(60) < np.linspace(0.2, 2 * truth - 0.2, 60)).astype(float)
        wrong += mean_lower(values, confidence=confidence, spread=0.025) > truth
    assert wrong / repeats <= 1 - confidence + 3 * math.sqrt(0.09 / repeats)


def test_wealth_is_a_supermartingale() -> None:
    """The expectation of final wealth over all outcomes of three coins with the null mean is 1, exactly."""
    mean, level = 0.4, 0.05
    total = 0.0
    for bits in range(8):
        values = [float(bits >> i & 1) for i in range(3)]
        chance = math.prod(mean if value else 1 - mean for value in values)
        total += chance * _final_wealth(values, mean, level)
    assert total == pytest.approx(1.0, abs=1e-12)


def _final_wealth(values: list[float], mean: float, level: float) -> float:
    """The definition, value by value, from the docstring."""
    spread, wealth = 0.25, 1.0
    seen: list[float] = []
    squares = 0.0
    for value in values:
        variance = (spread + squares) / (1 + len(seen))
        stake = min(math.sqrt(2 * math.log(1 / level) / (variance * len(values))), 0.75 / mean)
        wealth *= 1 + stake * (value - mean)
        squares += (value - (0.5 + sum(seen)) / (1 + len(seen))) ** 2
        seen.append(value)
    assert mean_p_value(values, mean, level=level) <= min(1.0, 1.0 / wealth) + 1e-12
    return wealth


def test_it_uses_that_many_canaries_vary_little() -> None:
    rng = np.random.default_rng(7)
    shares = gaussian_shares(rng, 100, 10, 1.0)
    low = mean_lower(shares, confidence=0.95, spread=0.025)
    assert ndtr(0.5) - 0.06 < low < ndtr(0.5)
    assert mean_lower(np.full(50, 0.5), confidence=0.95, spread=0.025) < 0.5


def test_the_distance_that_epsilon_and_delta_allow() -> None:
    for epsilon, delta in ((0.5, 0.0), (1.0, 1e-3), (2.0, 0.1)):
        curve = PrivacyCurve([(epsilon, delta)])
        alarms = np.linspace(0, 1, 20_001)
        distance = max(1 - a - curve.missed(a) for a in alarms)
        assert distance_epsilon(distance, delta) == pytest.approx(epsilon, abs=2e-3)
    assert distance_epsilon(0.0, 1e-5) == 0.0
    assert distance_epsilon(1.0, 1e-5) == math.inf


def test_arguments_out_of_range_are_refused() -> None:
    for call in (
        lambda: mean_lower([], confidence=0.95),
        lambda: mean_lower([1.5], confidence=0.95),
        lambda: mean_lower([float("nan")], confidence=0.95),
        lambda: mean_lower([0.5], confidence=0.0),
        lambda: mean_p_value([0.5], 2.0, level=0.05),
        lambda: distance_epsilon(2.0, 0.0),
    ):
        with pytest.raises(InputError):
            call()
