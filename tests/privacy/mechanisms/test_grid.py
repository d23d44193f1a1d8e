from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloister.errors import InputError, PlanError
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

BITS = st.sampled_from([16, 32])


@settings(max_examples=200)
@given(BITS, st.integers(0, 2000), st.floats(0, 300))
def test_the_grid_is_the_finest_that_fits(bits: int, batch: int, noise: float) -> None:
    grid = IntegerGrid.fit(bits, batch=batch, noise=noise)  # type: ignore[arg-type]
    width = Fraction(batch + 7.5 * math.sqrt(batch) + 30) + 8 * Fraction(noise)
    assert grid.clip_units * width < 2 ** (bits - 1) <= (grid.clip_units + 1) * width


def test_a_batch_that_no_grid_fits_is_refused() -> None:
    IntegerGrid.fit(16, batch=31_000, noise=1.0)
    with pytest.raises(PlanError, match="does not fit a ring of 16 bits"):
        IntegerGrid.fit(16, batch=33_000, noise=1.0)
    for batch, noise in ((-1, 1.0), (1, -1.0), (1, math.nan), (1, math.inf)):
        with pytest.raises(PlanError, match="0 or more"):
            IntegerGrid.fit(32, batch=batch, noise=noise)
    with pytest.raises(PlanError, match="a ring of 24 bits"):
        IntegerGrid(24, 5)  # type: ignore[arg-type]
    for units in (0, -3, 2**15):
        with pytest.raises(PlanError, match="does not fit"):
            IntegerGrid(16, units)


@pytest.mark.parametrize("batch", [0.01, 0.1, 1, 2, 5, 10, 30, 100, 1e3, 1e4, 1e5, 1e6, 1e8])
def test_a_batch_is_smaller_than_the_grid_allows_but_for_one_chance_in_2_to_the_40(batch: float) -> None:
    limit = batch + 7.5 * math.sqrt(batch) + 30
    # Poisson sampling of rows is binomial; a binomial's tail is below the Poisson's there (Hoeffding 1956)
    assert stats.poisson.sf(math.ceil(limit) - 1, batch) < 2.0**-40
    for rate in (0.5, 0.01):
        rows = math.ceil(batch / rate)
        assert stats.binom.sf(math.ceil(limit) - 1, rows, batch / rows) < 2.0**-40


def test_eight_deviations_of_noise_are_enough() -> None:
    assert 2 * stats.norm.sf(8) < 2.0**-49
    # a narrower margin would not be: how often a step of a million coordinates would wrap around
    assert 1e6 * 2 * stats.norm.sf(4) > 10


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(0, 2**32), st.sampled_from([0.1, 1.0, 3.7]), st.booleans())
def test_rounding_moves_neighbours_no_further_apart_than_the_sensitivity(
    d: int, seed: int, clip: float, even: bool
) -> None:
    """An attack: every coordinate starts where it just rounds back, so that a step just rounds on."""
    rng = np.random.default_rng(seed)
    grid = IntegerGrid(16, 200 * math.isqrt(d) + 200)
    direction = np.ones(d) if even else rng.normal(size=d)
    step = direction * (clip / np.linalg.norm(direction))
    start = np.rint(rng.normal(size=d) * 50) + np.copysign(0.5 - 1e-6, direction)
    before = start * (clip / grid.clip_units)
    moved = grid.round(before + step, clip) - grid.round(before, clip)
    further = np.ceil(np.abs(step) * (grid.clip_units / clip) - 2e-6)
    assert np.linalg.norm(moved) >= np.linalg.norm(further) - 1e-6  # it is the worst that rounding can do
    assert np.linalg.norm(moved) <= grid.sensitivity(d)


def test_without_the_root_of_d_the_sensitivity_would_be_wrong() -> None:
    d, grid = 400, IntegerGrid(32, 4002)
    step = np.full(d, 1 / math.sqrt(d))  # of norm 1, the clip: 200.1 units a coordinate
    before = np.full(d, 0.45 / 4002)
    moved = float(np.linalg.norm(grid.round(before + step, 1.0) - grid.round(before, 1.0)))
    assert moved == 201 * math.sqrt(d) > grid.clip_units  # a clip alone is not a bound
    assert 0.99 * grid.sensitivity(d) < moved <= grid.sensitivity(d) == 4022.0


