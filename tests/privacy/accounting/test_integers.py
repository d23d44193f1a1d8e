"""The integers that run, by direct summation, against what `epsilon` and `renyi` claim for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.privacy.accounting.brute import (
    Mass,
    crossing,
    hockey_stick,
    integer_gaussian,
    integer_laplace,
    log_moment,
    moved,
    sampled,
    shares_of,
    twice,
)

from cloister.privacy.accounting import (
    Event,
    Everyone,
    Gaussian,
    IntegerGaussian,
    IntegerLaplace,
    MixedGaussian,
    Poisson,
    delta_charged,
    epsilon,
    renyi,
)
from cloister.privacy.accounting.remainder import rounding_ratio, total_distance

TABLE = 2.0**-100  # a sampler's distance


def claim(variance: float, sensitivity: float, shares: int, rate: float, count: int = 1, d: int = 1) -> Event:
    sampler = Poisson(rate) if rate < 1 else Everyone()
    return Event(IntegerGaussian(variance, sensitivity, d, shares, TABLE), sampler, "zero-out", count)


def true_epsilon(p: Mass, q: Mass, delta: float) -> float:
    return crossing(lambda at: hockey_stick(p, q, at), delta)


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize(("share", "sensitivity"), [(12.0, 4), (100.0, 12)])
def test_one_coordinate(shares: int, rate: float, share: float, sensitivity: int) -> None:
    # a moment of order 12 lives around 12 times the move
    noise = shares_of(share * shares, shares, reach=math.ceil(9 * math.sqrt(share)) + 12 * sensitivity)
    p, q = sampled(*moved(noise, sensitivity), rate)
    event = claim(share * shares, sensitivity, shares, rate)
    for delta in (1e-3, 1e-6):
        claimed = epsilon([event], delta)
        assert hockey_stick(p, q, claimed) <= delta
        # what s^2 = 4 takes is all that lies between: none of it where the variance is large
        assert claimed <= true_epsilon(p, q, delta) * (1 + 10 / (share * shares)) + 1e-4
    for order in (2, 5, 12):
        cost = renyi([event], order)
        assert log_moment(p, q, order) / (order - 1) <= cost.rdp * (1 + 1e-9)


@pytest.mark.parametrize("move", [(5, 0), (4, 3), (3, 4)])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_two_coordinates(move: tuple[int, int], rate: float) -> None:
    noise = shares_of(32.0, 2, reach=40)
    far, near = moved(noise, move[0])
    other_far, other_near = moved(noise, move[1])
    p, q = sampled(np.outer(far, other_far).ravel(), np.outer(near, other_near).ravel(), rate)
    event = claim(32.0, math.hypot(*move), 2, rate, d=2)
    for delta in (1e-2, 1e-5):
        claimed = epsilon([event], delta)
        assert hockey_stick(p, q, claimed) <= delta
        assert claimed <= true_epsilon(p, q, delta) * 1.3 + 1e-4


def test_two_runs() -> None:
    noise = shares_of(48.0, 3, reach=36)
    p, q = twice(*sampled(*moved(noise, 7), 0.25))
    for delta in (1e-2, 1e-5):
        assert hockey_stick(p, q, epsilon([claim(48.0, 7, 3, 0.25, count=2)], delta)) <= delta


def test_a_unit_at_two_sites() -> None:
    noise = shares_of(60.0, 2, reach=130)
    rate, step = 0.3, 5
    masses = [np.pad(noise, (j * step, (2 - j) * step)) for j in range(3)]
    p = sum(math.comb(2, j) * rate**j * (1 - rate) ** (2 - j) * mass for j, mass in enumerate(masses))
    q = masses[0]
    event = Event(MixedGaussian(60.0, step, 1, 2, TABLE, 2), Poisson(rate), "zero-out", 1)
    for delta in (1e-2, 1e-5):
        claimed = epsilon([event], delta)
        assert hockey_stick(p, q, claimed) <= delta
        assert claimed <= true_epsilon(p, q, delta) * 1.1
    for order in (2, 6):
        assert log_moment(p, q, order) / (order - 1) <= renyi([event], order).rdp


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.0, math.pi])
def test_sites_that_push_in_other_directions_cost_no_more(angle: float) -> None:
    """Two sites' parts of one unit in two dimensions, of equal length: worst is when they are aligned."""
    step, rate, share, reach = 6, 0.3, 40.0, 60
    second = round(step * math.cos(angle)), round(step * math.sin(angle))
    x = np.arange(-reach, reach + 1)

    def at(first: int, other: int) -> Mass:
        mass = np.outer(np.exp(-((x - first) ** 2) / (2 * share)), np.exp(-((x - other) ** 2) / (2 * share)))
        return (mass / mass.sum()).ravel()

    q, both = at(0, 0), at(step + second[0], second[1])
    p = (1 - rate) ** 2 * q + rate * (1 - rate) * (at(step, 0) + at(*second)) + rate**2 * both
    sensitivity = max(step, math.hypot(*second))
    event = Event(MixedGaussian(share, sensitivity, 2, 1, TABLE, 2), Poisson(rate), "zero-out", 1)
    for delta in (1e-2, 1e-5):
        assert hockey_stick(p, q, epsilon([event], delta)) <= delta


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize(("scale", "moves"), [(3.0, (4,)), (10.0, (4,)), (3.0, (1, 3)), (1.5, (2, 1))])
def test_laplace(scale: float, moves: tuple[int, ...], rate: float) -> None:
    noise = integer_laplace(scale, reach=math.ceil(40 * scale))
    p, q = np.ones(1), np.ones(1)
    for move in moves:
        far, near = moved(noise, move)
        p, q = np.outer(p, far).ravel(), np.outer(q, near).ravel()
    p, q = sampled(p, q, rate)
    sampler = Poisson(rate) if rate < 1 else Everyone()
    event = Event(IntegerLaplace(scale, sum(moves), len(moves), TABLE), sampler, "zero-out", 1)
    for delta in (1e-2, 1e-6):
        claimed = epsilon([event], delta)
        assert hockey_stick(p, q, claimed) <= delta * (1 + 1e-9)
        if len(moves) == 1:
            assert claimed <= true_epsilon(p, q, delta) + 2e-4
    for order in (2, 7):
        cost = renyi([event], order)
        truth = log_moment(p, q, order) / (order - 1)
        assert truth <= cost.rdp * (1 + 1e-9)
        if len(moves) == 1:
            assert cost.rdp == pytest.approx(truth, rel=1e-9)


