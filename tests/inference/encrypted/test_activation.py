"""Polynomials in the place of activations, and the bounds that are told of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import chebyshev
from tests.inference.artifacts import make_artifact
from tests.inference.encrypted.rows import make_rows

from cloister.inference.encrypted.activation import (
    _ABSOLUTE,
    DEGREE,
    approximation,
    approximation_error,
    reach,
)
from cloister.inference.encrypted.evaluation import chebyshev_steps
from cloister.learning.models import Activation
from cloister.learning.sections import ModelSection


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("bound", [0.01, 1.0, 6.5, 40.0])
def test_no_point_is_worse_than_the_bound(activation: Activation, bound: float) -> None:
    coefficients = approximation(activation, bound)
    told = approximation_error(activation, bound, coefficients)
    x = np.random.default_rng(0).uniform(-bound, bound, 200_000)
    exact = np.tanh(x) if activation == "tanh" else np.maximum(x, 0)
    assert np.abs(chebyshev.chebval(x / bound, coefficients) - exact).max() <= told
    if activation == "relu":
        assert told < 0.0045 * bound


def test_the_polynomial_of_the_absolute_value_is_the_best_one() -> None:
    """Found again by Lawson's iteration: weights grow where the error is large."""
    u = np.sin(np.linspace(0.0, np.pi / 2.0, 2001))
    basis = chebyshev.chebvander(u, DEGREE)[:, ::2]
    weights = np.full(len(u), 1.0 / len(u))
    for _ in range(60):
        root = np.sqrt(weights)
        found = np.linalg.lstsq(basis * root[:, None], u * root, rcond=None)[0]
        error = np.abs(basis @ found - u)
        weights = weights * error / (weights @ error)
    np.testing.assert_allclose(found, _ABSOLUTE, atol=2e-4)
    ours = np.abs(basis @ np.array(_ABSOLUTE) - u).max()
    assert ours == pytest.approx(0.2801694990 / DEGREE, rel=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_no_row_leaves_the_bound_of_a_hidden_unit(seed: int) -> None:
    artifact = make_artifact("number", ModelSection(kind="mlp", hidden=(3,)), seed=seed)
    features = artifact.card.features
    rng = np.random.default_rng(seed)
    weights, biases = rng.normal(size=(5, 3)), rng.normal(size=3)
    bounds = reach(features, weights, biases)
    seen = np.abs(features.transform_features(make_rows(5000, seed)) @ weights + biases).max(axis=0)
    assert (seen <= bounds).all()
    assert (seen > 0.5 * bounds).all()


def test_steps_come_in_order_and_stay_shallow() -> None:
    for wanted in (range(1, DEGREE, 2), [1, *range(2, DEGREE + 1, 2)]):
        depth = {0: 0, 1: 0}
        for number, large, small in chebyshev_steps(wanted):
            assert large + small == number
            depth[number] = 1 + max(depth[large], depth[small])
            assert depth[large - small] <= depth[number]
        assert set(wanted) <= set(depth)
        assert max(depth.values()) == 5
    assert len(chebyshev_steps([1, *range(2, DEGREE + 1, 2)])) == 16
