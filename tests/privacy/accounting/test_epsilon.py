"""Epsilon against closed forms, integrals and published figures that do not come from the same code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm
from tests.privacy.accounting.brute import crossing, hockey_stick, log_moment

from cloister.errors import InputError
from cloister.privacy.accounting import (
    Event,
    Everyone,
    FixedSize,
    Gaussian,
    IntegerLaplace,
    Laplace,
    Mechanism,
    MixedGaussian,
    Poisson,
    PureDP,
    RandomisedResponse,
    Relation,
    Sampler,
    epsilon,
    renyi,
)
from cloister.privacy.accounting.accountant import least_epsilon

UNIT = Gaussian(1.0, 1.0)


def of(
    mechanism: Mechanism, sampler: Sampler, count: int, delta: float, relation: Relation = "zero-out"
) -> float:
    return epsilon([Event(mechanism, sampler, relation, count)], delta)


def balle_wang(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact epsilon of N(mu, 1) against N(0, 1)."""

    def delta_at(at: float) -> float:
        return float(norm.cdf(mu / 2 - at / mu) - math.exp(at) * norm.cdf(-mu / 2 - at / mu))

    return float(brentq(lambda at: delta_at(at) - delta, 0.0, 500.0, xtol=1e-13))


def test_published_figures() -> None:
    """sigma 1, 100,000 rows, batch 1000, 1000 steps, delta 1e-5."""
    assert of(UNIT, Poisson(0.01), 1000, 1e-5) == pytest.approx(1.828, abs=1e-3)
    assert of(UNIT, FixedSize(100_000, 1000), 1000, 1e-5, "replace-one") == pytest.approx(3.576, abs=1e-3)


def test_the_renyi_path_is_taken_for_a_tiny_delta_and_meets_its_own_figure() -> None:
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.01, GaussianDpEvent(1.0)), 1000))
    assert accountant.get_epsilon(1e-5) == pytest.approx(2.101, abs=1e-3)
    ours = of(UNIT, Poisson(0.01), 1000, 1e-14)
    # ours interpolates between integer orders
    assert accountant.get_epsilon(1e-14) <= ours <= accountant.get_epsilon(1e-14) * 1.025


@pytest.mark.parametrize(("sigma", "count"), [(0.7, 1), (1.0, 1), (40.0, 100), (300.0, 10_000)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-14])
def test_everyone_is_the_analytic_gaussian(sigma: float, count: int, delta: float) -> None:
    exact = balle_wang(math.sqrt(count) / sigma, delta)
    assert exact <= of(Gaussian(sigma, 1.0), Everyone(), count, delta) <= exact + 1e-10


@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
def test_sensitivity_scales_noise_under_either_relation(relation: Relation) -> None:
    assert of(Gaussian(6.0, 3.0), Everyone(), 1, 1e-5, relation) == pytest.approx(
        of(Gaussian(2.0, 1.0), Everyone(), 1, 1e-5, relation)
    )


