from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import PlanError
from cloister.secagg import Params


@pytest.mark.parametrize(
    ("parties", "threshold", "minimum", "dropouts"),
    [(3, 3, 3, 0), (4, 3, 3, 1), (5, 4, 4, 1), (10, 7, 7, 3), (100, 67, 67, 33)],
)
def test_the_table_of_the_design(parties, threshold, minimum, dropouts):
    params = Params.derive(parties)
    assert (params.threshold, params.minimum, params.tolerated_dropouts) == (threshold, minimum, dropouts)


@pytest.mark.parametrize(
    ("parties", "colluders"), [(3, 1), (4, 1), (6, 1), (7, 2), (9, 2), (10, 3), (100, 33)]
)
def test_default_colluders(parties, colluders):
    assert Params.derive(parties).colluders == colluders


def test_two_sites_only_on_request():
    with pytest.raises(PlanError, match="each can compute the other's update"):
        Params.derive(2)
    assert Params.derive(2, allow_two=True) == Params(2, 0, 2, 2)
    assert Params.derive(2, colluders=0, allow_two=True) == Params(2, 0, 2, 2)
    with pytest.raises(PlanError):
        Params.derive(2, colluders=1, allow_two=True)


@given(n=st.integers(3, 100), data=st.data())
def test_derived_numbers_hold_the_conditions(n, data):
    c = data.draw(st.integers(0, n - 2))
    noise = data.draw(st.none() | st.integers(1, n))
    params = Params.derive(n, colluders=c, noise_minimum=noise)
    bound = Fraction(n + c, 2)
    assert params.threshold > bound >= params.threshold - 1
    assert params.minimum == max(params.threshold, c + 2, noise or 0)
    assert params.minimum <= n
    # a survivor list always has two honest members, and two honest sets of t - c exceed the honest sites
    assert params.minimum - c >= 2
    assert 2 * (params.threshold - c) > n - c


@pytest.mark.parametrize(
    "wrong",
    [
        {"parties": 1},
        {"parties": 0},
        {"parties": 101},
        {"parties": 4, "colluders": 3},
        {"parties": 4, "colluders": -1},
        {"parties": 5, "threshold": 3},
        {"parties": 5, "threshold": 6},
        {"parties": 5, "noise_minimum": 6},
        {"parties": 5, "noise_minimum": 0},
    ],
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(PlanError):
        Params.derive(**wrong)


@pytest.mark.parametrize("numbers", [(5, 1, 4, 3), (5, 1, 3, 4), (4, 1, 3, 5), (4, 2, 4, 3), (5, 1, 4.0, 4)])
def test_the_constructor_refuses_nonsense_too(numbers):
    with pytest.raises(PlanError):
        Params(*numbers)


def test_a_higher_threshold_raises_the_minimum():
    assert Params.derive(6, threshold=5).minimum == 5
    assert Params.derive(6, noise_minimum=6).tolerated_dropouts == 0
