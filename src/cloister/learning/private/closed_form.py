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
products are those of `tiles`, the last tile padded with zeros, and a microbatch is summed by itself, in
blocks counted from its own first row.

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

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Array, SoftmaxHead
from cloister.learning.models import Model
from cloister.learning.private.blocks import Block, Indices, deflated, layer_views, squares_of_inputs
from cloister.learning.private.tiles import TILE

__all__ = ["NumpyPrivate", "PreparedRows"]

_BLOCK_BYTES = 1 << 20
_MOST_ROWS = 4096


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
        return max(1, rows // TILE) * TILE

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
            self._squares = squares_of_inputs(X)
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
