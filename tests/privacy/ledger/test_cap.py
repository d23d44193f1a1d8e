from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.privacy.accounting import MOST_EPSILON
from cloister.privacy.ledger import Cap, Cost, worth
from cloister.privacy.ledger.cap import MAX_ORDER, check_cost
from cloister.privacy.ledger.worth import gaussian_delta, gaussian_worth, laplace_rdp

TARGETS = [(0.1, 1e-6), (0.5, 1e-4), (1.0, 1e-5), (3.0, 1e-5), (8.0, 1e-7), (20.0, 1e-3)]


@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
def test_the_conversion_is_that_of_dp_accounting(epsilon: float, delta: float) -> None:
    """Another implementation, given the share of delta that the conversion may use, finds the same epsilon."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    cap = Cap.of(epsilon, delta)
    again, _ = compute_epsilon([cap.order], [cap.rdp], delta * 7 / 8)
    assert again == pytest.approx(epsilon, abs=1e-9)
    assert again <= epsilon
    assert cap.delta_terms + delta * 7 / 8 == pytest.approx(delta, rel=1e-15)


@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
def test_the_order_leaves_the_most_gaussian_releases(epsilon: float, delta: float) -> None:
    """Re-derived with arrays: the best order over all that are allowed."""
    orders = np.arange(2, MAX_ORDER + 1, dtype=float)
    budgets = epsilon - np.log((orders - 1) / orders) + np.log(7 / 8 * delta * orders) / (orders - 1)
    cap = Cap.of(epsilon, delta)
    assert cap.order == orders[np.argmax(budgets / orders)]
    assert cap.rdp == pytest.approx(budgets.max(where=orders == cap.order, initial=-np.inf), abs=1e-10)


@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
def test_a_gaussian_that_takes_all_is_within_the_cap(epsilon: float, delta: float) -> None:
    """Exact, by integrating the density: the cap holds, and is not generous."""
    cap = Cap.of(epsilon, delta)
    sigma, at_most = gaussian_worth(cap.rdp, cap.order, delta)
    x = np.linspace(-60 * sigma, 60 * sigma, 2_000_001)
    p, q = (np.exp(-((x - mean) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) for mean in (0, 1))
    exact = np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x)
    assert exact <= delta * 7 / 8
    assert gaussian_delta(sigma, epsilon) == pytest.approx(exact, rel=1e-3, abs=1e-12)
    assert 0.8 * epsilon < at_most < epsilon


def test_a_wrong_conversion_would_be_noticed() -> None:
    """At a budget that is a quarter higher the same exact check fails."""
    cap = Cap.of(1.0, 1e-5)
    sigma, _ = gaussian_worth(cap.rdp * 1.25, cap.order, cap.delta)
    assert gaussian_delta(sigma, cap.epsilon) > cap.delta


@given(st.floats(0.01, 3), st.integers(2, 64))
def test_the_rdp_of_laplace_is_its_integral(epsilon: float, order: int) -> None:
    # The density ratio is e^epsilon left of 0, e^(epsilon - 2 epsilon x) in [0, 1], e^-epsilon right of 1,
    # where the second Laplace is centred at 1 and both have scale 1 / epsilon.
    a = order
    left = 0.5 * math.exp((a - 1) * epsilon)
    right = 0.5 * math.exp(-a * epsilon)
    x = np.linspace(0, 1, 20_001)
    middle = np.trapezoid(epsilon / 2 * np.exp(-epsilon * a * x + (a - 1) * epsilon * (1 - x)), x)
    assert laplace_rdp(epsilon, order) == pytest.approx(math.log(left + middle + right) / (a - 1), rel=1e-5)


@given(st.floats(1e-3, 20), st.floats(1e-12, 0.5))
def test_every_cap_that_can_be_made_is_consistent(epsilon: float, delta: float) -> None:
    try:
        cap = Cap.of(epsilon, delta)
    except InputError:  # nothing could be released
        assert epsilon < 0.05
        return
    assert 2 <= cap.order <= MAX_ORDER
    assert cap.epsilon_of(cap.rdp) == pytest.approx(epsilon, abs=1e-9)
    assert cap.epsilon_of(0.0) == 0.0
    assert cap.epsilon_of(cap.rdp / 2) <= epsilon


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, MOST_EPSILON + 1])
def test_an_epsilon_out_of_range(epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        Cap.of(epsilon, 1e-5)
    with pytest.raises(InputError, match="epsilon"):
        Cap(epsilon, 1e-5, 8)


@pytest.mark.parametrize("delta", [0.0, -1e-9, 1.0, 2.0, math.nan])
def test_a_delta_out_of_range(delta: float) -> None:
    with pytest.raises(InputError, match="delta"):
        Cap.of(1.0, delta)


@pytest.mark.parametrize("order", [1, 0, -3, MAX_ORDER + 1])
def test_an_order_out_of_range(order: int) -> None:
    with pytest.raises(InputError):
        Cap(1.0, 1e-5, order)


def test_a_cap_within_which_nothing_fits() -> None:
    with pytest.raises(InputError, match="order 3"):
        Cap(1.0, 1e-5, 3)
    with pytest.raises(InputError, match="nothing could be released"):
        Cap.of(1e-4, 1e-12)


def test_a_cost_says_its_order() -> None:
    assert check_cost(Cost(0.1, 0.0, 8)) == 8
    with pytest.raises(InputError, match="order"):
        check_cost(Cost(0.1, 0.0))
    for cost in (Cost(1e7, 0.0, 8), Cost(0.1, 1.0, 8)):
        with pytest.raises(InputError, match="hides nothing"):
            check_cost(cost)


def test_what_a_rest_would_buy() -> None:
    cap = Cap.of(1.0, 1e-5)
    whole, nothing = worth(cap.rdp, cap), worth(0.0, cap)
    assert nothing == type(nothing)(None, 0.0, 0)
    assert whole.noise_multiplier is not None
    assert whole.queries * laplace_rdp(0.1, cap.order) <= cap.rdp
    assert (whole.queries + 1) * laplace_rdp(0.1, cap.order) > cap.rdp
    assert worth(cap.rdp / 2, cap).epsilon < whole.epsilon < cap.epsilon
