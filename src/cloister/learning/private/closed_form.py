"""Per-example clipping of fully connected networks in closed form: one forward and one backward pass.

For a layer with input a and residual b = d loss / d (a W + c), an example's gradient is a b^T for the weights
and b for the biases, so its squared norm is (|a|^2 + 1) |b|^2, added up over the layers, without a gradient
of its own ever being formed. In this order, for a block of rows that fits the processor's cache:

1. forward, keeping every layer's input; backward, keeping every layer's residual;
2. squared norms of the examples, from squared norms of inputs and residuals;
3. the factor min(1, clip / norm), computed as clip' / max(norm, clip');
4. residuals are multiplied by it, and a^T (factor b) is the sum of the block's clipped gradients.

**One row, one result.** What is computed for a row - scores, residuals, factor - depends on the row and the
parameters alone, to the last bit. Otherwise taking one row away would change how the matrix products of all
others round, a rectifier could tip over, and any number of microbatches could round to other integers. So
products are done in tiles of `_TILE` rows, the last one padded with zeros: all have one shape. That a tile's
product does not depend on where in it a row stands is checked for each shape before its first use, since
libraries' kernels may treat the rows at an edge of a matrix differently; where the check fails each row is a
product of its own, slower, and right. A microbatch is summed by itself, in blocks counted from its own
first row.

Float bounds (u = 2**-53, gamma_k = k u / (1 - k u), Higham 2002, sections 3.1 and 3.5; any order of a sum,
with or without fused operations):

- A contribution is a (x) fl(factor b), exact on the vectors computed. A dot product of non-negative terms
  of length k has relative error gamma_k at most, so the norm's is below gamma_m, m = largest input + largest
  output + layers + 4; square root, maximum, division and the last product add at most 5 u. clip' = clip (1 -
  (m + 16) 2**-52) is deflated by more than twice that: no contribution exceeds clip.
- The sum over a microbatch of M rows, in blocks of B: each coordinate's error is at most gamma_n times the
  sum of absolute values, n = B + ceil(M / B) + 2; in L2 at most gamma_n M clip. See `float_bound`.

Rows whose squared norm is not finite, or whose inputs' is above 2**400 (where a residual's underflow could
hide a large gradient), contribute nothing, and stop nobody.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array, SoftmaxHead
from cloister.learning.models import Model
from cloister.learning.private.base import check_clip

__all__ = ["NumpyPrivate", "PreparedRows"]

Indices = NDArray[np.int64]

_BLOCK_BYTES = 1 << 20
_MOST_ROWS = 4096
_TILE = 24  # rows; a multiple of what common kernels take at once, and as fast as one large product
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
        rows = min(_MOST_ROWS, _BLOCK_BYTES // (8 * (widths[0] + 3 * sum(widths[1:]))))
        return max(1, rows // _TILE) * _TILE

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
        block, edges = self._block, [0]
        edges += [end for begin, end in pairwise(starts.tolist()) if begin < end]
        group = 0
        while group < len(edges) - 1:
            begin = edges[group]
            whole = group + 1  # groups group .. whole go through the block together
            while whole < len(edges) - 1 and edges[whole + 1] - begin <= block.rows:
                whole += 1
            if edges[whole] - begin > block.rows:  # a single one
                yield self._long_sum(layers, index[begin : edges[whole]], ceiling)
            else:
                block.clip(layers, self._X, self._y, self._squares, index[begin : edges[whole]], ceiling)
                for at in range(group, whole):
                    yield block.sum(edges[at] - begin, edges[at + 1] - begin)
            group = whole

    def _long_sum(self, layers: list[tuple[Array, Array]], index: Indices, ceiling: float) -> Array:
        block = self._block
        total = np.zeros(self._model.size)
        for at in range(0, len(index), block.rows):
            some = index[at : at + block.rows]
            block.clip(layers, self._X, self._y, self._squares, some, ceiling)
            total += block.sum(0, len(some))
        return total


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


class Block:
    """Memory for the passes over some rows, and the clipped contributions they leave behind.

    Rows beyond those asked for, up to a whole tile, are zero and contribute to no sum.

    Attributes:
        rows: how many fit.
        inputs: what entered each layer, a: float64[k, in].
        residuals: what each layer's scores have as residuals, times the row's factor: float64[k, out].
    """

    def __init__(self, model: Model, rows: int) -> None:
        rows = -(-rows // _TILE) * _TILE
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
        count, padded = len(index), -(-len(index) // _TILE) * _TILE
        # mode="clip" lets numpy write straight into the buffer; the indices are in range
        X.take(index, axis=0, out=self._X[:count], mode="clip")
        y.take(index, out=self._y[:count], mode="clip")
        squares.take(index, out=self._squares[:count], mode="clip")
        self._X[count:padded] = self._y[count:padded] = self._squares[count:padded] = 0.0
        norms = self._squares[:padded]
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self._forward(layers, self._X[:padded])
            self._backward(layers, self._model.head.residual(scores, self._y[:padded]))
            norms *= _square(self.residuals[0])
            for a, b in zip(self.inputs[1:], self.residuals[1:], strict=True):
                norms += _hidden_square(a) * _square(b)
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
            above = _product(below, weights, self._above[at][: len(below)])
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
            residual = _product(residual, layers[at][0].T, self._residuals[at - 1][: len(residual)])
            residual *= slopes
            self.residuals.insert(0, residual)

    def _drop(self, rows: NDArray[np.bool_], norms: Array) -> None:
        """Let some rows contribute nothing."""
        norms[rows] = 0.0
        for array in (*self.inputs, *self.residuals):
            array[rows] = 0.0


def _product(rows: Array, matrix: Array, out: Array) -> Array:
    """Return rows [k, in] times matrix [in, out], each row's result the same bits in whatever company."""
    inputs, outputs = matrix.shape
    if inputs == 1:
        np.multiply(rows, matrix, out=out)
    else:
        tile = _TILE if slots_agree(inputs, outputs, matrix.flags.c_contiguous) else 1
        np.matmul(rows.reshape(-1, tile, inputs), matrix, out=out.reshape(-1, tile, outputs))
    return out


@functools.cache
def slots_agree(inputs: int, outputs: int, contiguous: bool) -> bool:
    """Return whether a row's product is the same wherever in a tile it stands, tried on some rows."""
    random = StreamRandom.from_seed(0, "slots of a tile")
    matrix = random.uniform((inputs, outputs)) - 0.5
    if not contiguous:
        matrix = np.ascontiguousarray(matrix.T).T
    rows = np.repeat(random.uniform((8, 1, inputs)) - 0.5, _TILE, axis=1)
    result = np.matmul(rows, matrix)
    return bool((result == result[:, :1]).all())


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
