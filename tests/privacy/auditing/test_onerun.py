from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import binom
from tests.privacy.auditing.worlds import gaussian_epsilon, gaussian_game, randomised_response

from cloister.errors import InputError
from cloister.privacy.auditing import (
    GaussianTradeOff,
    PrivacyCurve,
    epsilon_bound,
    p_value,
    refutes,
    tradeoff_bound,
    tradeoff_epsilon_bound,
    tradeoff_p_value,
)


def largest_tail(curve: PrivacyCurve, m: int, r: int, v: int, sets: list[list[int]]) -> float:
    """The largest P[N >= v] that the inequalities allow, by linear programming over p_0 .. p_r.

    For each set T of counts: f(1 - sum_{i in T} i p_i / m) <= sum_{i in T} (r - i + 1) p_{i-1} / m, and f is
    the maximum of lines, so each line is one linear inequality.
    """
    rows, limits = [], []
    lines = [
        line
        for epsilon, delta in curve.pairs
        for line in ((1 - delta, math.exp(epsilon)), (math.exp(-epsilon) * (1 - delta), math.exp(-epsilon)))
    ]
    for counts in sets:
        for height, slope in lines:  # height - slope (1 - right) <= wrong
            row = np.zeros(r + 1)
            for i in counts:
                row[i] += slope * i / m
                row[i - 1] -= (r - i + 1) / m
            rows.append(row)
            limits.append(slope - height)
    objective = np.where(np.arange(r + 1) >= v, -1.0, 0.0)
    found = linprog(objective, rows, limits, np.ones((1, r + 1)), [1.0], bounds=(0, 1))
    assert found.success
    return -float(found.fun)


CURVES = [
    PrivacyCurve([(0.5, 0.0)]),
    PrivacyCurve([(1.0, 1e-2)]),
    PrivacyCurve([(0.0, 0.2), (0.5, 0.05), (1.5, 1e-3)]),
]


@pytest.mark.parametrize("curve", CURVES, ids=["pure", "approximate", "three pairs"])
@pytest.mark.parametrize(("m", "r"), [(6, 6), (9, 6)])
def test_the_p_value_is_the_optimum_of_the_linear_programme(curve: PrivacyCurve, m: int, r: int) -> None:
    for v in range(r + 1):
        tails = [list(range(i, r + 1)) for i in range(1, v + 1)]
        best = largest_tail(curve, m, r, v, tails) if tails else 1.0
        assert tradeoff_p_value(curve, m, r, v) == pytest.approx(best, rel=3e-3, abs=1e-9)


@pytest.mark.parametrize("curve", CURVES, ids=["pure", "approximate", "three pairs"])
def test_inequalities_over_all_sets_allow_no_more(curve: PrivacyCurve) -> None:
    """Only tails are used; the theorem holds for every set of counts, so the p-value is on the safe side."""
    m = r = 5
    every = [list(s) for n in range(1, r + 1) for s in itertools.combinations(range(1, r + 1), n)]
    for v in range(1, r + 1):
        assert tradeoff_p_value(curve, m, r, v) >= largest_tail(curve, m, r, v, every) - 1e-6


def test_one_canary_is_exact() -> None:
    """With one canary the best guess is right with (1 + TV) / 2: mu-GDP has TV = 2 Phi(mu / 2) - 1."""
    from scipy.special import ndtr

    for mu in (0.1, 1.0, 3.0):
        assert tradeoff_p_value(GaussianTradeOff(mu), 1, 1, 1) == pytest.approx(ndtr(mu / 2), rel=2e-3)


@given(
    st.integers(1, 40).flatmap(
        lambda m: st.tuples(st.just(m), st.integers(0, m)).flatmap(
            lambda mr: st.tuples(st.just(mr[0]), st.just(mr[1]), st.integers(0, mr[1]))
        )
    ),
    st.floats(0.0, 4.0),
    st.sampled_from([0.0, 1e-6, 1e-2]),
)
@settings(max_examples=60, deadline=None)
def test_p_values_are_probabilities_and_fall_with_epsilon(
    counts: tuple[int, int, int], epsilon: float, delta: float
) -> None:
    m, r, v = counts
    here = p_value(m, r, v, epsilon=epsilon, delta=delta)
    assert 0.0 < here <= 1.0
    assert p_value(m, r, v, epsilon=epsilon + 0.5, delta=delta) >= here * (1 - 1e-9) or delta > 0
    curve = PrivacyCurve([(epsilon, delta)])
    whole = tradeoff_p_value(curve, m, r, v)
    assert 0.0 < whole <= 1.0
    if v < r:
        assert tradeoff_p_value(curve, m, r, v + 1) <= whole * 1.002


def test_without_delta_the_p_value_is_the_binomial_tail() -> None:
    q = 1 / (1 + math.exp(-0.7))
    assert p_value(50, 30, 25, epsilon=0.7, delta=0.0) == pytest.approx(
        sum(binom.pmf(k, 30, q) for k in range(25, 31)), rel=1e-12
    )


