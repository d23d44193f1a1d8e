from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.privacy.local.randomness import epsilon_shown, stream

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.privacy.accounting import epsilon as accounted
from cloister.privacy.local import BoundedGaussian, BoundedLaplace, ValueGrid, estimate_bars, estimate_mean
from cloister.privacy.mechanisms import DiscreteLaplace

SCORE = ValueGrid.of(300, 850, whole=True)


def laplace_masses(scale: float, centre: int, outputs: NDArray[np.int64]) -> NDArray[np.float64]:
    decay = math.exp(-1.0 / scale)
    return (1 - decay) / (1 + decay) * decay ** np.abs(outputs - centre).astype(float)


def clamped(masses: NDArray[np.float64], outputs: NDArray[np.int64], top: int) -> NDArray[np.float64]:
    """What a reader who cuts off at the bounds sees: 0 .. top."""
    return np.bincount(np.clip(outputs, 0, top), weights=masses, minlength=top + 1)


@pytest.mark.parametrize(("steps", "epsilon"), [(1, 0.5), (8, 1.0), (8, 4.0), (40, 2.0)])
def test_laplace_chances_differ_by_exp_epsilon_at_most_before_and_after_clamping(
    steps: int, epsilon: float
) -> None:
    mechanism = BoundedLaplace(ValueGrid(0.0, 1.0, steps), epsilon)
    outputs = np.arange(-int(40 * mechanism.scale) - 40, int(40 * mechanism.scale) + steps + 40)
    rows = [laplace_masses(mechanism.scale, k, outputs) for k in range(steps + 1)]
    for cut in (False, True):
        seen = [clamped(row, outputs, steps) if cut else row for row in rows]
        worst = max(float((a / b).max()) for a in seen for b in seen)
        assert worst <= math.exp(epsilon) * (1 + 1e-9)
    assert max(float((a / b).max()) for a in rows for b in rows) >= math.exp(epsilon) * (1 - 1e-9)


def test_a_value_between_grid_points_mixes_their_chances() -> None:
    """Randomised rounding is a mixture of grid inputs, so the bound holds for every real value too."""
    mechanism = BoundedLaplace(ValueGrid(0.0, 1.0, 4), 1.0)
    outputs = np.arange(-300, 305)
    grid = [laplace_masses(mechanism.scale, k, outputs) for k in range(5)]
    for x in np.linspace(0, 4, 23):
        k = min(int(x), 3)
        mixed = (k + 1 - x) * grid[k] + (x - k) * grid[k + 1]
        assert all((mixed / row).max() <= math.e * (1 + 1e-9) for row in grid)


def test_the_drawn_noise_follows_those_chances() -> None:
    mechanism = BoundedLaplace(ValueGrid(0.0, 8.0, 8), 2.0)
    released = mechanism.perturb(np.full(60_000, 3.0), insecure_test_random=stream(0))
    numbers = mechanism.grid.read(released)
    seen = np.bincount(np.clip(numbers, -20, 26) + 20, minlength=47)
    outputs = np.arange(-400, 400)
    expected = (
        np.bincount(np.clip(outputs, -20, 26) + 20, weights=laplace_masses(mechanism.scale, 3, outputs))
        * 60_000
    )
    keep = expected > 5
    assert ((seen[keep] - expected[keep]) ** 2 / expected[keep]).sum() < keep.sum() + 6 * math.sqrt(
        2 * keep.sum()
    )


def exact_delta(variance: float, shift: int, epsilon: float) -> float:
    """The hockey-stick divergence of N_Z(0, v) from itself shifted, by summing over the integers."""
    reach = int(40 * math.sqrt(variance)) + shift
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    masses = np.exp(-(x**2) / (2 * variance))
    masses /= masses.sum()
    here, there = masses[shift:], masses[: len(masses) - shift]
    return float(np.maximum(there - math.exp(epsilon) * here, 0.0).sum())


