"""The last step of a model: from scores to a loss, its derivative, and a prediction.

Scores are float64[..., b, k], labels float64[..., b]. The derivative is by the scores, of each example's own
loss; weighting over examples is the model's business. Everything stays finite for any finite score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Head", "LogisticHead", "SoftmaxHead", "SquaredHead", "TokensHead"]

Array = NDArray[np.float64]


class Head(Protocol):
    """What turns a model's scores into losses and predictions."""

    @property
    def outputs(self) -> int:
        """Scores per example, k."""

    def loss(self, scores: Array, labels: Array) -> Array:
        """Return each example's loss, float64[..., b]."""

    def residual(self, scores: Array, labels: Array) -> Array:
        """Return d loss / d scores, float64[..., b, k]; `scores` is used as its memory."""

    def prediction(self, scores: Array) -> Array:
        """Return what a reader wants from scores float64[n, k]: values or probabilities."""


@dataclass(frozen=True)
class SquaredHead:
    """Half the squared error of one number."""

    @property
    def outputs(self) -> int:
        """One score: the prediction itself."""
        return 1

    def loss(self, scores: Array, labels: Array) -> Array:
        """Return (s - y)^2 / 2."""
        return 0.5 * np.square(scores[..., 0] - labels)

    def residual(self, scores: Array, labels: Array) -> Array:
        """Return s - y."""
        scores[..., 0] -= labels
        return scores

    def prediction(self, scores: Array) -> Array:
        """Return the values, float64[n]."""
        return scores[..., 0]


@dataclass(frozen=True)
class LogisticHead:
    """Binary cross-entropy of one logit; labels are 0 or 1."""

    @property
    def outputs(self) -> int:
        """One score: the logit of class 1."""
        return 1

    def loss(self, scores: Array, labels: Array) -> Array:
        """Return log(1 + exp(s)) - y s, without overflow."""
        score = scores[..., 0]
        return np.maximum(score, 0.0) - score * labels + np.log1p(np.exp(-np.abs(score)))

    def residual(self, scores: Array, labels: Array) -> Array:
        """Return sigmoid(s) - y."""
        _sigmoid(scores)
        scores[..., 0] -= labels
        return scores

    def prediction(self, scores: Array) -> Array:
        """Return the probability of class 1, float64[n]."""
        return _sigmoid(scores.copy())[..., 0]


@dataclass(frozen=True)
class SoftmaxHead:
    """Cross-entropy over `classes` logits; labels are 0 .. classes - 1 as floats."""

    classes: int

    @property
    def outputs(self) -> int:
        """One score for each class."""
        return self.classes

    def loss(self, scores: Array, labels: Array) -> Array:
        """Return log(sum_j exp(s_j)) - s_y, without overflow."""
        shifted = scores - scores.max(axis=-1, keepdims=True)
        own = np.take_along_axis(shifted, labels.astype(np.intp)[..., None], axis=-1)[..., 0]
        total: Array = np.log(np.exp(shifted).sum(axis=-1)) - own
        return total

    def residual(self, scores: Array, labels: Array) -> Array:
        """Return softmax(s) - onehot(y)."""
        _softmax(scores)
        flat = scores.reshape(-1, self.classes)
        flat[np.arange(len(flat)), labels.astype(np.intp).ravel()] -= 1.0
        return flat.reshape(scores.shape)

    def prediction(self, scores: Array) -> Array:
        """Return the probabilities of all classes, float64[n, classes]."""
        return _softmax(scores.copy())


def _sigmoid(scores: Array) -> Array:
    """Replace scores by 1 / (1 + exp(-s)) = (1 + tanh(s / 2)) / 2, which cannot overflow."""
    scores *= 0.5
    np.tanh(scores, out=scores)
    scores += 1.0
    scores *= 0.5
    return scores


def _softmax(scores: Array) -> Array:
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


@dataclass(frozen=True)
class TokensHead:
    """A model of text, whose one score of a row is the row's own loss: over its counted tokens, summed in
    evaluation, their mean where rows are clipped one by one."""

    @property
    def outputs(self) -> int:
        """One score: the loss."""
        return 1

    def loss(self, scores: Array, labels: Array) -> Array:
        """Return s, whatever the labels."""
        return scores[..., 0]

    def residual(self, scores: Array, labels: Array) -> Array:
        """Return 1."""
        scores[...] = 1.0
        return scores

    def prediction(self, scores: Array) -> Array:
        """Return the losses, float64[n]."""
        return scores[..., 0]
