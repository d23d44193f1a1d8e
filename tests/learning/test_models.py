from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from cloister.errors import InputError
from cloister.learning import Model, ModelSection, build_model

SECTIONS = {
    "linear": ModelSection(kind="linear"),
    "logistic": ModelSection(kind="logistic"),
    "softmax": ModelSection(kind="softmax", classes=3),
    "mlp regression": ModelSection(kind="mlp", hidden=(4,), activation="tanh"),
    "mlp binary": ModelSection(kind="mlp", hidden=(4, 3), classes=2, activation="tanh"),
    "mlp classes": ModelSection(kind="mlp", hidden=(5,), classes=3),
}


def labels_for(model: Model, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    name = type(model.head).__name__
    if name == "SquaredHead":
        return rng.normal(size=shape)
    return rng.integers(0, max(2, model.head.outputs), size=shape).astype(float)


def reference_loss(model: Model, params: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    """The mean loss of one client, written as a plain loop over rows and layers."""
    total = 0.0
    for row, label in zip(X, y, strict=True):
        at, values = 0, row
        for number, (inputs, outputs) in enumerate(zip(model.widths[:-1], model.widths[1:], strict=True)):
            weights = params[at : at + inputs * outputs].reshape(inputs, outputs)
            biases = params[at + inputs * outputs : at + (inputs + 1) * outputs]
            values = values @ weights + biases
            at += (inputs + 1) * outputs
            if number < len(model.widths) - 2:
                values = np.tanh(values) if model.activation == "tanh" else np.maximum(values, 0)
        match type(model.head).__name__:
            case "SquaredHead":
                total += 0.5 * (values[0] - label) ** 2
            case "LogisticHead":
                p = 1 / (1 + np.exp(-values[0]))
                total -= label * np.log(p) + (1 - label) * np.log(1 - p)
            case _:
                total -= np.log(np.exp(values[int(label)]) / np.exp(values).sum())
    return total / len(X)


@pytest.mark.parametrize("name", SECTIONS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), clients=st.integers(1, 3), rows=st.integers(1, 5))
def test_gradient_is_the_finite_difference_of_an_independent_loss(
    name: str, seed: int, clients: int, rows: int
) -> None:
    rng = np.random.default_rng(seed)
    model = build_model(SECTIONS[name], 3)
    params = rng.normal(size=(clients, model.size))
    X = rng.normal(size=(clients, rows, 3))
    y = labels_for(model, rng, (clients, rows))
    loss, gradient = model.loss_and_gradient(params, X, y)
    step = 1e-6
    for client in range(clients):
        assert loss[client] == pytest.approx(
            reference_loss(model, params[client], X[client], y[client]), abs=1e-9
        )
        direction = rng.normal(size=model.size)
        ahead = reference_loss(model, params[client] + step * direction, X[client], y[client])
        behind = reference_loss(model, params[client] - step * direction, X[client], y[client])
        slope = (ahead - behind) / (2 * step)
        assert gradient[client] @ direction == pytest.approx(slope, abs=2e-4, rel=1e-4)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_coordinate_of_the_gradient(name: str) -> None:
    rng = np.random.default_rng(5)
    model = build_model(SECTIONS[name], 3)
    params = rng.normal(size=(1, model.size))
    X, y = rng.normal(size=(1, 6, 3)), labels_for(model, rng, (1, 6))
    gradient = model.gradient(params, X, y)[0]
    for index in range(model.size):
        up, down = params[0].copy(), params[0].copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        slope = (reference_loss(model, up, X[0], y[0]) - reference_loss(model, down, X[0], y[0])) / 2e-6
        assert gradient[index] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", SECTIONS)
def test_weights_select_rows_and_clients_do_not_mix(name: str) -> None:
    rng = np.random.default_rng(6)
    model = build_model(SECTIONS[name], 3)
    params = rng.normal(size=(3, model.size))
    X, y = rng.normal(size=(3, 5, 3)), labels_for(model, rng, (3, 5))
    weights = np.zeros((3, 5))
    weights[0, :5], weights[1, :2], weights[2, :1] = 1 / 5, 1 / 2, 1
    loss, together = model.loss_and_gradient(params, X, y, weights)
    for client, rows in enumerate((5, 2, 1)):
        alone_loss, alone = model.loss_and_gradient(
            params[client : client + 1], X[client : client + 1, :rows], y[client : client + 1, :rows]
        )
        np.testing.assert_allclose(together[client], alone[0], rtol=1e-12, atol=1e-15)
        assert loss[client] == pytest.approx(alone_loss[0])


@pytest.mark.parametrize("name", SECTIONS)
def test_a_workspace_changes_nothing(name: str) -> None:
    rng = np.random.default_rng(7)
    model = build_model(SECTIONS[name], 3)
    space, out = model.workspace(2, 4), np.empty((2, model.size))
    for _ in range(3):
        params, X = rng.normal(size=(2, model.size)), rng.normal(size=(2, 4, 3))
        y = labels_for(model, rng, (2, 4))
        fresh = model.gradient(params, X, y)
        np.testing.assert_array_equal(model.gradient(params, X, y, out=out, workspace=space), fresh)


@pytest.mark.parametrize("name", ["logistic", "softmax"])
def test_scores_of_any_size_stay_finite(name: str) -> None:
    model = build_model(SECTIONS[name], 1)
    params = np.full((1, model.size), 1e6)
    params[0, 0] = -1e6
    X, y = np.array([[[1e3], [-1e3], [0.0]]]), np.array([[0.0, 1.0, 0.0]])
    loss, gradient = model.loss_and_gradient(params, X, y)
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    probabilities = model.predict(params[0], X[0])
    assert np.isfinite(probabilities).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def minimise(model: Model, X: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """Plain gradient descent with the penalty on weights alone, to a stationary point."""
    params = np.zeros((1, model.size))
    rate = 4.0 / (np.linalg.eigvalsh(X.T @ X / len(X)).max() + 1.0)
    for _ in range(20_000):
        gradient = model.gradient(params, X[None], y[None]) + l2 * model.penalised * params
        params -= rate * 0.4 * gradient
        if np.abs(gradient).max() < 1e-10:
            break
    return params[0]


def test_the_logistic_optimum_is_scikit_learns() -> None:
    rng = np.random.default_rng(8)
    X = rng.normal(size=(200, 4))
    y = (X @ [1.0, -2.0, 0.5, 0.0] + 0.3 + rng.logistic(size=200) > 0).astype(float)
    params = minimise(build_model(SECTIONS["logistic"], 4), X, y, l2=0.05)
    peer = LogisticRegression(C=1 / (200 * 0.05), tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(params, [*peer.coef_[0], peer.intercept_[0]], atol=1e-5)
    ours = build_model(SECTIONS["logistic"], 4).predict(params, X)
    np.testing.assert_allclose(ours, peer.predict_proba(X)[:, 1], atol=1e-5)


def test_the_softmax_optimum_is_scikit_learns() -> None:
    rng = np.random.default_rng(9)
    X = rng.normal(size=(150, 3))
    y = (X @ rng.normal(size=(3, 3)) + rng.gumbel(size=(150, 3))).argmax(axis=1)
    model = build_model(SECTIONS["softmax"], 3)
    params = minimise(model, X, y.astype(float), l2=0.05)
    peer = LogisticRegression(C=1 / (150 * 0.05), tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(model.predict(params, X), peer.predict_proba(X), atol=1e-5)


def test_the_linear_optimum_is_scikit_learns() -> None:
    rng = np.random.default_rng(10)
    X = rng.normal(size=(100, 3))
    y = X @ [1.0, -2.0, 0.5] + 3.0 + rng.normal(size=100)
    params = minimise(build_model(SECTIONS["linear"], 3), X, y, l2=0.1)
    peer = Ridge(alpha=0.1 * 100).fit(X, y)
    np.testing.assert_allclose(params, [*peer.coef_, peer.intercept_], atol=1e-6)


def test_the_start_is_zero_without_hidden_layers() -> None:
    for name in ("linear", "logistic", "softmax"):
        assert not build_model(SECTIONS[name], 7).initial(3).any()


def test_the_start_of_a_network_is_the_same_everywhere() -> None:
    model = build_model(ModelSection(kind="mlp", hidden=(8,), classes=3), 5)
    start = model.initial(42)
    digest = hashlib.sha256(start.astype("<f8").tobytes()).hexdigest()
    assert digest == "2c2193cf95e38cd02dd73df431621fc52cb319c1dcbdf734213323efd9b0d442"
    limit = np.sqrt(6 / (5 + 8))
    assert np.abs(start[:40]).max() <= limit
    assert np.abs(start[:40]).max() > 0.8 * limit
    assert not start[40:48].any()
    assert not np.array_equal(start, model.initial(43))


def test_the_penalty_leaves_biases_out() -> None:
    model = build_model(ModelSection(kind="mlp", hidden=(2,), classes=2), 3)
    assert model.penalised.tolist() == [True] * 6 + [False] * 2 + [True] * 2 + [False]
    with pytest.raises(ValueError, match="read-only"):
        model.penalised[0] = False


@pytest.mark.parametrize(("params", "features"), [(4, 2), (3, 3), (3, 1)])
def test_prediction_refuses_what_does_not_fit(params: int, features: int) -> None:
    model = build_model(SECTIONS["logistic"], 2)
    with pytest.raises(InputError):
        model.predict(np.zeros(params), np.zeros((5, features)))


def test_prediction_of_no_rows_and_of_many() -> None:
    model = build_model(SECTIONS["mlp classes"], 3)
    params = model.initial(1)
    assert model.predict(params, np.zeros((0, 3))).shape == (0, 3)
    X = np.random.default_rng(11).normal(size=(40_000, 3))
    whole = model.predict(params, X)
    np.testing.assert_allclose(whole[39_990:], model.predict(params, X[39_990:]), rtol=1e-12)
