"""The passes over a block of rows: forward, backward, norms, factors, sums.

`closed_form` says what is computed, and why the bounds hold.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from cloister.learning.heads import Array
from cloister.learning.models import Model
from cloister.learning.private.base import check_clip
from cloister.learning.private.tiles import padded, product, square_norms

__all__ = ["Block", "Indices", "deflated", "layer_views", "squares_of_inputs"]

Indices = NDArray[np.int64]

_LARGEST_SQUARE = 2.0**400


def deflated(model: Model, clip: float) -> float:
    """Return clip', by which factors are computed so that no contribution exceeds `clip`."""
    return check_clip(clip) * (1.0 - (_terms(model.widths) + 16) * 2.0**-52)


@functools.cache
def _terms(widths: tuple[int, ...]) -> int:
    return max(widths[:-1]) + max(widths[1:]) + len(widths) + 3


def layer_views(model: Model, vector: Array) -> list[tuple[Array, Array]]:
    """Return (weights [in, out], biases [out]) of each layer as views of a flat vector [d]."""
    views, start = [], 0
    for inputs, outputs in zip(model.widths[:-1], model.widths[1:], strict=True):
        middle = start + inputs * outputs
        views.append((vector[start:middle].reshape(inputs, outputs), vector[middle : middle + outputs]))
        start = middle + outputs
    return views


def squares_of_inputs(rows: Array) -> Array:
    """Return |a|^2 + 1 of each row of a layer's inputs; infinity where it is too large to trust."""
    square = square_norms(rows)
    square += 1.0
    square[~(square <= _LARGEST_SQUARE)] = np.inf
    return square


class Block:
    """Memory for the passes over some rows, and the clipped contributions they leave behind.

    Rows beyond those asked for, up to a whole tile, are zero and contribute to no sum.

    Attributes:
        rows: how many fit.
        inputs: what entered each layer, a: float64[k, in].
        residuals: what each layer's scores have as residuals, times the row's factor: float64[k, out].
    """

    def __init__(self, model: Model, rows: int) -> None:
        rows = padded(rows)
        self.rows = rows
        self.inputs: list[Array] = []
        self.residuals: list[Array] = []
        self._model = model
        widths = model.widths
        self._X, self._y, self._squares = np.empty((rows, widths[0])), np.empty(rows), np.empty(rows)
        self._above = [np.empty((rows, width)) for width in widths[1:]]
        self._residuals = [np.empty((rows, width)) for width in widths[1:-1]]
        self._slopes = [np.empty((rows, width)) for width in widths[1:-1]]

    def clip(
        self,
        layers: list[tuple[Array, Array]],
        X: Array,
        y: Array,
        squares: Array,
        index: Indices,
        ceiling: float,
    ) -> None:
        """Fill `inputs` and `residuals` for the rows `index`, clipped to `ceiling` (of `deflated`)."""
        count, end = len(index), padded(len(index))
        # mode="clip" lets numpy write straight into the buffer; the indices are in range
        X.take(index, axis=0, out=self._X[:count], mode="clip")
        y.take(index, out=self._y[:count], mode="clip")
        squares.take(index, out=self._squares[:count], mode="clip")
        self._X[count:end] = self._y[count:end] = self._squares[count:end] = 0.0
        norms = self._squares[:end]
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self._forward(layers, self._X[:end])
            self._backward(layers, self._model.head.residual(scores, self._y[:end]))
            norms *= square_norms(self.residuals[0])
            for a, b in zip(self.inputs[1:], self.residuals[1:], strict=True):
                norms += squares_of_inputs(a) * square_norms(b)
            if not norms @ norms < np.inf:  # the quickest look at all of them; NaN compares false
                self._drop(~(norms < np.inf), norms)
        np.maximum(norms, ceiling * ceiling, out=norms)
        np.sqrt(norms, out=norms)
        np.divide(ceiling, norms, out=norms)
        for b in self.residuals:
            b *= norms[:, None]

    def sum(self, begin: int, end: int) -> Array:
        """Return the sum of the contributions of rows begin .. end of the block, float64[d]."""
        total, start = np.empty(self._model.size), 0
        for a, b in zip(self.inputs, self.residuals, strict=True):
            a, b = a[begin:end], b[begin:end]
            inputs, outputs = a.shape[1], b.shape[1]
            middle = start + inputs * outputs
            np.matmul(a.T, b, out=total[start:middle].reshape(inputs, outputs))
            start = middle + outputs
            np.add.reduce(b, axis=0, out=total[middle:start])
        return total

    def _forward(self, layers: list[tuple[Array, Array]], below: Array) -> Array:
        """Fill `inputs`; return the scores [k, out]."""
        self.inputs = [below]
        last = len(layers) - 1
        for at, (weights, biases) in enumerate(layers):
            above = product(below, weights, self._above[at][: len(below)])
            above += biases
            if at < last:
                if self._model.activation == "relu":
                    np.maximum(above, 0.0, out=above)
                else:
                    np.tanh(above, out=above)
                self.inputs.append(above)
            below = above
        return below

    def _backward(self, layers: list[tuple[Array, Array]], residual: Array) -> None:
        """Carry the scores' residual down, keeping each layer's in `residuals`."""
        self.residuals = [residual]
        for at in range(len(layers) - 1, 0, -1):
            hidden = self.inputs[at]
            slopes = self._slopes[at - 1][: len(residual)]
            if self._model.activation == "relu":
                np.greater(hidden, 0.0, out=slopes)
            else:
                np.multiply(hidden, hidden, out=slopes)
                np.subtract(1.0, slopes, out=slopes)
            residual = product(residual, layers[at][0].T, self._residuals[at - 1][: len(residual)])
            residual *= slopes
            self.residuals.insert(0, residual)

    def _drop(self, rows: NDArray[np.bool_], norms: Array) -> None:
        """Let some rows contribute nothing."""
        norms[rows] = 0.0
        for array in (*self.inputs, *self.residuals):
            array[rows] = 0.0