@pytest.mark.parametrize(
    ("steps", "epsilon", "delta"),
    [(1, 1.0, 1e-6), (10, 1.0, 1e-6), (100, 0.5, 1e-5), (200, 8.0, 1e-9), (550, 3.0, 1e-3)],
)
def test_gaussian_delta_by_summation_is_within_the_claim_for_every_pair(
    steps: int, epsilon: float, delta: float
) -> None:
    mechanism = BoundedGaussian(ValueGrid(0.0, 1.0, steps), epsilon, delta)
    deltas = [
        exact_delta(mechanism.noise_variance, shift, epsilon) for shift in {1, max(1, steps // 2), steps}
    ]
    assert max(deltas) <= delta
    if steps >= 100:  # coarse grids pay for the variance that is taken out
        assert max(deltas) >= 0.9 * delta
    assert exact_delta(mechanism.noise_variance / 16, steps, epsilon) > delta  # noise / 4 breaks it


def test_the_accountant_agrees() -> None:
    laplace, gaussian = BoundedLaplace(SCORE, 1.0), BoundedGaussian(SCORE, 1.0, 1e-6)
    assert accounted([laplace.event], 1e-9) == pytest.approx(1.0, rel=1e-3)
    assert accounted([gaussian.event], 1e-6) == pytest.approx(1.0, rel=5e-3)
    assert laplace.cost.epsilon == 1.0
    assert laplace.cost.delta < 1e-30
    assert (gaussian.cost.epsilon, gaussian.cost.delta) == (1.0, 1e-6)


@pytest.mark.parametrize("mechanism", [BoundedLaplace(SCORE, 1.0), BoundedGaussian(SCORE, 1.0, 1e-6)])
def test_an_attacker_finds_no_more_than_epsilon(mechanism: BoundedLaplace | BoundedGaussian) -> None:
    low, high = (
        mechanism.perturb(np.full(60_000, v), insecure_test_random=stream(i))
        for i, v in enumerate((300.0, 850.0))
    )
    assert 0.1 < epsilon_shown(high, low, delta=mechanism.cost.delta) <= 1.0


def test_values_beyond_the_bounds_are_moved_to_them_and_it_would_show_otherwise() -> None:
    mechanism = BoundedLaplace(SCORE, 1.0)
    low, far = (
        mechanism.perturb(np.full(60_000, v), insecure_test_random=stream(i))
        for i, v in enumerate((300.0, 9000.0))
    )
    assert epsilon_shown(far, low) <= 1.0
    unclamped = low - 300 + 9000  # a wrong variant: the same noise on the value as it came
    assert epsilon_shown(unclamped, low) > 1.0


def test_noise_of_a_quarter_is_caught() -> None:
    noise = DiscreteLaplace(BoundedLaplace(SCORE, 1.0).scale / 4)
    low, high = (k + noise.sample(60_000, insecure_test_random=stream(k)) for k in (0, SCORE.steps))
    assert epsilon_shown(high, low) > 1.0


def test_a_seeded_stream_is_caught_and_the_real_one_is_new_each_time() -> None:
    mechanism = BoundedLaplace(SCORE, 1.0)
    values = np.full(50, 500.0)

    def repeats(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
        return bool(np.mean(first == second) > 0.5)

    assert repeats(*(mechanism.perturb(values, insecure_test_random=stream(7)) for _ in range(2)))
    assert not repeats(*(mechanism.perturb(values) for _ in range(2)))
    assert len(np.unique(mechanism.perturb(values))) > 30  # nor is one draw used for all


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.integers(1, 5000),
    st.lists(st.floats(-1e7, 1e7), min_size=1, max_size=20),
)
@settings(max_examples=80, deadline=None)
def test_whatever_the_value_its_number_is_on_the_grid(
    low: float, width: float, steps: int, values: list[float]
) -> None:
    grid = ValueGrid(low, low + width, steps)
    numbers = grid.numbers(np.array(values), StreamRandom(bytes(32)))
    assert numbers.min() >= 0
    assert numbers.max() <= steps
    inside = np.clip(values, grid.low, grid.high)
    assert np.all(np.abs(grid.values(numbers) - inside) <= grid.step * (1 + 1e-6))


def test_whole_numbers_are_their_own_grid() -> None:
    values = np.arange(300, 851)
    numbers = SCORE.numbers(values, StreamRandom(bytes(32)))
    assert np.array_equal(SCORE.values(numbers), values)
    assert SCORE.step == 1.0


def test_rounding_keeps_the_mean() -> None:
    grid = ValueGrid(0.0, 1.0, 4)
    numbers = grid.numbers(np.full(100_000, 0.6), StreamRandom(bytes(32)))
    assert set(np.unique(numbers)) == {2, 3}
    assert grid.values(numbers).mean() == pytest.approx(0.6, abs=0.003)


def test_released_values_are_points_of_the_grid_and_nothing_else_is_read() -> None:
    mechanism = BoundedLaplace(ValueGrid(-1.0, 2.0, 7), 0.5)
    released = mechanism.perturb(np.linspace(-1, 2, 500))
    numbers = mechanism.grid.read(released)
    assert np.array_equal(mechanism.grid.values(numbers), released)
    assert mechanism.shown(released).min() >= -1.0
    for wrong in ([0.1234], [math.nan], [math.inf]):
        with pytest.raises(InputError):
            mechanism.grid.read(np.array(wrong))


@pytest.mark.parametrize("people", [1, 3, 40, 1000])
@pytest.mark.parametrize("kind", ["laplace", "gaussian", "coarse"])
def test_means_are_unbiased_and_intervals_cover(people: int, kind: str) -> None:
    mechanism = {
        "laplace": BoundedLaplace(SCORE, 1.0),
        "gaussian": BoundedGaussian(SCORE, 2.0, 1e-6),
        "coarse": BoundedLaplace(ValueGrid(300.0, 850.0, 3), 6.0),  # rounding counts as much as noise
    }[kind]
    trials = 3000 if people < 1000 else 400
    values = np.linspace(310.3, 840.7, people)
    released = mechanism.perturb(np.tile(values, trials), insecure_test_random=stream(people)).reshape(
        trials, -1
    )
    estimates = [estimate_mean(mechanism, row) for row in released]
    found = np.array([each.value for each in estimates])
    target = values.mean()
    assert abs(found.mean() - target) < 5 * found.std() / math.sqrt(trials)
    covered = np.mean([each.low <= target <= each.high for each in estimates])
    slack = 4 * math.sqrt(0.05 * 0.95 / trials)
    assert covered >= 0.95 - slack
    if kind != "coarse":
        assert covered <= 0.95 + slack + 0.01


def test_bars_are_unbiased_and_intervals_cover() -> None:
    laplace = BoundedLaplace(ValueGrid(0.0, 10.0, 10), 4.0)
    values = np.repeat([0.0, 1.0, 4.0, 5.0, 9.0, 10.0], [40, 60, 30, 50, 80, 40])
    edges, true = (0.0, 2.0, 5.0, 10.0), (100, 30, 170)
    trials = 1500
    released = laplace.perturb(np.tile(values, trials), insecure_test_random=stream(5)).reshape(trials, -1)
    estimates = [estimate_bars(laplace, row, edges) for row in released]
    for j, count in enumerate(true):
        found = np.array([each[j].value for each in estimates])
        assert abs(found.mean() - count) < 5 * found.std() / math.sqrt(trials)
        assert np.mean([each[j].deviation for each in estimates]) == pytest.approx(found.std(), rel=0.08)
        assert 0.93 <= np.mean([each[j].low <= count <= each[j].high for each in estimates]) <= 0.97
    with pytest.raises(InputError, match="edges"):
        estimate_bars(laplace, released[0], (0.0, 5.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BoundedLaplace(SCORE, 0.0),
        lambda: BoundedLaplace(SCORE, math.nan),
        lambda: BoundedLaplace(ValueGrid(0.0, 1.0, 1), 30.0),
        lambda: BoundedGaussian(SCORE, 1.0, 0.0),
        lambda: BoundedGaussian(SCORE, 1.0, 0.1),
        lambda: ValueGrid(1.0, 1.0, 4),
        lambda: ValueGrid(0.0, math.inf, 4),
        lambda: ValueGrid(-1e308, 1e308, 4),
        lambda: ValueGrid(0.0, 1.0, 0),
        lambda: ValueGrid(0.0, 1.0, 2**17),
        lambda: ValueGrid.of(0.0, 1.0, step=0.3),
        lambda: ValueGrid.of(0.0, 1.0, step=-0.1),
        lambda: ValueGrid.of(0.0, 1.0, step=1e-9),
        lambda: estimate_mean(BoundedLaplace(SCORE, 1.0), np.array([])),
        lambda: estimate_mean(BoundedLaplace(SCORE, 1.0), np.array([500.0]), confidence=1.0),
        lambda: BoundedLaplace(SCORE, 1.0).perturb(np.array([math.nan])),
        lambda: BoundedLaplace(SCORE, 1.0).perturb(np.array([[500.0]])),
    ],
)
def test_what_makes_no_sense_is_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
