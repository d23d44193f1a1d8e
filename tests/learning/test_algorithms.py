from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.learning import (
    FedAdam,
    FedAvg,
    ServerState,
    TrainingSection,
    build_algorithm,
    client_update,
    mean_update,
    site_weights,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "server_steps.json"
ALGORITHMS = {"fedavg": FedAvg(5, rate=0.7, average_last=2), "fedadam": FedAdam(5, rate=0.03, average_last=3)}


def run(algorithm: FedAvg | FedAdam, start: np.ndarray, means: np.ndarray) -> np.ndarray:
    state = algorithm.start(start)
    for mean in means:
        state = algorithm.step(state, mean)
    return algorithm.final(state)


def scalar_fedavg(x: float, means: list[float], rate: float, last: int) -> float:
    models = []
    for mean in means:
        x = x + rate * mean
        models.append(x)
    return sum_in_order(models[-last:]) / last


def scalar_fedadam(x: float, means: list[float], rate: float, last: int) -> float:
    m, v, models = 0.0, 1e-3 * 1e-3, []
    for mean in means:
        m = 0.9 * m + (1 - 0.9) * mean
        v = 0.99 * v + (1 - 0.99) * (mean * mean)
        x = x + rate * (m / (math.sqrt(v) + 1e-3))
        models.append(x)
    return sum_in_order(models[-last:]) / last


def sum_in_order(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


@settings(deadline=None, max_examples=50)
@given(
    x=st.floats(-1e3, 1e3),
    means=st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5),
)
def test_steps_are_the_formulas_bit_by_bit(x: float, means: list[float]) -> None:
    array = np.array([[mean] for mean in means])
    assert run(ALGORITHMS["fedavg"], np.array([x]), array)[0] == scalar_fedavg(x, means, 0.7, 2)
    assert run(ALGORITHMS["fedadam"], np.array([x]), array)[0] == scalar_fedadam(x, means, 0.03, 3)


@pytest.mark.parametrize("name", ALGORITHMS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 256), max_size=5, unique=True))
def test_any_chunking_gives_the_same_bits(name: str, seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    start, means = rng.normal(size=257), rng.normal(size=(5, 257)) * 10.0 ** rng.integers(-8, 8, size=257)
    whole = run(ALGORITHMS[name], start, means)
    edges = [0, *sorted(cuts), 257]
    parts = [run(ALGORITHMS[name], start[a:b], means[:, a:b]) for a, b in itertools.pairwise(edges)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    strided = run(ALGORITHMS[name], np.repeat(start, 2)[::2], np.repeat(means, 2, axis=1)[:, ::2])
    assert strided.tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_stored_vector(name: str) -> None:
    """Every version must give these bits: sites of one study may run different ones."""
    vector = json.loads(VECTORS.read_text())
    start = np.array([float.fromhex(value) for value in vector["start"]])
    means = np.array([[float.fromhex(value) for value in row] for row in vector["means"]])
    assert [value.hex() for value in run(ALGORITHMS[name], start, means).tolist()] == vector[name]


def test_fedavg_with_rate_one_is_the_weighted_mean_of_models() -> None:
    rng = np.random.default_rng(1)
    start, local, rows = rng.normal(size=6), rng.normal(size=(3, 6)), [10, 30, 60]
    weights = site_weights(rows, "rows")
    total = sum(client_update(local[i], start, weights[i]) for i in range(3))
    algorithm = FedAvg(1)
    state = algorithm.step(algorithm.start(start), mean_update(total, weights))
    np.testing.assert_allclose(algorithm.final(state), np.average(local, axis=0, weights=rows), rtol=1e-12)


def test_survivors_alone_are_averaged() -> None:
    rng = np.random.default_rng(2)
    start, local, rows = rng.normal(size=6), rng.normal(size=(3, 6)), [10, 30, 60]
    weights = site_weights(rows, "rows")
    total = sum(client_update(local[i], start, weights[i]) for i in (0, 2))
    mean = mean_update(total, [weights[0], weights[2]])
    np.testing.assert_allclose(start + mean, np.average(local[[0, 2]], axis=0, weights=[10, 60]), rtol=1e-12)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
def test_weights_are_proportional_and_never_above_one(rows: list[int]) -> None:
    weights = site_weights(rows, "rows")
    assert max(weights) == 1.0
    assert all(weight == count / max(rows) for weight, count in zip(weights, rows, strict=True))
    assert site_weights(rows, "equal") == [1.0] * len(rows)


def test_a_site_without_rows_has_no_weight() -> None:
    for rows in ([], [3, 0]):
        with pytest.raises(InputError):
            site_weights(rows, "rows")


def test_the_last_models_are_averaged_and_one_or_none_mean_the_last() -> None:
    means = np.array([[1.0], [2.0], [4.0]])
    for last, expected in [(0, 7.0), (1, 7.0), (2, 5.0), (3, 11 / 3)]:
        assert run(FedAvg(3, average_last=last), np.zeros(1), means)[0] == pytest.approx(expected)


def test_state_is_read_only_and_starts_from_a_copy() -> None:
    start = np.zeros(3)
    algorithm = FedAdam(2)
    state = algorithm.start(start)
    start[:] = 9
    assert not state.params.any()
    with pytest.raises(ValueError, match="read-only"):
        state.params[0] = 1
    later = algorithm.step(state, np.ones(3))
    assert later.rounds == 1
    assert not state.params.any()
    with pytest.raises(ValueError, match="read-only"):
        later.second[0] = 1


@pytest.mark.parametrize("mean", [np.zeros(2), np.array([0.0, np.nan, 0.0]), np.array([0.0, np.inf, 0.0])])
def test_a_step_refuses_what_is_no_mean_update(mean: np.ndarray) -> None:
    for algorithm in ALGORITHMS.values():
        with pytest.raises(InputError):
            algorithm.step(algorithm.start(np.zeros(3)), mean)


def test_rounds_are_neither_exceeded_nor_cut_short() -> None:
    algorithm = FedAvg(1)
    state = algorithm.start(np.zeros(1))
    with pytest.raises(InputError, match="0 of 1"):
        algorithm.final(state)
    state = algorithm.step(state, np.ones(1))
    with pytest.raises(InputError, match="all rounds"):
        algorithm.step(state, np.ones(1))


def test_a_state_of_mixed_shapes_is_refused() -> None:
    with pytest.raises(InputError):
        ServerState(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))
    with pytest.raises(InputError):
        ServerState(*(np.zeros(2, dtype=np.float32) for _ in range(4)))


def test_the_plan_names_the_algorithm() -> None:
    common = {"rounds": 9, "batch": 1, "local_steps": 1, "learning_rate": 0.1}
    assert build_algorithm(TrainingSection(**common)) == FedAvg(9, rate=1.0)
    chosen = TrainingSection(**common, algorithm="fedadam", server_learning_rate=0.5, average_last=4)
    assert build_algorithm(chosen) == FedAdam(9, rate=0.5, average_last=4)
