"""Renyi costs against sums and integrals written out anew."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cloister.errors import InputError
from cloister.privacy.accounting import (
    MOST_EPSILON,
    Event,
    Everyone,
    FixedSize,
    Gaussian,
    IntegerGaussian,
    IntegerLaplace,
    Laplace,
    Mechanism,
    MixedGaussian,
    Poisson,
    PureDP,
    RandomisedResponse,
    Sampler,
    delta_charged,
    epsilon,
    renyi,
)
from cloister.privacy.accounting.mixture import mixed_moment
from cloister.privacy.accounting.pairs import MixedPair


def rdp(mechanism: Mechanism, sampler: Sampler, order: int, count: int = 1) -> float:
    relation = "replace-one" if isinstance(sampler, FixedSize) else "zero-out"
    return renyi([Event(mechanism, sampler, relation, count)], order).rdp


def sampled_gaussian(sigma: float, rate: float, order: int) -> float:
    """Mironov, Talwar, Zhang 2019, section 3.3, for an integer order: the sum as it is printed."""
    total = sum(
        math.comb(order, k)
        * float(Fraction(1 - rate) ** (order - k) * Fraction(rate) ** k)
        * math.exp((k * k - k) / (2 * sigma**2))
        for k in range(order + 1)
    )
    return math.log(total) / (order - 1)


@pytest.mark.parametrize("order", [2, 3, 8, 20])
@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (2.0, 0.5), (5.0, 0.001), (1.0, 0.999)])
def test_sampled_gaussian_by_the_printed_sum(sigma: float, rate: float, order: int) -> None:
    assert rdp(Gaussian(sigma, 1.0), Poisson(rate), order) == pytest.approx(
        sampled_gaussian(sigma, rate, order), rel=1e-6, abs=1e-14
    )
    assert rdp(Gaussian(sigma, 1.0), Poisson(rate), order, 1000) == pytest.approx(
        1000 * rdp(Gaussian(sigma, 1.0), Poisson(rate), order)
    )


def test_everyone_is_the_plain_formula() -> None:
    assert rdp(Gaussian(4.0, 2.0), Everyone(), 6, 10) == pytest.approx(10 * 6 / (2 * 2.0**2))
    assert rdp(Gaussian(4.0, 2.0), Poisson(1.0), 6, 10) == pytest.approx(10 * 6 / (2 * 2.0**2))
    assert rdp(Gaussian(4.0, 2.0), FixedSize(50, 50), 6, 10) == pytest.approx(10 * 6 / (2 * 2.0**2))


def test_fixed_size_is_the_second_order_term_of_its_theorem() -> None:
    """Wang, Balle, Kasiviswanathan 2019, theorem 27 at order 2, where only one term is left."""
    rate, sigma = 0.01, 2.0
    step = math.exp(1 / sigma**2)
    exact = math.log1p(rate**2 * min(4 * (step - 1), 2 * step))
    assert rdp(Gaussian(sigma, 1.0), FixedSize(1000, 10), 2) == pytest.approx(exact, rel=1e-9)


def integrated(upper: object, lower: object, order: int, step: float) -> float:
    both = np.log(np.asarray(upper)), np.log(np.asarray(lower))
    return max(
        float(np.logaddexp.reduce(order * a + (1 - order) * b)) + math.log(step)
        for a, b in (both, both[::-1])
    ) / (order - 1)


@pytest.mark.parametrize("order", [2, 5, 16])
@pytest.mark.parametrize(("sigma", "rate", "sites"), [(1.0, 0.03, 3), (2.0, 0.5, 2), (3.0, 0.2, 5)])
def test_a_unit_at_several_sites_by_integration(sigma: float, rate: float, sites: int, order: int) -> None:
    reach = 12 * sigma + order * sites
    x = np.linspace(-reach, reach, 200_001)
    near = norm.logpdf(x, 0, sigma)
    weights = [
        math.log(math.comb(sites, j)) + j * math.log(rate) + (sites - j) * math.log1p(-rate)
        for j in range(sites + 1)
    ]
    mixed = np.logaddexp.reduce([w + norm.logpdf(x, j, sigma) for j, w in enumerate(weights)], axis=0)
    forward = float(np.logaddexp.reduce(order * mixed + (1 - order) * near)) + math.log(x[1] - x[0])
    reverse = float(np.logaddexp.reduce(order * near + (1 - order) * mixed)) + math.log(x[1] - x[0])
    ours = mixed_moment(MixedPair(sigma, rate, sites), order)
    assert max(forward, reverse) * (1 - 1e-9) - 1e-12 <= ours <= max(forward, reverse) * (1 + 1e-5)
    event = MixedGaussian((sigma * 1e6) ** 2, 1e6, 1, 1, 0.0, sites)
    assert rdp(event, Poisson(rate), order) * (order - 1) == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("order", [2, 9, 40])
def test_the_other_direction_of_a_mixture_is_bounded_closely_and_from_above(order: int) -> None:
    from cloister.privacy.accounting import mixture

    for pair in (MixedPair(1.0, 0.3, 3), MixedPair(0.5, 0.05, 2), MixedPair(4.0, 0.9, 6)):
        x = np.linspace(-40.0, 40.0, 400_001)
        log_ratio = np.logaddexp.reduce(
            [
                math.log(math.comb(pair.sites, j))
                + j * math.log(pair.rate)
                + (pair.sites - j) * math.log1p(-pair.rate)
                + j * x / pair.noise
                - j * j / (2 * pair.noise**2)
                for j in range(pair.sites + 1)
            ],
            axis=0,
        )
        exact = float(np.logaddexp.reduce(norm.logpdf(x) + (1 - order) * log_ratio)) + math.log(x[1] - x[0])
        bound = mixture._reverse(pair, order)
        assert exact - 1e-12 <= bound <= exact * (1 + 1e-4) + 1e-9


def test_a_unit_at_several_sites_costs_less_than_the_crude_bound() -> None:
    """The crude bound: in the sample of any site at all, and then with all sites' parts."""
    sites, rate, sigma = 4, 0.02, 6.0
    crude = rdp(Gaussian(sigma, float(sites)), Poisson(1 - (1 - rate) ** sites), 8)
    ours = rdp(MixedGaussian((sigma * 1e6) ** 2, 1e6, 1, 1, 0.0, sites), Poisson(rate), 8)
    assert ours < crude / 3
    # which is what is left where the exact sum would take too long
    large = rdp(MixedGaussian((sigma * 1e6) ** 2, 1e6, 1, 1, 0.0, sites), Poisson(rate), 2000)
    assert large == pytest.approx(rdp(Gaussian(sigma, float(sites)), Poisson(1 - (1 - rate) ** sites), 2000))


