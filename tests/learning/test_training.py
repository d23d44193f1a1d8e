from __future__ import annotations

import numpy as np
import pytest

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError
from cloister.learning import ClientRows, Model, ModelSection, TrainingSection, build_model, train
from cloister.learning import training as training_module
from cloister.learning.sampling import Batches

MLP = ModelSection(kind="mlp", hidden=(4,), activation="tanh", classes=2)


def stream(number: int = 0) -> StreamRandom:
    return StreamRandom.from_seed(number, "test")


def config(**changes: object) -> TrainingSection:
    fields: dict[str, object] = {"rounds": 1, "batch": 3, "local_steps": 4, "learning_rate": 0.2}
    return TrainingSection(**(fields | changes))  # type: ignore[arg-type]


def clients(counts: list[int], features: int = 3, number: int = 1) -> ClientRows:
    rng = np.random.default_rng(number)
    return ClientRows.stack(
        [(rng.normal(size=(n, features)), rng.integers(0, 2, size=n).astype(float)) for n in counts]
    )


def reference_adam(model: Model, start: np.ndarray, batches: list, rate: float, l2: float) -> np.ndarray:
    """Adam as its paper's algorithm 1 writes it, one client, one coordinate-wise loop."""
    theta, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, (X, y) in enumerate(batches, start=1):
        g = model.gradient(theta[None], X[None], y[None])[0] + l2 * np.where(model.penalised, theta, 0)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        theta = theta - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("counts", [[7, 7], [2, 9, 30]])
def test_batched_training_is_each_client_s_own_loop(optimiser: str, l2: float, counts: list[int]) -> None:
    model, rows = build_model(MLP, 3), clients(counts)
    settings = config(optimiser=optimiser, l2=l2)
    start = model.initial(3)
    trained = train(model, start, rows, settings, insecure_test_random=stream(5))
    batches = Batches(rows.starts, rows.counts, batch=3, steps=4, random=stream(5))
    order = [index.copy() for index in batches]
    for client, count in enumerate(counts):
        picks = [index[client, : min(3, count)] for index in order]
        own = [(rows.X[pick], rows.y[pick]) for pick in picks]
        if optimiser == "adam":
            expected = reference_adam(model, start, own, 0.2, l2)
        else:
            expected = start.copy()
            for X, y in own:
                gradient = model.gradient(expected[None], X[None], y[None])[0]
                expected = expected - 0.2 * (gradient + l2 * np.where(model.penalised, expected, 0))
        np.testing.assert_allclose(trained[client], expected, rtol=1e-10, atol=1e-12)


def test_a_batch_of_all_rows_is_gradient_descent() -> None:
    model, rows = build_model(ModelSection(kind="logistic"), 3), clients([5, 8])
    trained = train(model, np.zeros(4), rows, config(batch=100, local_steps=7))
    for client, (start, count) in enumerate([(0, 5), (5, 8)]):
        X, y, expected = rows.X[start : start + count], rows.y[start : start + count], np.zeros(4)
        for _ in range(7):
            p = 1 / (1 + np.exp(-(X @ expected[:3] + expected[3])))
            expected -= 0.2 * np.append(X.T @ (p - y), (p - y).sum()) / count
        np.testing.assert_allclose(trained[client], expected, rtol=1e-10)


def test_many_clients_are_cut_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """However clients are grouped for the cache, each takes full-batch steps of its own."""
    model, rows = build_model(MLP, 3), clients([4] * 9)
    settings = config(batch=4)
    whole = train(model, model.initial(0), rows, settings)
    monkeypatch.setattr(training_module, "_CACHE_BYTES", 2000)
    np.testing.assert_allclose(train(model, model.initial(0), rows, settings), whole, rtol=1e-10, atol=1e-13)


def test_the_start_is_left_alone_and_may_differ_by_client() -> None:
    model, rows = build_model(ModelSection(kind="logistic"), 3), clients([5, 8])
    start = np.arange(8.0).reshape(2, 4) / 10
    before = start.copy()
    trained = train(model, start, rows, config(batch=100))
    np.testing.assert_array_equal(start, before)
    alone = train(model, start[1], rows.select([1]), config(batch=100))
    np.testing.assert_allclose(trained[1], alone[0], rtol=1e-12)
    assert trained.flags.c_contiguous


def test_order_comes_from_the_system_unless_injected() -> None:
    model, rows = build_model(ModelSection(kind="logistic"), 3), clients([50])
    twice = [train(model, np.zeros(4), rows, config()) for _ in range(2)]
    assert not np.array_equal(*twice)
    same = [train(model, np.zeros(4), rows, config(), insecure_test_random=stream()) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_training_that_diverges_is_an_error_not_an_update() -> None:
    model = build_model(ModelSection(kind="linear"), 1)
    rows = ClientRows.stack([(np.full((4, 1), 1e6), np.ones(4))])
    with pytest.raises(PlanError, match="diverged"):
        train(model, np.zeros(2), rows, config(learning_rate=1000.0, local_steps=100))


def test_rows_that_do_not_fit_are_refused() -> None:
    X = np.zeros((3, 2))
    for parts in (
        [],
        [(np.zeros((0, 2)), np.zeros(0))],
        [(X, np.zeros(2))],
        [(X, np.zeros(3)), (X[:, :1], np.zeros(3))],
    ):
        with pytest.raises(InputError):
            ClientRows.stack(parts)
    rows = ClientRows.stack([(X, np.zeros(3))])
    for params in (np.zeros(5), np.zeros((1, 2))):
        with pytest.raises(InputError):
            train(build_model(ModelSection(kind="logistic"), 2), params, rows, config())
    with pytest.raises(InputError):
        train(build_model(ModelSection(kind="logistic"), 3), np.zeros(4), rows, config())


def test_pooling_and_selection_share_the_rows() -> None:
    rows = clients([2, 3, 4])
    assert rows.clients == 3
    assert rows.pooled().counts.tolist() == [9]
    chosen = rows.select([2, 0])
    assert chosen.counts.tolist() == [4, 2]
    assert chosen.starts.tolist() == [5, 0]
    assert np.shares_memory(chosen.X, rows.X)
