"""A torch module as a `PrivateModel`: per-example clipping by book-keeping.

For a block of rows, in this order (Bu et al. 2023, "Differentially private optimization on large model at
small cost"):

1. forward, recording what enters each layer with trainable parameters;
2. the derivative of each row's own loss by the scores, in closed form (`learning.heads`), and one backward
   pass from there to the layers' outputs. No parameter's gradient is computed in it;
3. for each parameter a term (`terms`): squared norms of the rows' gradients, added up over the parameters;
4. the factor min(1, clip' / norm), clip' deflated by the norm's float error. A row whose gradient is not
   finite is cleared and contributes nothing;
5. the terms' weighted sums, in float64, for each group of rows that is asked for.

The block is chosen from the layers' sizes, so that memory depends neither on the number of rows nor on the
size of a group; nothing of a parameter's size is kept per row beyond a block.

What it relies on: what torch computes for one row depends on that row, on the parameters and on shapes alone.
`probe` tests that on every module, bit by bit, together with the gradients themselves. Two neighbouring
datasets sample the same rows, so shapes are the same.

The module runs in evaluation mode: dropout does nothing. It gets float32 (b, *shape) and returns (b, k) or
(b,); reshaping and conversion to integers are its own business.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloister.errors import InputError
from cloister.learning.heads import Array, Head
from cloister.learning.private import check_clip
from cloister.learning.torch.bookkeeping import Block, Bookkeeping
from cloister.learning.torch.flat import Flat
from cloister.learning.torch.layers import check_layers
from cloister.learning.torch.probe import probe
from cloister.learning.torch.start import build_module
from cloister.learning.torch.terms import CANCELLATION

__all__ = ["TorchPrivate"]

_BLOCK_BYTES: Final = 48 << 20
_MOST_ROWS: Final = 128


class TorchPrivate:
    """A torch module whose examples' gradients are clipped one by one.

    Args:
        factory: makes the module; called once, its random numbers taken from `seed`.
        classes: of the label; 0 for a number.
        shape: of one row: the number of features, or a tuple.
        seed: of the module's start, public.

    Raises:
        InputError: a layer whose per-example gradients are not known, a module that mixes examples, or one
            that does not fit rows or labels.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        *,
        classes: int,
        shape: int | tuple[int, ...],
        seed: int = 0,
    ) -> None:
        self._factory, self._seed = factory, seed
        self.module = build_module(factory, seed).eval()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self._flat = Flat(self.module)
        self._start = self._flat.read()
        self._books = Bookkeeping(self.module, self._flat, check_layers(self.module))
        self._found = probe(self._books, self._flat, classes=classes, shape=self.shape)
        bytes_of_row = self._found.floats * self._flat.dtype.itemsize
        self.block_rows = max(1, min(_MOST_ROWS, _BLOCK_BYTES // max(1, bytes_of_row)))
        """Rows that are worked on at once; it follows from the module alone."""

    @property
    def size(self) -> int:
        """Number of trainable parameters, d."""
        return self._flat.size

    @property
    def inputs(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)

    @property
    def head(self) -> Head:
        """Loss and prediction."""
        return self._found.scores.head

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: those with two axes or more; bool[d]."""
        return self._flat.penalised

    @property
    def fixed_digest(self) -> str:
        """SHA-256, in hex, of frozen parameters and buffers: what all parties must have alike."""
        return self._flat.fixed_digest()

    def initial(self, seed: int) -> Array:
        """Return the start that `seed` determines, float64[d].

        Raises:
            InputError: with this seed the frozen part would be another; make the model with it.
        """
        if seed == self._seed:
            return self._start.copy()
        other = Flat(build_module(self._factory, seed))
        if other.slices != self._flat.slices or other.fixed_digest() != self._flat.fixed_digest():
            raise InputError(
                "another seed changes what is not trained", fix="Give the model this seed when it is made"
            )
        return other.read()

    def clipped_sums(
        self, params: Array, X: NDArray[Any], y: Array, clip: float, microbatch: int
    ) -> Iterator[Array]:
        """Yield the sum of clipped gradients of each `microbatch` consecutive rows; as `PrivateModel` says.

        Args:
            params: float64[d].
            X: [b, *shape].
            y: float64[b].
            clip: L2 norm of an example's gradient at most.
            microbatch: rows of one sum; memory does not grow with it.

        Yields:
            float64[d], ceil(b / microbatch) times, in memory of its own.

        Raises:
            InputError: a shape, a label or a number does not fit.
        """
        if microbatch < 1:
            raise InputError("a microbatch has at least one row", fix="Give 1 or more")
        return self.group_sums(params, X, y, [*range(0, len(X), microbatch), len(X)], clip)

    def group_sums(
        self, params: Array, X: NDArray[Any], y: Array, starts: Sequence[int], clip: float
    ) -> Iterator[Array]:
        """Yield the sum of clipped gradients of each group of consecutive rows that is not empty.

        Args:
            params: float64[d].
            X: [b, *shape].
            y: float64[b].
            starts: ascending from 0 to b; group j is rows starts[j] to starts[j + 1].
            clip: L2 norm of an example's gradient at most.

        Yields:
            float64[d], in memory of its own.

        Raises:
            InputError: as `clipped_sums`.
        """
        check_clip(clip)
        if len(starts) == 0 or starts[0] != 0 or starts[-1] != len(X):
            raise InputError("groups of rows must begin at 0 and end with the rows", fix="Correct starts")
        labels = self._checked(X, y)
        return self._group_sums(self._flat.write(params), X, labels, starts, clip)

    def float_bound(self, microbatch: int) -> float:
        """Return the float error of one microbatch's sum, relative to `clip`, for both neighbours.

        With B rows of T positions in a block and n = B T + M / B + 4, one sum errs by at most gamma_n C M
        clip (`terms`); C is `CANCELLATION` where positions are added up in the weighted sum, else C = T = 1.
        Twice that, and 2 u M for the factor K / clip and its product, is below (n + 4) C M 2**-52.
        """
        rows = min(self.block_rows, microbatch)
        positions = self._found.positions
        terms = rows * max(1, positions) + math.ceil(microbatch / rows) + 8
        return terms * microbatch * (CANCELLATION if positions else 1.0) * 2.0**-52

    def predict(self, params: Array, X: NDArray[Any]) -> Array:
        """Return float64[n] values or probabilities of class 1; float64[n, classes] for more classes.

        Raises:
            InputError: a shape does not fit.
        """
        return self._found.scores.prediction(self._scores(params, X))

    def losses(self, params: Array, X: NDArray[Any], y: Array) -> Array:
        """Return each row's loss, float64[n]. Raises as `predict`, or for a label that is no class."""
        return self._found.scores.losses(self._scores(params, X), self._checked(X, y))

    def gradient(self, params: Array, X: NDArray[Any], y: Array) -> Array:
        """Return the mean gradient of the rows' losses, float64[d], unclipped. Raises as `losses`."""
        labels = self._checked(X, y)
        self._flat.write(params)
        total = torch.zeros(self.size, dtype=torch.float64)
        for at in range(0, len(X), self.block_rows):
            some = slice(at, at + self.block_rows)
            output, _ = self._books.forward(self._tensor(X[some]))
            scores = self._found.scores.read(output)
            residuals = self._found.scores.residuals(scores, labels[some])
            parameters = list(self._flat.parameters.values())
            found = torch.autograd.grad(scores, parameters, grad_outputs=residuals, allow_unused=True)
            for where, each in zip(self._flat.slices.values(), found, strict=True):
                if each is not None:
                    total[where] += each.to_dense().reshape(-1)
        mean: Array = total.numpy() / max(1, len(X))
        return mean

    def _group_sums(
        self, sign: object, X: NDArray[Any], labels: Array, starts: Sequence[int], clip: float
    ) -> Iterator[Array]:
        at = end = 0
        for first, stop in itertools.pairwise(starts):
            if first == stop:
                continue
            begin, total = first, torch.zeros(self.size, dtype=torch.float64)
            while begin < stop:
                if not self._flat.holds(sign):
                    raise InputError(
                        "the module was used for something else before all its sums were taken",
                        fix="Take them first, or make a second model",
                    )
                if begin == end:
                    at, end = end, min(end + self.block_rows, len(labels))
                    block = self._block(X[at:end], labels[at:end])
                    block.clip(clip)
                until = min(end, stop)
                block.add_into(total, slice(begin - at, until - at))
                begin = until
            yield total.numpy()

    def _block(self, rows: NDArray[Any], labels: Array) -> Block:
        found = self._found
        calls, residuals = self._books.passes(self._tensor(rows), labels, found.scores, found.layouts)
        return self._books.block(calls, residuals, found.layouts)

    def _scores(self, params: Array, X: NDArray[Any]) -> Tensor:
        self._check_rows(X)
        self._flat.write(params)
        read = self._found.scores.read
        parts = [torch.empty((0, self.head.outputs))]
        with torch.no_grad():
            starts = range(0, len(X), _MOST_ROWS)
            parts += [read(self.module(self._tensor(X[at : at + _MOST_ROWS]))) for at in starts]
        return torch.cat(parts)

    def _tensor(self, rows: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self._flat.dtype)

    def _check_rows(self, X: NDArray[Any]) -> None:
        if X.shape[1:] != self.shape:
            raise InputError(
                f"the model takes rows of shape {self.shape} and rows of shape {X.shape[1:]} were given",
                fix="Use the features of this plan",
            )

    def _checked(self, X: NDArray[Any], y: Array) -> Array:
        self._check_rows(X)
        return self._found.scores.check_labels(y, len(X))
