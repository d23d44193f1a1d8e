"""Models over tables: linear, logistic, softmax, and the multilayer perceptron, batched over clients.

A model is frozen data; its parameters are one flat float64 vector of `size` entries: for each layer the
weights, row by row of its inputs, then its biases. Functions take parameters stacked over C clients, (C, d),
and work on all of them at once; gradients are in closed form. Linear, logistic and softmax models are
networks without a hidden layer.

The start: without a hidden layer zeros; otherwise weights uniform in +-sqrt(6 / (in + out)) (Glorot and
Bengio 2010) and biases zero. It uses only exactly rounded operations on a keyed stream, so a seed gives the
same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array, Head, LogisticHead, SoftmaxHead, SquaredHead
from cloister.learning.learner import WholeVector
from cloister.learning.sections import ModelSection

__all__ = ["Activation", "Model", "Workspace", "build_model"]

Activation = Literal["relu", "tanh"]

_PREDICT_ROWS = 1 << 15


@dataclass(frozen=True, eq=False)
class Workspace:
    """Memory of a gradient: activations of each layer, residuals below each hidden one, and masks."""

    activations: tuple[Array, ...]
    residuals: tuple[Array, ...]
    masks: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True)
class Model(WholeVector):
    """A fully connected network.

    Args:
        widths: inputs, hidden layers, outputs; two entries make a linear model.
        head: loss and prediction; its outputs are the last width.
        activation: of the hidden layers.
    """

    widths: tuple[int, ...]
    head: Head
    activation: Activation = "relu"

    @cached_property
    def size(self) -> int:
        """Number of parameters, d."""
        return sum((inputs + 1) * outputs for inputs, outputs in self._shapes())

    @property
    def inputs(self) -> int:
        """Features it takes, f."""
        return self.widths[0]

    @cached_property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: weights, not biases; bool[d]."""
        mask = np.ones(self.size, dtype=np.bool_)
        for _, biases in self._views(mask[None, :]):
            biases[...] = False
        mask.flags.writeable = False
        return mask

    def initial(self, seed: int) -> Array:
        """Return the start that `seed` determines, float64[d]."""
        params = np.zeros((1, self.size))
        if len(self.widths) > 2:
            random = StreamRandom.from_seed(seed, "initial model")
            for (inputs, outputs), (weights, _) in zip(self._shapes(), self._views(params), strict=True):
                limit = np.sqrt(6.0 / (inputs + outputs))
                weights[0] = (random.uniform((inputs, outputs)) * 2.0 - 1.0) * limit
        start: Array = params[0]
        return start

    def workspace(self, clients: int, examples: int) -> Workspace:
        """Return memory for `gradient` on C clients and b examples each, to be used again and again."""
        shapes = [(clients, examples, width) for width in self.widths[1:]]
        return Workspace(
            tuple(np.empty(shape) for shape in shapes),
            tuple(np.empty(shape) for shape in shapes[:-1]),
            tuple(np.empty(shape, dtype=np.bool_) for shape in shapes[:-1]),
        )

    def gradient(
        self,
        params: Array,
        X: Array,
        y: Array,
        weights: Array | None = None,
        *,
        out: Array | None = None,
        workspace: Workspace | None = None,
    ) -> Array:
        """Return the gradient of each client's loss by its parameters.

        Args:
            params: float64[C, d].
            X: float64[C, b, f].
            y: float64[C, b].
            weights: float64[C, b], each example's share of the loss; None is 1 / b for all.
            out: float64[C, d] to write into.
            workspace: memory for what lies between, from `workspace(C, b)`.

        Returns:
            float64[C, d].
        """
        space = workspace or self.workspace(*y.shape)
        layers = list(self._views(params))
        scores = self._forward(layers, X, space)
        return self._backward(layers, X, self.head.residual(scores, y), weights, out, space)

    def loss_and_gradient(
        self, params: Array, X: Array, y: Array, weights: Array | None = None
    ) -> tuple[Array, Array]:
        """Return (loss float64[C], gradient float64[C, d]); arguments as for `gradient`."""
        space = self.workspace(*y.shape)
        layers = list(self._views(params))
        scores = self._forward(layers, X, space)
        each = self.head.loss(scores, y)
        loss: Array = each.mean(axis=-1) if weights is None else (each * weights).sum(axis=-1)
        return loss, self._backward(layers, X, self.head.residual(scores, y), weights, None, space)

    def predict(self, params: Array, X: Array) -> Array:
        """Return predictions for rows.

        Args:
            params: float64[d].
            X: float64[n, f].

        Returns:
            float64[n] values or probabilities of class 1; float64[n, classes] for softmax.

        Raises:
            InputError: a shape does not fit the model.
        """
        if params.shape != (self.size,):
            raise InputError(f"the model has {self.size} parameters and {params.size} were given")
        if X.ndim != 2 or X.shape[1] != self.inputs:
            raise InputError(f"the model takes {self.inputs} features and rows of shape {X.shape} were given")
        return self.head.prediction(self._scores(params, X))

    def losses(self, params: Array, X: Array, y: Array) -> Array:
        """Return each row's loss, float64[n]; shapes as for `predict`."""
        return self.head.loss(self._scores(params, X), y)

    def _shapes(self) -> list[tuple[int, int]]:
        return list(zip(self.widths[:-1], self.widths[1:], strict=True))

    def _views(self, params: NDArray[np.generic]) -> Iterator[tuple[NDArray, NDArray]]:  # type: ignore[type-arg]
        """Yield (weights [C, in, out], biases [C, 1, out]) of each layer, as views of `params` [C, d]."""
        clients, start = len(params), 0
        for inputs, outputs in self._shapes():
            middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
            yield params[:, start:middle].reshape(clients, inputs, outputs), params[:, None, middle:end]
            start = end

    def _scores(self, params: Array, X: Array) -> Array:
        """Return the scores of rows [n, f] under one client's parameters, [n, k]."""
        layers = list(self._views(params[None]))
        parts = []
        for at in range(0, max(len(X), 1), _PREDICT_ROWS):
            piece = X[None, at : at + _PREDICT_ROWS]
            parts.append(self._forward(layers, piece, self.workspace(1, piece.shape[1]))[0])
        return np.concatenate(parts)

    def _forward(self, layers: list[tuple[Array, Array]], X: Array, space: Workspace) -> Array:
        """Fill the workspace's activations; return the last, the scores [C, b, k]."""
        below = X
        for at, (weights, biases) in enumerate(layers):
            above = np.matmul(below, weights, out=space.activations[at])
            above += biases
            if at < len(layers) - 1:
                if self.activation == "relu":
                    np.maximum(above, 0.0, out=above)
                else:
                    np.tanh(above, out=above)
            below = above
        return below

    def _backward(
        self,
        layers: list[tuple[Array, Array]],
        X: Array,
        residual: Array,
        weights: Array | None,
        out: Array | None,
        space: Workspace,
    ) -> Array:
        """Carry d loss / d scores back through the layers; return the gradient [C, d]."""
        if weights is None:
            residual *= 1.0 / residual.shape[1]
        else:
            residual *= weights[:, :, None]
        gradient = np.empty((len(X), self.size)) if out is None else out
        into = list(self._views(gradient))
        for at in range(len(layers) - 1, -1, -1):
            below = space.activations[at - 1] if at else X
            np.matmul(below.swapaxes(1, 2), residual, out=into[at][0])
            np.einsum("cbk->ck", residual, out=into[at][1][:, 0])
            if at:
                residual = self._through(layers[at][0], residual, below, at - 1, space)
        return gradient

    def _through(self, weights: Array, residual: Array, hidden: Array, at: int, space: Workspace) -> Array:
        """Return the residual below hidden layer `at`; its activations are used up."""
        below = space.residuals[at]
        if residual.shape[2] == 1:
            np.multiply(residual, weights.swapaxes(1, 2), out=below)
        else:
            np.matmul(residual, weights.swapaxes(1, 2), out=below)
        if self.activation == "relu":
            below *= np.greater(hidden, 0.0, out=space.masks[at])
        else:
            np.multiply(hidden, hidden, out=hidden)
            np.subtract(1.0, hidden, out=hidden)
            below *= hidden
        return below


def build_model(section: ModelSection, features: int) -> Model:
    """Return the model a plan names.

    Args:
        section: `[model]` of the plan, already validated.
        features: columns of the feature matrix (`FeatureMap.width`).
    """
    head: Head
    if section.kind == "linear" or (section.kind == "mlp" and section.classes == 0):
        head = SquaredHead()
    elif section.kind == "logistic" or (section.kind == "mlp" and section.classes == 2):
        head = LogisticHead()
    else:
        head = SoftmaxHead(section.classes)
    widths = (features, *section.hidden, head.outputs)
    return Model(widths, head, section.activation)
