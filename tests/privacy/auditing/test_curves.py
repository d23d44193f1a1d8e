from __future__ import annotations

import numpy as np
import pytest
from tests.privacy.auditing.worlds import gaussian_delta

from cloister.errors import InputError
from cloister.privacy.accounting import (
    Event,
    Everyone,
    IntegerGaussian,
    MixedGaussian,
    Poisson,
    PureDP,
    epsilon,
)
from cloister.privacy.auditing import GaussianTradeOff, curve_of, distance_of, scaled


def events(rate: float | None, count: int, noise: float = 2.0, sites: int = 1) -> tuple[Event, ...]:
    fields = {
        "variance": (noise * 1e4) ** 2,
        "sensitivity": 1e4,
        "coordinates": 5,
        "shares": 3,
        "distance": 1e-17,
    }
    mechanism = IntegerGaussian(**fields) if sites == 1 else MixedGaussian(**fields, sites=sites)
    sampler = Everyone() if rate is None else Poisson(rate=rate)
    return (Event(mechanism=mechanism, sampler=sampler, relation="zero-out", count=count),)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_every_pair_of_a_curve_is_what_the_accountant_says(rate: float | None) -> None:
    these = events(rate, 20)
    for at, delta in curve_of(these).pairs:
        if 1e-7 < delta < 0.5 and 0 < at < 4:
            assert epsilon(these, delta) == pytest.approx(at, abs=2e-3)


def test_a_curve_of_unsampled_noise_lies_just_below_its_trade_off() -> None:
    exact = GaussianTradeOff(np.sqrt(20) / 2.0)
    curve = curve_of(events(None, 20))
    for alarm in np.linspace(0.01, 0.99, 50):
        assert exact.missed(alarm) - 0.03 <= curve.missed(alarm) <= exact.missed(alarm) + 1e-6


def test_one_sampled_step_by_hand() -> None:
    """(1 - q) N(0) + q N(1) against N(0): the distance is q times the Gaussian's."""
    assert distance_of(events(0.3, 1)) == pytest.approx(0.3 * gaussian_delta(0.5, 0.0), abs=1e-5)


@pytest.mark.parametrize("sites", [1, 2])
def test_less_noise_is_more_distance(sites: int) -> None:
    these = events(0.2, 10, sites=sites)
    distances = [distance_of(scaled(these, factor)) for factor in (0.5, 1.0, 1.1)]
    assert distances == sorted(distances)
    assert distances[1] == pytest.approx(distance_of(these), rel=1e-6)


def test_noise_so_small_that_nothing_is_left() -> None:
    assert distance_of(scaled(events(0.5, 100), 4096.0)) > 0.99


def test_a_mechanism_without_a_scale_is_refused() -> None:
    with pytest.raises(InputError):
        scaled([Event(mechanism=PureDP(epsilon=1.0), sampler=Everyone(), relation="zero-out", count=1)], 2.0)