def test_wrong_accounts_are_caught_by_the_same_sum() -> None:
    """Each way to claim too little is seen by `hockey_stick`, so the tests above would see it."""
    p, q = sampled(*moved(shares_of(200.0, 2, reach=90), 14), 0.2)
    right = claim(200.0, 14, 2, 0.2)
    delta = 1e-6
    assert hockey_stick(p, q, epsilon([right], delta)) <= delta
    wrong = {
        "a share that the adversary knows is counted": claim(300.0, 14, 3, 0.2),
        "rounding left out of the sensitivity": claim(200.0, 13, 2, 0.2),
        "a lower rate than was sampled": claim(200.0, 14, 2, 0.15),
        "one run of two": right,
    }
    for what, event in wrong.items():
        pair = twice(p, q) if what == "one run of two" else (p, q)
        assert hockey_stick(*pair, epsilon([event], delta)) > delta, what


def rounded_gaussian(tau: float, rounding: float, reach: int) -> Mass:
    """Randomised rounding of N(0, tau^2): its mass at 0 .. reach, by a trapezoid sum that is exact to rounding."""
    step = 1 / 64
    x = np.arange(-reach - 14, reach + 14, step)
    density = np.exp(-(x**2) / (2 * tau**2)) / math.sqrt(2 * math.pi * tau**2) * step
    points = np.arange(-reach - 30, reach + 31)
    kernel = np.exp(-(np.subtract.outer(x, points) ** 2) / (2 * rounding))
    kernel /= kernel.sum(axis=1, keepdims=True)
    return (density @ kernel)[reach + 30 : 2 * reach + 31]


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_the_ratio_that_is_charged_covers_the_true_one(shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the real s^2 = 4 the ratio is 1e-34 from 1 and no float shows it; at s^2 = 0.2 it shows."""
    rounding, share = 0.2, 0.4
    monkeypatch.setattr("cloister.privacy.accounting.remainder.ROUNDING_VARIANCE", rounding)
    noise = shares_of(share * shares, shares, reach=30)
    middle = len(noise) // 2
    rounded = rounded_gaussian(math.sqrt(share * shares - rounding), rounding, reach=6)
    logs = np.abs(np.log(noise[middle : middle + 7] / rounded))
    theta = rounding_ratio(share, shares)
    assert logs.max() <= theta
    assert theta <= 40 * logs.max()
    assert logs.max() > 1e-4


def test_what_is_charged_adds_over_coordinates_runs_and_shares() -> None:
    one = Event(IntegerGaussian(80.0, 5.0, 1, 1, 1e-15), Everyone(), "zero-out", 1)
    assert total_distance([one]) == pytest.approx(1e-15)
    many = Event(IntegerGaussian(240.0, 5.0, 1000, 3, 1e-15), Everyone(), "zero-out", 50)
    assert total_distance([many]) == pytest.approx(1000 * 50 * 3 * 1e-15)
    assert delta_charged([one, many], 2.0) == pytest.approx((1 + math.exp(2)) * (1 + 150_000) * 1e-15)
    assert delta_charged([Event(Gaussian(1.0, 1.0), Everyone(), "zero-out", 9)], 1.0) == 0.0
    # with exact samplers only the proof's own terms are left
    exact = Event(IntegerGaussian(24.0, 5.0, 10**6, 3, 0.0), Everyone(), "zero-out", 10**4)
    assert 0 < total_distance([exact]) < 1e-22


def test_a_poor_sampler_costs_epsilon_and_a_bad_one_all_of_it() -> None:
    def at(distance: float) -> float:
        mechanism = IntegerGaussian(4e4, 200.0, 100, 2, distance)
        return epsilon([Event(mechanism, Poisson(0.1), "zero-out", 100)], 1e-5)

    exact, poor = at(0.0), at(1e-14)
    assert exact < poor < exact * 1.05
    with pytest.raises(Exception, match="no finite epsilon"):
        at(1e-9)


@pytest.mark.parametrize(
    ("clip_units", "coordinates", "noise", "rate", "count"),
    [
        (2**13, 14, 3.0, 0.5, 100),
        (2**13, 1_500, 7.0, 0.5, 100),
        (2**17, 100_000, 1.0, 0.01, 500),
        (2**18, 10**6, 4.0, 0.1, 1000),
        (2**21, 10**6, 0.8, 0.01, 500),
    ],
)
def test_integers_cost_at_most_two_percent(
    clip_units: int, coordinates: int, noise: float, rate: float, count: int
) -> None:
    """Against the real Gaussian's loss distribution at the same noise and clip: rounding's part of the sensitivity, the
    variance that the proof takes out, the charge to delta, all together."""
    sigma = noise * clip_units
    sensitivity = clip_units + math.sqrt(coordinates)
    integer = IntegerGaussian(sigma**2, sensitivity, coordinates, 3, 2.0**-110)
    ours = epsilon([Event(integer, Poisson(rate), "zero-out", count)], 1e-5)
    real = epsilon([Event(Gaussian(sigma, clip_units), Poisson(rate), "zero-out", count)], 1e-5)
    same = epsilon([Event(Gaussian(sigma, sensitivity), Poisson(rate), "zero-out", count)], 1e-5)
    assert real <= ours <= 1.02 * real
    assert ours <= 1.00001 * same  # being integers, apart from sensitivity, is all but free


def test_integer_gaussian_sums_to_one() -> None:
    assert integer_gaussian(8.0, 60).sum() == pytest.approx(1.0)
    assert shares_of(24.0, 3, 40).sum() == pytest.approx(1.0)