@pytest.mark.parametrize(("sigma", "rate", "count"), [(1.0, 0.05, 100), (3.0, 0.5, 20), (0.8, 0.001, 1)])
def test_sampled_gaussians_are_dp_accounting_s_own(sigma: float, rate: float, count: int) -> None:
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), count))
    for delta in (1e-3, 1e-5, 1e-8):
        theirs = accountant.get_epsilon(delta)
        assert of(Gaussian(sigma, 1.0), Poisson(rate), count, delta) == pytest.approx(
            theirs, rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (0.6, 0.2), (3.0, 0.5)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_one_sampled_step_by_numerical_integration(sigma: float, rate: float, delta: float) -> None:
    x = np.linspace(-12 * sigma, 1 + 12 * sigma, 400_001)
    near, far = (norm.pdf(x, at, sigma) * (x[1] - x[0]) for at in (0, 1))
    claimed = of(Gaussian(sigma, 1.0), Poisson(rate), 1, delta)
    truth = hockey_stick((1 - rate) * near + rate * far, near, claimed)
    assert truth <= delta * (1 + 1e-5)
    assert claimed == 0.0 or truth >= delta * 0.99


@pytest.mark.parametrize("runs", [50, 100_000])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_composed_sampled_steps_meet_the_closed_form_where_sampling_takes_almost_all(
    runs: int, delta: float
) -> None:
    """At a rate of nearly 1 composition goes through the transforms and must meet the Gaussian's closed form: what
    rounding of the transforms and the grid of losses do to epsilon, in one figure."""
    exact = balle_wang(1.5, delta)
    ours = of(Gaussian(math.sqrt(runs) / 1.5, 1.0), Poisson(1 - 1e-12), runs, delta)
    assert exact * (1 - 1e-5) <= ours <= exact * 1.002


def test_small_losses_are_not_rounded_up_to_the_grid() -> None:
    """A step whose loss is far below 1e-4: rounded up, 100,000 of them would cost a tenth more."""
    sigma, rate, runs = 10.0, 1e-3, 100_000
    # by the central limit theorem for f-DP (Bu et al. 2020): mu = rate sqrt(runs (e^(1/sigma^2) - 1))
    mu = rate * math.sqrt(runs * math.expm1(1 / sigma**2))
    assert of(Gaussian(sigma, 1.0), Poisson(rate), runs, 1e-5) == pytest.approx(
        balle_wang(mu, 1e-5), rel=5e-3
    )


def test_events_compose_and_are_not_added() -> None:
    first = Event(UNIT, Poisson(0.01), "zero-out", 1000)
    second = Event(Gaussian(20.0, 1.0), Everyone(), "zero-out", 10)
    third = Event(Laplace(10.0, 1.0), Everyone(), "zero-out", 5)
    alone = [epsilon([each], 1e-5) for each in (first, second, third)]
    together = epsilon([first, second, third], 1e-5)
    assert max(alone) < together < 0.9 * sum(alone)
    assert epsilon([third, first, second], 1e-5) == pytest.approx(together, rel=1e-3)
    halves = [Event(UNIT, Poisson(0.01), "zero-out", 400), Event(UNIT, Poisson(0.01), "zero-out", 600)]
    assert epsilon(halves, 1e-5) == pytest.approx(alone[0])


def test_laplace_and_pure() -> None:
    # H_(e^t) of Laplace noise of scale b moved by 1 is 1 - e^((t - 1/b) / 2)
    assert of(Laplace(0.5, 1.0), Everyone(), 1, 1e-3) == pytest.approx(2 + 2 * math.log1p(-1e-3), abs=2e-4)
    # the integers approach it as the grid grows finer
    fine = IntegerLaplace(50_000.0, 100_000.0, 1, 0.0)
    assert of(fine, Everyone(), 1, 1e-3) == pytest.approx(2 + 2 * math.log1p(-1e-3), abs=2e-4)
    sampled = of(Laplace(0.5, 1.0), Poisson(0.1), 7, 1e-4)
    assert of(fine, Poisson(0.1), 7, 1e-4) == pytest.approx(sampled, rel=1e-3)
    # a fraction of a unit cannot move an integer
    assert of(IntegerLaplace(4.0, 3.9, 1, 0.0), Everyone(), 1, 1e-3) == of(
        IntegerLaplace(4.0, 3.0, 1, 0.0), Everyone(), 1, 1e-3
    )


@pytest.mark.parametrize("count", [1, 2, 30])
def test_pure_composes_optimally(count: int) -> None:
    """Kairouz, Oh, Viswanath 2015, theorem 3.3, by direct summation over the number of answers that differ."""
    each, delta = 0.2, 1e-4

    def delta_at(at: float) -> float:
        often = 1 / (1 + math.exp(-each))
        return sum(
            math.comb(count, k)
            * max(
                often**k * (1 - often) ** (count - k)
                - math.exp(at) * often ** (count - k) * (1 - often) ** k,
                0.0,
            )
            for k in range(count + 1)
        )

    claimed = of(PureDP(each), Everyone(), count, delta)
    assert delta_at(claimed) <= delta * (1 + 1e-9)
    assert claimed <= crossing(delta_at, delta) + 1e-4


@pytest.mark.parametrize("categories", [2, 5])
@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
def test_randomised_response_by_its_tables(categories: int, relation: Relation) -> None:
    weight = math.exp(1.2)
    answers = np.ones(categories)
    answers[0] = weight
    p = answers / answers.sum()
    q = np.roll(p, 1) if relation == "replace-one" else np.full(categories, 1 / categories)
    claimed = of(RandomisedResponse(1.2, categories), Everyone(), 1, 1e-3, relation)
    assert hockey_stick(p, q, claimed) <= 1e-3 * (1 + 1e-9)
    assert claimed <= crossing(lambda at: hockey_stick(p, q, at), 1e-3) + 1e-4
    assert claimed <= 1.2


def test_a_unit_at_one_site_is_no_mixture_and_at_all_rates_one_is_its_multiple() -> None:
    one = of(MixedGaussian(1e8, 1e4, 1, 1, 0.0, 1), Poisson(0.1), 20, 1e-5)
    assert one == pytest.approx(of(Gaussian(1e4, 1e4), Poisson(0.1), 20, 1e-5), rel=1e-5)
    three = of(MixedGaussian(9e8, 1e4, 1, 1, 0.0, 3), Everyone(), 1, 1e-5)
    assert three == pytest.approx(of(Gaussian(1.0, 1.0), Everyone(), 1, 1e-5), rel=1e-5)


@pytest.mark.parametrize("sites", [2, 4])
def test_a_unit_at_several_sites_by_numerical_integration(sites: int) -> None:
    sigma, rate, delta = 1.5, 0.1, 1e-5
    x = np.linspace(-20.0, 30.0, 400_001)
    weights = [math.comb(sites, j) * rate**j * (1 - rate) ** (sites - j) for j in range(sites + 1)]
    p = sum(w * norm.pdf(x, j, sigma) for j, w in enumerate(weights)) * (x[1] - x[0])
    q = norm.pdf(x, 0, sigma) * (x[1] - x[0])
    claimed = of(MixedGaussian(2.25e8 + 4, 1e4, 1, 1, 0.0, sites), Poisson(rate), 1, delta)
    assert hockey_stick(p, q, claimed) == pytest.approx(delta, rel=1e-2)
    together = of(MixedGaussian(2.25e8 + 4, 1e4, 1, 1, 0.0, sites), Poisson(rate), 10, delta)
    assert claimed < together < 10 * claimed


def test_a_capped_sample_by_enumerating_all_samples() -> None:
    """Five units, at most two in a sample. The others push the other way, so being in also pushes one of them out."""
    size, cap, rate, sigma = 5, 2, 0.4, 1.3
    x = np.linspace(-30.0, 30.0, 20_001)
    p, q = np.zeros_like(x), np.zeros_like(x)
    for drawn in range(2**size):
        members = [i for i in range(size) if drawn >> i & 1]
        chance = rate ** len(members) * (1 - rate) ** (size - len(members))
        kept = [[i for i in members if i not in out] for out in _left_out(members, cap)]
        for sample in kept:
            others = -sum(1.0 for i in sample if i > 0)
            p += chance / len(kept) * norm.pdf(x, others + (1.0 if 0 in sample else 0.0), sigma)
            q += chance / len(kept) * norm.pdf(x, others, sigma)
    p, q = p * (x[1] - x[0]), q * (x[1] - x[0])
    for order in (2, 6):
        cost = renyi([Event(Gaussian(sigma, 1.0), Poisson(rate, size, cap), "zero-out", 1)], order)
        assert log_moment(p, q, order) / (order - 1) <= cost.rdp
    for delta in (1e-2, 1e-4):
        claimed = of(Gaussian(sigma, 1.0), Poisson(rate, size, cap), 1, delta)
        assert hockey_stick(p, q, claimed) <= delta
        assert claimed > of(Gaussian(sigma, 1.0), Poisson(rate), 1, delta)
    assert of(UNIT, Poisson(0.1, 1000, 1000), 10, 1e-5) == of(UNIT, Poisson(0.1), 10, 1e-5)


def _left_out(members: list[int], cap: int) -> list[set[int]]:
    from itertools import combinations

    return [set(out) for out in combinations(members, max(0, len(members) - cap))]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-9, math.nan, math.inf])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(InputError, match="delta is not between 0 and 1"):
        of(UNIT, Everyone(), 1, delta)


