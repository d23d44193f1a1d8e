"""How good a model is, on rows or on sums that several sites add up.

Classifiers: accuracy (at 0.5, or the most probable class), log loss in nats, Brier score (squared error of
the probability; for k classes summed over classes), and on rows also AUC, the Mann-Whitney statistic with
ties counted half (binary alone, and only where both classes occur). Regression: MAE and RMSE in the label's
unit, R2. Models of text: the loss of a token they learnt, in nats, and perplexity, its exponential.

Addable form: `evaluation_sums` of disjoint sets of rows add up to those of their union, so a secure sum of
them gives the pooled metrics without showing a site's. AUC has no such form. Metrics computed from rows are
not public: what leaves a site is for the plan to allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cloister.errors import InputError
from cloister.learning.heads import Array, LogisticHead, SquaredHead, TokensHead
from cloister.learning.learner import Learner, Shape

__all__ = ["area_under_curve", "evaluate", "evaluation_sums", "metrics_from_sums", "read_sums"]

_ROWS = 1 << 15
_MOST_NATS = 500.0  # of a token: beyond it perplexity says no more, and would overflow
_LARGEST = 1e100  # sums of so many sites stay finite, and so do their squares


def evaluate(model: Learner, params: Array, X: Array, y: Array, *, unit: float = 1.0) -> dict[str, float]:
    """Return the metrics of a model on rows.

    Args:
        model: what the parameters mean.
        params: float64[d].
        X: float64[n, f], scaled features.
        y: float64[n], labels as the model sees them.
        unit: how many of the label's own units one unit of `y` is (`FeatureMap.label_unit`).

    Returns:
        name to value; fractions, not per cent. A metric that is undefined on these rows is left out.

    Raises:
        InputError: there are no rows, or shapes do not fit.
    """
    metrics = metrics_from_sums(evaluation_sums(model, params, X, y, unit=unit))
    if isinstance(model.head, LogisticHead) and 0.0 < y.mean() < 1.0:
        metrics["auc"] = area_under_curve(model.predict(params, X), y)
    return metrics


def evaluation_sums(model: Learner, params: Array, X: Array, y: Array, *, unit: float = 1.0) -> Array:
    """Return what metrics need, so that vectors of disjoint sets of rows add up.

    Returns:
        float64[4] (rows, correct, log loss, Brier) for classifiers; float64[5] (rows, absolute errors,
        squared errors, labels, squared labels) for regression. Arguments and errors as for `evaluate`.
    """
    if len(X) == 0 or y.shape != (len(X),):
        raise InputError(
            "there are no rows to evaluate on, or labels do not fit them", fix="Give at least one row"
        )
    starts = range(0, len(X), _ROWS)
    sums = [_sums(model, params, X[at : at + _ROWS], y[at : at + _ROWS], unit) for at in starts]
    total: Array = np.sum(sums, axis=0)
    return total


def read_sums(model: Shape, values: Sequence[float]) -> Array:
    """Return evaluation sums that somebody else computed, float64[4], float64[5], or float64[3] of tokens.

    Raises:
        InputError: no rows give these numbers: another count of them, not finite or beyond all measure, no
            rows, or a negative count or loss.
    """
    sums = np.asarray(values, dtype=np.float64)
    regression, tokens = isinstance(model.head, SquaredHead), isinstance(model.head, TokensHead)
    if (
        sums.shape != ((5,) if regression else (3,) if tokens else (4,))
        or not (np.abs(sums) <= _LARGEST).all()
        or sums[0] < 1.0
        or (tokens and sums[1] < 1.0)
        or (np.delete(sums, 3) if regression else sums).min() < 0.0
    ):
        raise InputError("these numbers are not the sums of an evaluation", fix="Use evaluation_sums")
    return sums


def metrics_from_sums(sums: Array) -> dict[str, float]:
    """Return the metrics that added `evaluation_sums` give; the length tells the kind of model.

    Raises:
        InputError: they are not such sums, or of no rows.
    """
    if sums.shape not in ((3,), (4,), (5,)) or not np.isfinite(sums).all() or not sums[0] > 0:
        raise InputError("these numbers are not the sums of an evaluation", fix="Use evaluation_sums")
    if len(sums) == 3:
        loss = float(sums[2] / max(sums[1], 1.0))
        return {"perplexity": math.exp(min(loss, _MOST_NATS)), "token_loss": loss}
    rows, second, third, fourth, *rest = (float(value) for value in sums)
    if not rest:
        return {"accuracy": second / rows, "log_loss": third / rows, "brier": fourth / rows}
    metrics = {"mae": second / rows, "rmse": math.sqrt(max(third, 0.0) / rows)}
    spread = rest[0] - fourth * fourth / rows
    if spread > 1e-12 * rest[0]:
        metrics["r2"] = 1.0 - third / spread
    return metrics


def area_under_curve(scores: Array, y: Array) -> float:
    """Return the chance that a random positive scores above a random negative, ties counted half.

    Args:
        scores: float64[n].
        y: float64[n] of 0 and 1, both present.

    Raises:
        InputError: a class is missing.
    """
    positive = y > 0.5
    positives = int(positive.sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        raise InputError("AUC needs rows of both classes", fix="Evaluate on more rows")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - (sizes - 1) / 2.0
    ranks = float(middle[group][positive].sum())
    return (ranks - positives * (positives + 1) / 2.0) / (positives * negatives)


def _sums(model: Learner, params: Array, X: Array, y: Array, unit: float) -> list[float]:
    predicted = model.predict(params, X)
    if isinstance(model.head, SquaredHead):
        error, label = unit * (predicted - y), unit * y
        return [len(y), np.abs(error).sum(), np.square(error).sum(), label.sum(), np.square(label).sum()]
    losses = model.losses(params, X, y)
    if isinstance(model.head, LogisticHead):
        correct = (predicted > 0.5) == (y > 0.5)
        brier = np.square(predicted - y)
    else:
        classes = y.astype(np.intp)
        correct = predicted.argmax(axis=1) == classes
        own = np.take_along_axis(predicted, classes[:, None], axis=1)[:, 0]
        brier = np.square(predicted).sum(axis=1) - 2.0 * own + 1.0
    return [len(y), correct.sum(), losses.sum(), brier.sum()]