@pytest.mark.parametrize("order", [2, 3, 10])
def test_laplace_by_integration(order: int) -> None:
    x = np.linspace(-40.0, 42.0, 820_001)
    step = float(x[1] - x[0])
    near, far = -np.abs(x) - math.log(2), -np.abs(x - 2) - math.log(2)
    for rate in (1.0, 0.2):
        mixed = np.exp(far) * rate + np.exp(near) * (1 - rate)
        assert rdp(Laplace(1.0, 2.0), Poisson(rate), order) == pytest.approx(
            integrated(mixed, np.exp(near), order, step), rel=1e-6
        )
        integers = IntegerLaplace(30_000.0, 60_000.0, 1, 0.0)
        assert rdp(integers, Poisson(rate), order) == pytest.approx(
            rdp(Laplace(1.0, 2.0), Poisson(rate), order), rel=1e-6
        )


def test_few_points() -> None:
    often, rarely = math.exp(0.7) / (1 + math.exp(0.7)), 1 / (1 + math.exp(0.7))
    assert rdp(PureDP(0.7), Everyone(), 4) == pytest.approx(
        math.log(often**4 * rarely**-3 + rarely**4 * often**-3) / 3
    )
    answers = np.array([math.exp(1.0), 1, 1, 1]) / (math.exp(1.0) + 3)
    uniform = np.full(4, 0.25)
    sums = [float((p**5 * q**-4).sum()) for p, q in ((answers, uniform), (uniform, answers))]
    assert rdp(RandomisedResponse(1.0, 4), Everyone(), 5) == pytest.approx(math.log(max(sums)) / 4)
    assert rdp(PureDP(0.7), Everyone(), 1024) < 0.7


