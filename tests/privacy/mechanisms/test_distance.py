"""`distance` against the exact distance: the tables' own integer weights, and laws computed in integers."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from tests.privacy.mechanisms.highprecision import convolve, distance, gaussian_law, laplace_law

from cloister.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, masses
from cloister.privacy.mechanisms import gaussian as gaussian_module
from cloister.privacy.mechanisms import laplace as laplace_module
from cloister.privacy.mechanisms.masses import laplace_digit, make_table
from cloister.privacy.mechanisms.sampling import IntegerNoise

COORDINATES, STEPS, EPSILON = 1e6, 1e4, 10.0


def composed_weights(noise: IntegerNoise) -> dict[int, int]:
    (_, table), *rest = noise._levels
    total = table.weights()
    for multiplier, lower in rest:
        total = convolve(total, multiplier, lower.weights())
    return total


@pytest.mark.parametrize("variance", [0.05, 0.31, 1.0, 8.0, 100.5, 1e4])
def test_one_gaussian_table(variance: float) -> None:
    noise = DiscreteGaussian(variance)
    law = gaussian_law(Fraction(variance), math.ceil(16 * math.sqrt(variance)) + 3)
    exact = distance(composed_weights(noise), law)
    assert exact <= noise.distance < 1.2 * exact + 2.0**-150


@pytest.mark.slow
def test_the_widest_gaussian_table() -> None:
    noise = DiscreteGaussian(1200.0**2)
    exact = distance(composed_weights(noise), gaussian_law(Fraction(1200**2), 16 * 1200))
    assert exact <= noise.distance < 1.2 * exact < 2.0**-110


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.0, 7.25, 30.0])
def test_one_laplace_table(scale: float) -> None:
    noise = DiscreteLaplace(scale)
    exact = distance(composed_weights(noise), laplace_law(Fraction(scale), math.ceil(110 * scale) + 3))
    assert exact <= noise.distance < 1.2 * exact + 2.0**-150


@pytest.mark.parametrize(
    ("variance", "multipliers"), [(400, [3]), (1000, [2, 2]), (Fraction(12345, 10), [5]), (900, [3])]
)
def test_a_gaussian_that_is_put_together(variance: Fraction | int, multipliers: list[int]) -> None:
    noise = IntegerNoise(*gaussian_module.compose(Fraction(variance), multipliers))
    law = gaussian_law(Fraction(variance), math.ceil(16 * math.sqrt(variance)))
    exact = distance(composed_weights(noise), law)
    assert exact <= noise.distance < 2.0**-110


@pytest.mark.parametrize(
    "low", [Fraction(1, 9), Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2), Fraction(3)]
)
def test_parts_too_narrow_are_far_off_and_the_bound_says_so(low: Fraction) -> None:
    noise = IntegerNoise(*gaussian_module.compose(Fraction(900), [4], low))
    exact = distance(composed_weights(noise), gaussian_law(Fraction(900), 500))
    posterior = float(low * (1 - low * 16 / 900))
    assert exact <= noise.distance
    # the leading wave of exp(-2 pi**2 posterior): what the distance is made of, and how tight its bound is
    wave = math.exp(-2 * math.pi**2 * posterior)
    assert exact > wave / 3
    assert noise.distance < 12 * exact


def test_parts_whose_variances_do_not_add_up_are_far_off() -> None:
    noise = IntegerNoise(*gaussian_module.compose(Fraction(400), [3]))
    assert distance(composed_weights(noise), gaussian_law(Fraction(401), 320)) > 1e-4


@pytest.mark.parametrize(("scale", "bases"), [(20, [7]), (Fraction(33, 2), [2]), (9, [3, 4]), (5, [40])])
def test_a_laplace_that_is_put_together_is_exact_but_for_its_tables(
    scale: Fraction | int, bases: list[int]
) -> None:
    noise = IntegerNoise(*laplace_module.compose(Fraction(scale), bases))
    exact = distance(composed_weights(noise), laplace_law(Fraction(scale), math.ceil(110 * scale)))
    assert exact <= noise.distance < 2.0**-115


def test_a_difference_of_two_digits_by_counting_pairs() -> None:
    table, bound = make_table(laplace_digit(Fraction(3), 6))
    digits = {r: p for r, p in laplace_law(Fraction(3), 5).items() if r >= 0}
    total = sum(digits.values())
    law: dict[int, Fraction] = {}
    for (r, p), (s, q) in itertools.product(digits.items(), digits.items()):
        law[r - s] = law.get(r - s, Fraction(0)) + p * q / total**2
    assert distance(table.weights(), law) <= bound < 2.0**-120


@pytest.mark.parametrize("digits", [40, 36, 30])
def test_the_bound_holds_where_arithmetic_is_coarse(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 72 digits the masses' own errors cannot be seen; with few they are most of the distance."""
    coarse = masses._CONTEXT.copy()
    coarse.prec = digits
    monkeypatch.setattr(masses, "_CONTEXT", coarse)
    monkeypatch.setattr(masses, "_UNIT", Decimal(10) ** (1 - digits))
    law = gaussian_law(Fraction(900), 500)
    table, bound = make_table(masses.gaussian(Fraction(900)))
    exact = distance(table.weights(), law)
    assert 2.0**-128 * 10 ** (40 - digits) < exact <= bound < 1e8 * 10.0**-digits
    table, bound = make_table(masses.laplace(Fraction(9)))
    assert distance(table.weights(), laplace_law(Fraction(9), 1100)) <= bound < 1e6 * 10.0**-digits


def test_the_distance_of_a_sum_is_the_sum_of_all_parts() -> None:
    upper = make_table(masses.gaussian(Fraction(400 - 45, 9)))[1]
    lower = make_table(masses.gaussian(Fraction(45)))[1]
    assert gaussian_module.compose(Fraction(400), [3])[1] >= upper + lower
    upper = make_table(masses.laplace(Fraction(20, 7)))[1]
    lower = make_table(laplace_digit(Fraction(20), 7))[1]
    assert laplace_module.compose(Fraction(20), [7])[1] >= upper + lower


@pytest.mark.parametrize(
    "noise",
    [DiscreteGaussian(v) for v in (0.05, 8.0, 1e4, 1.45e6, 2.0**56)]
    + [DiscreteLaplace(s) for s in (0.05, 100.0, 181.0, 2.0**32)],
    ids=repr,
)
def test_the_distance_is_nothing_beside_a_delta(noise: IntegerNoise) -> None:
    assert noise.distance < 2.0**-110
    assert COORDINATES * STEPS * (1 + math.exp(EPSILON)) * noise.distance < 1e-9


@pytest.mark.parametrize("variance", [0.05, 1.0, 77.7, 1e4])
def test_tables_are_symmetric_and_complete(variance: float) -> None:
    ((_, table),) = DiscreteGaussian(variance)._levels
    weights = table.weights()
    assert sum(weights.values()) == 1 << 128
    assert all(weights[-x] == weight for x, weight in weights.items())
