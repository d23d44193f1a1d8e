"""Per-example clipping of fully connected networks in closed form: one forward and one backward pass.

For a layer with input a and residual b = d loss / d (a W + c), an example's gradient is a b^T for the weights
and b for the biases, so its squared norm is (|a|^2 + 1) |b|^2, added up over the layers, without a gradient
of its own ever being formed. In this order, for a block of rows that fits the processor's cache:

1. forward, keeping every layer's input; backward, keeping every layer's residual;
2. squared norms of the examples, from squared norms of inputs and residuals;
3. the factor min(1, clip / norm), computed as clip' / max(norm, clip');
4. residuals are multiplied by it, and a^T (factor b) is the sum of the block's clipped gradients.

Float bounds (u = 2**-53, gamma_k = k u / (1 - k u), Higham 2002, sections 3.1 and 3.5; any order of a sum,
with or without fused operations):

- A contribution is a (x) fl(factor b), exact on the vectors computed. A dot product of non-negative terms
  of length k has relative error gamma_k at most, so the norm's is below gamma_m, m = largest input + largest
  output + layers + 4; square root, maximum, division and the last product add at most 5 u. clip' = clip (1 -
  (m + 16) 2**-52) is deflated by more than twice that: no contribution exceeds clip.
- The sum over a microbatch of M rows, in blocks of B: each coordinate's error is at most gamma_n times the
  sum of absolute values, n = B + ceil(M / B) + 2; in L2 at most gamma_n M clip. See `float_bound`.

Rows whose squared norm is not finite, or whose inputs' is above 2**400 (where a residual's underflow could
hide a large gradient), contribute nothing. A row never stops the others, and never changes what is computed
for them: a matrix product's row depends on that row and on shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Array, SoftmaxHead
from cloister.learning.models import Model
from cloister.learning.private.base import check_clip

__all__ = ["NumpyPrivate", "PreparedRows"]

Indices = NDArray[np.int64]

_BLOCK_BYTES = 1 << 20
_MOST_ROWS = 4096
_LARGEST_SQUARE = 2.0**400


@dataclass(frozen=True)
class NumpyPrivate:
    """A model over tables as a `PrivateModel`; see the module's docstring.

    Args:
        model: linear, logistic, softmax or multilayer perceptron.
    """

    model: Model

    @property
    def size(self) -> int:
        """Number of parameters, d."""
        return self.model.size

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: weights, not biases; bool[d]."""
        return self.model.penalised

    @cached_property
    def block_rows(self) -> int:
        """How many rows are worked on at once, B; the same on every machine."""
        widths = self.model.widths
        return max(16, min(_MOST_ROWS, _BLOCK_BYTES // (8 * (widths[0] + 3 * sum(widths[1:])))))

    def clipped_sums(
        self, params: Array, X: Array, y: Array, clip: float, microbatch: int
    ) -> Iterator[Array]:
        """Yield the sum of clipped gradients of each `microbatch` consecutive rows; as `PrivateModel` says.

        Raises:
            InputError: a shape does not fit the model, the clip is out of range, or a softmax model's label
                is no class.
        """
        if microbatch < 1:
            raise InputError("a microbatch has at least one row", fix="Give 1 or more")
        starts = np.append(np.arange(0, len(y), microbatch), len(y))
        return PreparedRows(self, X, y).sums(params, np.arange(len(y)), starts, clip)

    def float_bound(self, microbatch: int) -> float:
        """Return the float error of one microbatch's sum, relative to `clip`, for both neighbours.

        2 M gamma_n for the sums of both, n as in the module's docstring, and 2 M (2 u) for the rounding of
        the factor K / clip and of the product with it; stated as M (n + 4) 2**-52, which is more.
        """
        block = min(self.block_rows, microbatch)
        return microbatch * (block + math.ceil(microbatch / block) + 6) * 2.0**-52


class PreparedRows:
    """Rows for many steps: what depends on them alone is computed once. They must not change afterwards.

    One thread at a time: memory is used again.

    Args:
        private: the model.
        X: float64[n, f].
        y: float64[n].

    Raises:
        InputError: X or y does not fit the model, or a softmax model's label is no class.
    """

    def __init__(self, private: NumpyPrivate, X: Array, y: Array) -> None:
        model = private.model
        if X.ndim != 2 or X.shape[1] != model.inputs or y.shape != (len(X),):
            raise InputError(
                f"the model takes rows of {model.inputs} features and one label each",
                fix="Use the feature map of this plan",
            )
        if isinstance(model.head, SoftmaxHead) and not np.isin(y, np.arange(model.head.classes)).all():
            raise InputError(
                f"a label is not one of the classes 0 to {model.head.classes - 1}",
                fix="Check the plan's classes",
            )
        self._model, self._X, self._y = model, X, y
        with np.errstate(over="ignore", invalid="ignore"):
            self._squares = _square(X) + 1.0  # |x|^2, and 1 for the biases
            self._squares[~(self._squares <= _LARGEST_SQUARE)] = np.inf
        self._block = Block(model, min(private.block_rows, len(X)))

    def sums(self, params: Array, index: Indices, starts: Indices, clip: float) -> Iterator[Array]:
        """Return, for each non-empty group of chosen rows, the sum of their clipped gradients.

        Args:
            params: float64[d].
            index: int64[k], the rows chosen, group after group.
            starts: int64[g + 1], ascending from 0 to k: group j is index[starts[j] : starts[j + 1]].
            clip: L2 norm a row's gradient may have.

        Yields:
            float64[d]; new memory each time.

        Raises:
            InputError: the parameters do not fit the model, or the clip is out of range.
        """
        if params.shape != (self._model.size,):
            raise InputError(f"the model has {self._model.size} parameters and {params.size} were given")
        return self._sums(layer_views(self._model, params), index, starts, deflated(self._model, clip))

    def _sums(
        self, layers: list[tuple[Array, Array]], index: Indices, starts: Indices, ceiling: float
    ) -> Iterator[Array]:
        block = self._block
        at = filled = begin = 0  # the block holds rows at .. at + filled; rows before `begin` are summed
        for end in starts[1:].tolist():
            if begin == end:
                continue
            total = np.empty(self._model.size)
            fresh = True
            while begin < end:
                if begin == at + filled:
                    at, filled = begin, min(len(index) - begin, block.rows)
                    block.clip(layers, self._X, self._y, self._squares, index[at : at + filled], ceiling)
                until = min(end, at + filled)
                if fresh:
                    block.sum_into(total, begin - at, until - at)
                else:
                    part = np.empty_like(total)
                    block.sum_into(part, begin - at, until - at)
                    total += part
                begin, fresh = until, False
            yield total


def deflated(model: Model, clip: float) -> float:
    """Return clip', by which factors are computed so that no contribution exceeds `clip`."""
    terms = max(model.widths[:-1]) + max(model.widths[1:]) + len(model.widths) + 3
    return check_clip(clip) * (1.0 - (terms + 16) * 2.0**-52)


def layer_views(model: Model, vector: Array) -> list[tuple[Array, Array]]:
    """Return (weights [in, out], biases [out]) of each layer as views of a flat vector [d]."""
    views, start = [], 0
    for inputs, outputs in zip(model.widths[:-1], model.widths[1:], strict=True):
        middle = start + inputs * outputs
        views.append((vector[start:middle].reshape(inputs, outputs), vector[middle : middle + outputs]))
        start = middle + outputs
    return views


class Block:
    """Memory for the passes over some rows, and the clipped contributions they leave behind.

    Attributes:
        rows: how many fit.
        inputs: what entered each layer, a: float64[k, in].
        residuals: what each layer's scores have as residuals, times the row's factor: float64[k, out].
    """

    def __init__(self, model: Model, rows: int) -> None:
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
        count = len(index)
        # mode="clip" lets numpy write straight into the buffer; the indices are in range
        below = X.take(index, axis=0, out=self._X[:count], mode="clip")
        labels = y.take(index, out=self._y[:count], mode="clip")
        norms = squares.take(index, out=self._squares[:count], mode="clip")
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self._forward(layers, below, count)
            self._backward(layers, self._model.head.residual(scores, labels))
            norms *= _square(self.residuals[0])
            for a, b in zip(self.inputs[1:], self.residuals[1:], strict=True):
                norms += _hidden_square(a) * _square(b)
        if not np.maximum.reduce(norms) < np.inf:  # NaN compares false
            self._drop(~(norms < np.inf), norms)
        np.maximum(norms, ceiling * ceiling, out=norms)
        np.sqrt(norms, out=norms)
        np.divide(ceiling, norms, out=norms)
        for b in self.residuals:
            b *= norms[:, None]

    def sum_into(self, out: Array, begin: int, end: int) -> None:
        """Write the sum of the contributions of rows begin .. end of the block into float64[d]."""
        start = 0
        for a, b in zip(self.inputs, self.residuals, strict=True):
            a, b = a[begin:end], b[begin:end]
            inputs, outputs = a.shape[1], b.shape[1]
            middle = start + inputs * outputs
            np.matmul(a.T, b, out=out[start:middle].reshape(inputs, outputs))
            start = middle + outputs
            np.add.reduce(b, axis=0, out=out[middle:start])

    def _forward(self, layers: list[tuple[Array, Array]], below: Array, count: int) -> Array:
        """Fill `inputs`; return the scores [k, out]."""
        self.inputs = [below]
        last = len(layers) - 1
        for at, (weights, biases) in enumerate(layers):
            above = np.matmul(below, weights, out=self._above[at][:count])
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
            residual = np.matmul(residual, layers[at][0].T, out=self._residuals[at - 1][: len(residual)])
            residual *= slopes
            self.residuals.insert(0, residual)

    def _drop(self, rows: NDArray[np.bool_], norms: Array) -> None:
        """Let some rows contribute nothing."""
        norms[rows] = 0.0
        for array in (*self.inputs, *self.residuals):
            array[rows] = 0.0


def _square(rows: Array) -> Array:
    """Return |row|^2 of each row, new memory."""
    if rows.shape[1] == 1:
        flat = rows[:, 0]
        return flat * flat
    square: Array = np.vecdot(rows, rows)
    return square


def _hidden_square(rows: Array) -> Array:
    """Return |a|^2 + 1 of each row of hidden activations; infinity where it is too large to trust."""
    square = _square(rows)
    square += 1.0
    square[square > _LARGEST_SQUARE] = np.inf
    return square