@pytest.mark.parametrize("cap", [105, 130, 200])
def test_a_capped_sample_costs_at_least_an_uncapped_one_and_more_the_tighter_the_cap(cap: int) -> None:
    plain = rdp(Gaussian(2.0, 1.0), Poisson(0.1), 4)
    capped = rdp(Gaussian(2.0, 1.0), Poisson(0.1, 1000, cap), 4)
    assert plain <= capped <= rdp(Gaussian(2.0, 1.0), Poisson(0.1, 1000, cap - 5), 4)
    if cap == 200:
        assert capped == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize(
    "event",
    [
        Event(Gaussian(1.2, 1.0), Poisson(0.05), "zero-out", 50),
        Event(MixedGaussian(4e8, 1e4, 5, 2, 2.0**-110, 3), Poisson(0.05), "zero-out", 50),
        Event(Laplace(4.0, 1.0), Poisson(0.2), "zero-out", 30),
        Event(IntegerLaplace(40.0, 9.0, 2, 2.0**-110), Poisson(0.2), "zero-out", 30),
        Event(RandomisedResponse(0.5, 4), Everyone(), "zero-out", 10),
    ],
    ids=lambda event: type(event.mechanism).__name__,
)
def test_divergences_and_loss_distributions_agree(event: Event) -> None:
    """Two independent accounts of one event: converted, divergences are above, and not by much."""
    delta = 1e-6
    converted = min(
        renyi([event], order).rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order in range(2, 65)
    )
    losses = epsilon([event], delta)
    assert losses <= converted <= 1.5 * losses + 0.1


@settings(max_examples=25)
@given(
    st.floats(0.5, 20.0), st.floats(0.0001, 0.9), st.integers(2, 64), st.integers(1, 4), st.floats(1.01, 2.0)
)
def test_monotone(sigma: float, rate: float, order: int, sites: int, more: float) -> None:
    def at(sigma: float, rate: float, order: int, sites: int) -> float:
        return mixed_moment(MixedPair(sigma, rate, sites), order) / (order - 1)

    here = at(sigma, rate, order, sites)
    slack = 1e-5 * here + 1e-12
    assert at(sigma * more, rate, order, sites) <= here + slack
    assert at(sigma, rate / more, order, sites) <= here + slack
    assert at(sigma, rate, order + 1, sites) >= here - slack
    assert at(sigma, rate, order, sites + 1) >= here - slack


def test_costs_add_and_name_their_order() -> None:
    integer = Event(IntegerGaussian(1e6, 1e3, 100, 2, 1e-25), Poisson(0.1), "zero-out", 10)
    laplace = Event(Laplace(5.0, 1.0), Everyone(), "zero-out", 3)
    both = renyi([integer, laplace], 8)
    first, second = renyi([integer], 8), renyi([laplace], 8)
    assert both.rdp == pytest.approx(first.rdp + second.rdp)
    assert both.delta == pytest.approx(first.delta + second.delta)
    assert (
        first.delta
        == pytest.approx(delta_charged([integer], MOST_EPSILON))
        == pytest.approx((1 + math.exp(20.0)) * 100 * 10 * 2 * 1e-25)
    )
    assert second.delta == 0.0
    assert both.order == 8


@pytest.mark.parametrize("order", [1, 0, -3, 4097])
def test_an_order_out_of_range_is_refused(order: int) -> None:
    with pytest.raises(InputError, match="Renyi order"):
        rdp(PureDP(1.0), Everyone(), order)
    with pytest.raises(InputError, match="Renyi order"):
        renyi([Event(PureDP(1.0), Everyone(), "zero-out", 1)], 2.0)  # type: ignore[arg-type]


def test_an_infinite_divergence_is_refused() -> None:
    with pytest.raises(InputError, match="no finite Renyi divergence"):
        rdp(Gaussian(1e-160, 1.0), Everyone(), 8)
