from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloister.errors import InputError
from cloister.privacy.accounting import (
    Event,
    Everyone,
    Gaussian,
    IntegerGaussian,
    Laplace,
    Poisson,
    calibrate_noise,
    epsilon,
    rounds_within,
)


class Counted:
    """Makes events and counts how often it was asked."""

    def __init__(self, rate: float, count: int) -> None:
        self.rate, self.count, self.calls = rate, count, 0

    def of_noise(self, noise: float) -> Sequence[Event]:
        self.calls += 1
        sampler = Poisson(self.rate) if self.rate < 1 else Everyone()
        return [Event(Gaussian(noise, 1.0), sampler, "zero-out", self.count)]

    def of_rounds(self, rounds: int) -> Sequence[Event]:
        self.calls += 1
        return [Event(Gaussian(2.0, 1.0), Poisson(self.rate), "zero-out", rounds)]


@pytest.mark.parametrize(("target", "rate", "count"), [(1.0, 0.01, 1000), (8.0, 0.3, 50), (1.0, 1.0, 100)])
def test_the_smallest_noise_that_suffices(target: float, rate: float, count: int) -> None:
    make = Counted(rate, count)
    noise = calibrate_noise(target, 1e-5, make.of_noise)
    assert make.calls <= 20
    assert epsilon(make.of_noise(noise), 1e-5) <= target
    assert epsilon(make.of_noise(noise * (1 - 1.1e-4)), 1e-5) > target


def test_back_to_where_it_came_from() -> None:
    make = Counted(0.02, 200)
    target = epsilon(make.of_noise(1.37), 1e-5)
    assert calibrate_noise(target, 1e-5, make.of_noise) == pytest.approx(1.37, rel=2e-4)


def test_integers_and_several_events() -> None:
    def make(noise: float) -> list[Event]:
        clip = 2**15
        steps = IntegerGaussian((noise * clip) ** 2, clip + 4.0, 14, 3, 2.0**-110)
        return [
            Event(steps, Poisson(0.5), "zero-out", 50),
            Event(Laplace(20.0, 1.0), Everyone(), "zero-out", 1),
        ]

    noise = calibrate_noise(2.0, 1e-4, make)
    assert 1.99 < epsilon(make(noise), 1e-4) <= 2.0


def test_the_ends_of_the_search() -> None:
    make = Counted(1e-3, 1)
    assert calibrate_noise(5.0, 1e-3, make.of_noise, least=0.7) == 0.7
    with pytest.raises(InputError, match="no noise that was allowed"):
        calibrate_noise(0.1, 1e-9, Counted(1.0, 1000).of_noise, most=8.0)
    with pytest.raises(InputError, match="target epsilon"):
        calibrate_noise(0.0, 1e-5, make.of_noise)
    with pytest.raises(InputError, match="delta"):
        calibrate_noise(1.0, 0.0, make.of_noise)


def test_what_the_plan_refuses_is_not_swallowed() -> None:
    def refuse(noise: float) -> list[Event]:
        return [Event(IntegerGaussian(noise / 10, 1.0, 1, 1, 0.0), Everyone(), "zero-out", 1)]

    with pytest.raises(InputError, match="below 8 grid units"):
        calibrate_noise(1.0, 1e-5, refuse)


@pytest.mark.parametrize(("target", "rate"), [(3.0, 0.1)])
def test_the_most_rounds_that_fit(target: float, rate: float) -> None:
    make = Counted(rate, 0)
    rounds = rounds_within(target, 1e-5, make.of_rounds, 50_000)
    assert 1 < rounds < 50_000
    assert make.calls <= 25
    assert epsilon(make.of_rounds(rounds), 1e-5) <= target < epsilon(make.of_rounds(rounds + 1), 1e-5)


def test_all_rounds_or_none() -> None:
    make = Counted(0.001, 0)
    assert rounds_within(10.0, 1e-5, make.of_rounds, 40) == 40
    assert rounds_within(1e-3, 1e-9, Counted(0.5, 0).of_rounds, 40) == 0
    assert rounds_within(10.0, 1e-5, make.of_rounds, 1) == 1
    with pytest.raises(InputError, match="most rounds"):
        rounds_within(1.0, 1e-5, make.of_rounds, 0)