def test_no_events_and_two_relations_are_refused() -> None:
    with pytest.raises(InputError, match="no events"):
        epsilon([], 1e-5)
    both = [Event(PureDP(1.0), Everyone(), relation, 1) for relation in ("zero-out", "replace-one")]
    with pytest.raises(InputError, match="two relations"):
        epsilon(both, 1e-5)


def test_infinity_is_refused_and_never_returned() -> None:
    with pytest.raises(InputError, match="no finite epsilon"):
        of(Gaussian(1e-160, 1.0), Everyone(), 1, 1e-5)
    assert math.isfinite(of(Gaussian(0.01, 1.0), Poisson(0.5), 10**6, 1e-5))


@settings(max_examples=5, phases=[Phase.generate])  # every call takes tenths of a second
@given(
    st.sampled_from(["gaussian", "mixed", "laplace"]),
    st.floats(0.9, 5.0),
    st.floats(0.005, 0.3),
    st.integers(1, 100),
    st.floats(1.05, 2.0),
)
def test_more_noise_a_lower_rate_fewer_runs_and_a_larger_delta_never_cost_more(
    kind: str, noise: float, rate: float, runs: int, more: float
) -> None:
    def at(noise: float, rate: float, runs: int, delta: float = 1e-5) -> float:
        mechanism: Mechanism
        if kind == "mixed":
            mechanism = MixedGaussian((noise * 1e4) ** 2, 1e4, 10, 2, 2.0**-110, 2)
        else:
            mechanism = Gaussian(noise, 1.0) if kind == "gaussian" else Laplace(noise, 1.0)
        # infinite for integers beyond an epsilon of about 50
        return least_epsilon([Event(mechanism, Poisson(rate), "zero-out", runs)], delta)

    here = at(noise, rate, runs)
    slack = 1e-3 * here + 1e-4  # the grid of losses follows the events
    assert at(noise * more, rate, runs) <= here + slack
    assert at(noise, rate / more, runs) <= here + slack
    assert at(noise, rate, max(1, int(runs / more))) <= here + slack
    assert at(noise, rate, runs, 1e-5 * more) <= here + slack