def test_the_sensitivity_adds_the_float_bound_and_refuses_a_coarse_grid() -> None:
    grid = IntegerGrid(32, 20_000)
    assert grid.sensitivity(10_000) == 20_100.0
    assert grid.sensitivity(1, 1e-3) == pytest.approx(20_021.0)
    with pytest.raises(PlanError, match=r"adds over 0\.5 %") as caught:
        grid.sensitivity(10_001)
    assert "Widen the ring" in caught.value.fix
    for coordinates, bound in ((0, 0.0), (1, -1.0), (1, math.nan), (1, math.inf)):
        with pytest.raises(PlanError):
            grid.sensitivity(coordinates, bound)


@settings(max_examples=100)
@given(
    st.lists(st.floats(-500, 500), min_size=1, max_size=20), st.integers(1, 2**31 - 1), st.floats(1e-3, 1e3)
)
def test_the_product_before_rounding_is_off_by_2_to_the_minus_51_of_itself(
    values: list[float], units: int, clip: float
) -> None:
    exact = [Fraction(value) * units / Fraction(clip) for value in values]
    floating = [value * (units / clip) for value in values]
    for wanted, got in zip(exact, floating, strict=True):
        assert abs(Fraction(got) - wanted) <= abs(wanted) * Fraction(1, 2**51) + Fraction(1, 2**1000)
    grid = IntegerGrid(32, units)
    if max(map(abs, floating)) < 2**53:
        assert grid.round(np.array(values), clip).tolist() == [round(v) for v in floating]


@given(BITS, st.lists(st.integers(-(2**62), 2**62), max_size=30))
def test_the_ring_is_two_s_complement_and_keeps_sums(bits: int, values: list[int]) -> None:
    grid = IntegerGrid(bits, 1)  # type: ignore[arg-type]
    integers = np.array(values, np.int64)
    words = grid.to_ring(integers)
    assert words.dtype == (np.uint16 if bits == 16 else np.uint32)
    back = grid.from_ring(words)
    half = 1 << (bits - 1)
    assert back.tolist() == [(v + half) % (2 * half) - half for v in values]
    doubled = grid.from_ring(words + words)
    assert doubled.tolist() == [(2 * v + half) % (2 * half) - half for v in values]


def test_a_vector_survives_grid_ring_and_back() -> None:
    grid = IntegerGrid.fit(32, batch=100, noise=1.0)
    vector = np.array([0.0, 0.5, -0.25, 1.0, -80.0])
    out = grid.values(grid.from_ring(grid.to_ring(grid.round(vector, 0.7))), 0.7)
    assert np.abs(out - vector).max() <= 0.5 * 0.7 / grid.clip_units * (1 + 1e-9)
    assert grid.round(np.zeros(0), 1.0).shape == (0,)
    assert grid.round(np.array([0.5, 1.5, -0.5]) / grid.clip_units, 1.0).tolist() == [0, 2, 0]


def test_an_overflow_is_not_looked_at() -> None:
    grid = IntegerGrid(16, 300)
    total = grid.to_ring(grid.round(np.array([200.0]), 1.0))  # 60,000 units
    DiscreteGaussian(0.05).add_into(total, insecure_test_random=lambda n: b"\1" * n)
    assert grid.from_ring(total).tolist() == [60_000 - 65_536]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 2.0**54])
def test_values_that_are_no_number_are_refused_without_being_told(value: float) -> None:
    with pytest.raises(InputError, match="not finite") as caught:
        IntegerGrid(32, 1000).round(np.array([0.123456, value]), 1.0)
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_must_be_positive(clip: float) -> None:
    grid = IntegerGrid(32, 1000)
    with pytest.raises(InputError, match="clip"):
        grid.round(np.zeros(1), clip)
    with pytest.raises(InputError, match="clip"):
        grid.values(np.zeros(1, np.int64), clip)


def test_a_ring_takes_its_own_words_alone() -> None:
    grid = IntegerGrid(32, 1000)
    with pytest.raises(InputError, match="takes int64"):
        grid.to_ring(np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="words of uint32"):
        grid.from_ring(np.zeros(1, np.uint16))
