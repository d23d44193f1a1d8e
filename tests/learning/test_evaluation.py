from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cloister.errors import InputError
from cloister.learning import (
    Model,
    ModelSection,
    area_under_curve,
    build_model,
    evaluate,
    evaluation_sums,
    metrics_from_sums,
    read_sums,
)
from cloister.learning.heads import SoftmaxHead, TokensHead

KINDS = {
    "linear": ModelSection(kind="linear"),
    "logistic": ModelSection(kind="logistic"),
    "softmax": ModelSection(kind="softmax", classes=4),
}


def example(kind: str, rows: int = 300) -> tuple[Model, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    model = build_model(KINDS[kind], 3)
    X = rng.normal(size=(rows, 3))
    y = (
        rng.normal(size=rows)
        if kind == "linear"
        else rng.integers(0, max(2, model.head.outputs), rows).astype(float)
    )
    return model, rng.normal(size=model.size), X, y


def test_binary_metrics_are_scikit_learns() -> None:
    model, params, X, y = example("logistic")
    p = model.predict(params, X)
    ours = evaluate(model, params, X, y)
    assert ours == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(y, p > 0.5),
            "log_loss": metrics.log_loss(y, p),
            "brier": metrics.brier_score_loss(y, p),
            "auc": metrics.roc_auc_score(y, p),
        }
    )


def test_softmax_metrics_are_scikit_learns() -> None:
    model, params, X, y = example("softmax")
    p = model.predict(params, X)
    ours = evaluate(model, params, X, y)
    assert ours == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(y, p.argmax(axis=1)),
            "log_loss": metrics.log_loss(y, p, labels=range(4)),
            "brier": np.square(p - np.eye(4)[y.astype(int)]).sum(axis=1).mean(),
        }
    )


def test_regression_metrics_are_scikit_learns_in_the_label_s_unit() -> None:
    model, params, X, y = example("linear")
    p = model.predict(params, X)
    ours = evaluate(model, params, X, y, unit=7.0)
    assert ours == pytest.approx(
        {
            "mae": 7 * metrics.mean_absolute_error(y, p),
            "rmse": 7 * metrics.root_mean_squared_error(y, p),
            "r2": metrics.r2_score(y, p),
        }
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(1, 299), min_size=1, max_size=4, unique=True))
def test_sums_of_parts_are_the_sums_of_the_whole(kind: str, cuts: list[int]) -> None:
    model, params, X, y = example(kind)
    edges = [0, *sorted(cuts), 300]
    parts = [evaluation_sums(model, params, X[a:b], y[a:b], unit=2.0) for a, b in itertools.pairwise(edges)]
    whole = evaluate(model, params, X, y, unit=2.0)
    whole.pop("auc", None)
    assert metrics_from_sums(np.sum(parts, axis=0)) == pytest.approx(whole)


def test_more_rows_than_one_block() -> None:
    model, params, X, y = example("logistic", 70_000)
    assert evaluate(model, params, X, y)["accuracy"] == pytest.approx(
        ((model.predict(params, X) > 0.5) == y).mean()
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, y = np.array([float(s) for s, _ in rows]), np.array([float(b) for _, b in rows])
    above, below = scores[y == 1], scores[y == 0]
    if not len(above) or not len(below):
        with pytest.raises(InputError):
            area_under_curve(scores, y)
        return
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    assert area_under_curve(scores, y) == pytest.approx(np.mean(pairs))


def test_a_metric_that_is_undefined_is_left_out() -> None:
    model, params, X, _ = example("logistic")
    assert "auc" not in evaluate(model, params, X, np.ones(300))
    model, params, X, _ = example("linear")
    assert "r2" not in evaluate(model, params, X, np.ones(300))


def test_no_rows_and_no_sums_are_refused() -> None:
    model, params, X, y = example("logistic")
    for rows, labels in ((X[:0], y[:0]), (X, y[:5])):
        with pytest.raises(InputError):
            evaluate(model, params, rows, labels)
    for sums in (np.zeros(4), np.ones(2), np.array([1, np.nan, 1, 1])):
        with pytest.raises(InputError):
            metrics_from_sums(sums)


def test_sums_of_tokens_give_a_loss_and_perplexity() -> None:
    shape: Any = SimpleNamespace(head=TokensHead())
    first, second = read_sums(shape, [3.0, 40.0, 80.0]), read_sums(shape, [1.0, 10.0, 20.0])
    metrics = metrics_from_sums(first + second)
    assert metrics == {"perplexity": pytest.approx(math.exp(2.0)), "token_loss": pytest.approx(2.0)}
    assert math.isfinite(metrics_from_sums(np.array([1.0, 1.0, 1e9]))["perplexity"])
    for wrong in ([3.0, 0.0, 8.0], [0.0, 4.0, 8.0], [3.0, 4.0, -1.0], [3.0, 4.0, 8.0, 1.0], [3.0, 4.0]):
        with pytest.raises(InputError, match="sums of an evaluation"):
            read_sums(shape, wrong)
    classes: Any = SimpleNamespace(head=SoftmaxHead(3))
    with pytest.raises(InputError):  # nor are they a classifier's
        read_sums(classes, [3.0, 4.0, 8.0])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sums_from_elsewhere_are_read_or_refused(kind: str) -> None:
    model, params, X, y = example(kind)
    sums = evaluation_sums(model, params, X, y).tolist()
    assert read_sums(model, sums).tolist() == sums
    wrong: list[list[float]] = [[], sums[:-1], [*sums, 1.0], [0.0, *sums[1:]], [-1.0, *sums[1:]]]
    wrong += [[sums[0], bad, *sums[2:]] for bad in (float("nan"), float("inf"), 1e101, -1.0)]
    for values in wrong:
        with pytest.raises(InputError, match="sums of an evaluation"):
            read_sums(model, values)