def test_with_delta_it_is_the_published_listing() -> None:
    """Appendix D of Steinke et al. 2023, written out as there."""
    m, r, v, epsilon, delta = 100, 80, 60, 0.9, 1e-4
    q = 1 / (1 + math.exp(-epsilon))
    beta = binom.sf(v - 1, r, q)
    alpha = total = 0.0
    for i in range(1, v + 1):
        total = total + binom.pmf(v - i, r, q)
        if total > i * alpha:
            alpha = total / i
    assert p_value(m, r, v, epsilon=epsilon, delta=delta) == pytest.approx(
        min(beta + alpha * delta * 2 * m, 1), rel=1e-9
    )


Bound = Callable[[int, int, int], float]


@pytest.mark.parametrize("bound", [epsilon_bound, tradeoff_epsilon_bound])
def test_randomised_response_is_bounded_validly_and_not_vacuously(bound: Callable[..., float]) -> None:
    rng, epsilon, confidence, repeats = np.random.default_rng(1), 1.0, 0.9, 400
    bounds = []
    cache: dict[int, float] = {}
    for _ in range(repeats):
        guesses, right = randomised_response(rng, 200, epsilon)
        if right not in cache:
            cache[right] = bound(200, guesses, right, delta=1e-5, confidence=confidence)
        bounds.append(cache[right])
    wrong = np.mean(np.array(bounds) > epsilon)
    assert wrong <= 1 - confidence + 3 * math.sqrt(0.1 * 0.9 / repeats)
    assert np.mean(bounds) > 0.45 * epsilon


@pytest.mark.parametrize("fraction", [0.1, 0.4, 1.0])
def test_the_gaussian_mechanism_is_bounded_validly_and_not_vacuously(fraction: float) -> None:
    rng, mu, delta, confidence, repeats = np.random.default_rng(2), 1.0, 1e-5, 0.9, 120
    truth = gaussian_epsilon(mu, delta)
    bounds, cache = [], {}
    for _ in range(repeats):
        key = gaussian_game(rng, 500, mu, fraction)
        if key not in cache:
            found = tradeoff_bound(
                GaussianTradeOff, 500, *key, confidence=confidence, low=1e-3, high=10.0, tolerance=0.02
            )
            cache[key] = gaussian_epsilon(found, delta)
        bounds.append(cache[key])
    assert np.mean(np.array(bounds) > truth) <= 1 - confidence + 3 * math.sqrt(0.09 / repeats)
    assert np.mean(bounds) > 0.25 * truth


def test_the_mechanisms_own_curve_says_more_than_epsilon_and_delta_alone() -> None:
    guesses, right = gaussian_game(np.random.default_rng(3), 1000, 1.0, 0.3)
    own = tradeoff_bound(GaussianTradeOff, 1000, guesses, right, confidence=0.95, low=1e-3, high=10.0)
    plain = tradeoff_epsilon_bound(1000, guesses, right, delta=1e-5, confidence=0.95)
    assert gaussian_epsilon(own, 1e-5) > 1.3 * plain > 0.5


def test_a_wrong_variant_that_forgets_delta_would_be_invalid() -> None:
    """With delta = 0.1 a mechanism may publish a tenth of the bits outright, and keep the rest."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        published = int((rng.random(400) < 0.1).sum())
        assert epsilon_bound(400, published, published, delta=0.1, confidence=0.95) == 0.0
        assert tradeoff_epsilon_bound(400, published, published, delta=0.1, confidence=0.95) == 0.0
        assert epsilon_bound(400, published, published, delta=0.0, confidence=0.95) > 1.0


def test_a_release_of_every_bit_is_refuted_at_any_epsilon_that_so_few_canaries_can() -> None:
    assert epsilon_bound(100, 100, 100, delta=1e-6, confidence=0.95) > 3.0
    assert refutes(PrivacyCurve([(3.0, 1e-6)]), 100, 100, 100, 0.05)


def test_chance_refutes_nothing() -> None:
    assert epsilon_bound(100, 100, 50, delta=1e-6, confidence=0.95) == 0.0
    assert tradeoff_epsilon_bound(100, 0, 0, delta=1e-6, confidence=0.95) == 0.0
    assert tradeoff_bound(GaussianTradeOff, 100, 100, 50, confidence=0.95, low=1e-3, high=1.0) == 0.0


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (0, 0, 0), (10, 5, -1)])
def test_counts_that_contradict_each_other_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(InputError):
        epsilon_bound(*counts, delta=1e-5, confidence=0.95)
    with pytest.raises(InputError):
        refutes(GaussianTradeOff(1.0), *counts, 0.05)


def test_levels_out_of_range_are_refused() -> None:
    with pytest.raises(InputError):
        epsilon_bound(10, 10, 10, delta=1e-5, confidence=1.0)
    with pytest.raises(InputError):
        p_value(10, 10, 10, epsilon=-1.0, delta=0.0)
    with pytest.raises(InputError):
        refutes(GaussianTradeOff(1.0), 10, 10, 10, 0.0)
