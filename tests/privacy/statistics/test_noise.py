"""How far noise moves a sum: against closed forms and against draws, on both sides of what is stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.privacy.statistics.tables import laplace_noise

from cloister.errors import InputError
from cloister.privacy.statistics import GaussianNoise, LaplaceNoise
from cloister.privacy.statistics.noise import _several


def geometric_tail(scale: float, t: int) -> float:
    """P(Z > t) by adding up masses, t >= 0."""
    q = math.exp(-1.0 / scale)
    return sum((1 - q) / (1 + q) * q**x for x in range(t + 1, t + 40 * math.ceil(scale) + 200))


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 7.5, 40.0])
@pytest.mark.parametrize("beta", [0.25, 0.025, 1e-4])
def test_one_laplace_draw_has_the_least_whole_bound(scale: float, beta: float) -> None:
    t = LaplaceNoise(scale).bound(((1.0, 1),), beta)
    assert t == int(t)
    assert geometric_tail(scale, int(t)) <= beta * (1 + 1e-9)
    if t > 0:
        assert geometric_tail(scale, int(t) - 1) > beta


@pytest.mark.parametrize("beta", [0.25, 0.025, 1e-4])
def test_two_equal_draws_meet_the_closed_form(beta: float) -> None:
    t = _several(((1.0, 2),), beta)
    assert beta * (1 - 1e-3) <= math.exp(-t) * (2 + t) / 4 <= beta


@pytest.mark.parametrize("weight", [0.9, 0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("beta", [0.25, 0.025, 1e-4])
def test_two_different_draws_meet_the_closed_form(weight: float, beta: float) -> None:
    t = _several(((1.0, 1), (weight, 1)), beta)
    tail = (math.exp(-t) - weight**2 * math.exp(-t / weight)) / (1 - weight**2) / 2
    assert beta * (1 - 2e-3) <= tail <= beta * (1 + 1e-5)


@pytest.mark.parametrize("weights", [((1.0, 3),), ((0.5, 7), (0.25, 9), (1.0, 12)), ((1.0, 48),)])
@pytest.mark.parametrize("scale", [0.4, 3.0, 300.0])
def test_draws_exceed_a_bound_as_seldom_as_stated(
    weights: tuple[tuple[float, int], ...], scale: float
) -> None:
    random, trials, beta = np.random.default_rng(5), 40_000, 0.05
    total = np.zeros(trials)
    for weight, count in weights:
        total += weight * laplace_noise(random, scale, (trials, count)).sum(axis=1)
    bound = LaplaceNoise(scale).bound(weights, beta)
    assert (total > bound).mean() < beta + 4 * math.sqrt(beta / trials)
    if scale > 100:  # half units are small then, and the bound is tight
        assert (total > bound).mean() > beta - 4 * math.sqrt(beta / trials)


def test_a_gaussian_bound_is_the_normal_quantile() -> None:
    bound = GaussianNoise(1000.0).bound(((1.0, 4), (0.5, 4)), 0.025)
    assert bound == pytest.approx(1.959964 * 1000.0 * math.sqrt(5.0) + 3.0, rel=1e-6)


def test_a_bound_that_leaves_out_a_draw_or_halves_the_scale_is_seen_to_be_wrong() -> None:
    random, trials, beta = np.random.default_rng(6), 40_000, 0.05
    total = laplace_noise(random, 50.0, (trials, 4)).sum(axis=1)
    for wrong in (
        LaplaceNoise(50.0).bound(((1.0, 2),), beta),
        LaplaceNoise(25.0).bound(((1.0, 4),), beta),
    ):
        assert (total > wrong).mean() > beta + 4 * math.sqrt(beta / trials)


def test_no_draw_moves_nothing_and_no_failure_is_impossible() -> None:
    assert LaplaceNoise(3.0).bound(((0.0, 5),), 0.05) == 0.0
    for beta in (0.0, 0.5, float("nan")):
        with pytest.raises(InputError):
            LaplaceNoise(3.0).bound(((1.0, 1),), beta)
