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

**One row, one result.** What is computed for a row depends on the row and the parameters alone, to the last
bit: were it otherwise, taking one row away would change how all others round, and a rectifier of any of
them could tip over. `probe` tests on every module, bit by bit, that the content of other rows changes
nothing; `interchangeable` finds, for the number of threads in use, sizes of blocks among which it does not
matter how large the block is and where in it a row stands. Blocks have those sizes alone, missing rows made
up by zeros; where there are none, every row goes alone. A group's sum depends on its own rows alone, too: it
is cut into blocks from its own first row.

Memory depends neither on the number of rows nor on the size of a group; nothing of a parameter's size is kept
per row beyond a block.

The module runs in evaluation mode: dropout does nothing. It gets float32 (b, *shape) and returns (b, k) or
(b,); reshaping and conversion to integers are its own business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloister.errors import InputError
from cloister.learning.heads import Array, Head
from cloister.learning.learner import WholeVector
from cloister.learning.private import check_clip
from cloister.learning.torch.bookkeeping import Block, Bookkeeping
from cloister.learning.torch.flat import Flat
from cloister.learning.torch.forms import Form
from cloister.learning.torch.layers import check_layers
from cloister.learning.torch.packing import packed
from cloister.learning.torch.samples import ZerosAndOnes
from cloister.learning.torch.start import build_module
from cloister.learning.torch.terms import CANCELLATION

__all__ = ["TorchPrivate"]

_BLOCK_BYTES: Final = 64 << 20
_LARGEST_BYTES: Final = 1 << 30
_BLOCKS: Final = (256, 192, 128, 96, 64, 48, 32, 16)
"""Rows of a block; kernels rarely treat the rows of smaller ones alike."""

_SMALL: Final = (8, 4, 2)


def _candidates(bytes_of_row: int) -> list[int]:
    """Return sizes of blocks that fit the memory meant for them, descending; none if only single rows do."""
    usual = [rows for rows in _BLOCKS if rows * bytes_of_row <= _BLOCK_BYTES]
    if not usual and _BLOCKS[-1] * bytes_of_row <= _LARGEST_BYTES:
        return [_BLOCKS[-1]]
    return usual or [rows for rows in _SMALL if rows * bytes_of_row <= _LARGEST_BYTES]


class TorchPrivate(WholeVector):
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
        if self._flat.device.type != "cpu":
            raise InputError("a module's parameters must be on the CPU", fix="Build it there")
        self._start = self._flat.read()
        self._books = Bookkeeping(self.module, self._flat, check_layers(self.module))
        samples = ZerosAndOnes(self.shape, classes, self._flat.dtype)
        self._form = Form(self._books, self._flat, samples, _candidates)
        self._found = self._form.found

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

        A sum of M rows is made in at most M pieces, each of at most B rows with T positions. With
        n = B T + M + 4 it errs by at most gamma_n C M clip (`terms`); C is `CANCELLATION` where positions are
        added up in the weighted sum, else C = T = 1. Twice that, and 2 u M for the factor K / clip and its
        product, is below (n + 4) C M 2**-52. All of it follows from the module, none of it from a machine.
        """
        positions = self._found.positions
        terms = min(self._form.most_rows, microbatch) * max(1, positions) + microbatch + 8
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
        for at in range(0, len(X), self._form.most_rows):
            some = slice(at, at + self._form.most_rows)
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
        sizes = self._form.sizes()
        total: Tensor | None = None
        for pieces in packed(starts, sizes[-1]):
            at, end = pieces[0].begin, pieces[-1].end
            rows = next(size for size in sizes if size >= end - at)
            block: Block | None = None
            for piece in pieces:
                if not self._flat.holds(sign):
                    raise InputError(
                        "the module was used for something else before all its sums were taken",
                        fix="Take them first, or make a second model",
                    )
                if block is None:
                    block = self._block(X[at:end], labels[at:end], rows)
                    block.clip(clip)
                if total is None:
                    total = torch.zeros(self.size, dtype=torch.float64)
                block.add_into(total, slice(piece.begin - at, piece.end - at))
                if piece.last:
                    yield total.numpy()
                    total = None

    def _block(self, some: NDArray[Any], labels: Array, rows: int) -> Block:
        """Return the block of some rows, made up to `rows`."""
        X = torch.zeros((rows, *self.shape), dtype=self._flat.dtype)
        self._fill(X[: len(some)], some)
        return self._form.block(X, labels)

    def _scores(self, params: Array, X: NDArray[Any]) -> Tensor:
        self._check_rows(X)
        self._flat.write(params)
        read = self._found.scores.read
        parts = [torch.empty((0, self.head.outputs))]
        with torch.no_grad():
            starts = range(0, len(X), self._form.most_rows)
            parts += [read(self.module(self._tensor(X[at : at + self._form.most_rows]))) for at in starts]
        return torch.cat(parts)

    def _tensor(self, rows: NDArray[Any]) -> Tensor:
        tensor = torch.empty(rows.shape, dtype=self._flat.dtype)
        self._fill(tensor, rows)
        return tensor

    @staticmethod
    def _fill(tensor: Tensor, rows: NDArray[Any]) -> None:
        """Write rows, which may be read-only, in the tensor's own type; what overflows becomes infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            tensor.numpy()[...] = rows

    def _check_rows(self, X: NDArray[Any]) -> None:
        if X.shape[1:] != self.shape:
            raise InputError(
                f"the model takes rows of shape {self.shape} and rows of shape {X.shape[1:]} were given",
                fix="Use the features of this plan",
            )

    def _checked(self, X: NDArray[Any], y: Array) -> Array:
        self._check_rows(X)
        return self._found.scores.check_labels(y, len(X))
