"""What a layer's recorded floats say about one parameter: norms of examples' gradients, and weighted sums.

A term holds, for n examples, enough to know each example's gradient by one parameter. Used in this order:

1. `combine` adds up the uses of a parameter and settles the term: what can be prepared once is;
2. `squares()`: for each example a float64 that is not below the squared L2 norm of its contribution;
3. `clear(rows)`: examples that are to contribute nothing. Multiplying by 0 would not do: infinity times 0 is
   not 0;
4. `add_into(total, factors, rows)`: add factor times contribution over some rows, in float64.

Which vector is "the contribution" is a matter of definition, and each term defines its own out of floats that
no other example had a part in. From there on everything is float64, so that what remains to be bounded is
tiny. With u = 2**-53, gamma_k = k u / (1 - k u) (Higham 2002, section 3.1; any order of summation) and factor
times norm at most `clip`:

- `Dense`: the contribution is the gradient as computed, a float vector of the parameter's size. Its norm
  comes from the floats as they are, raised by what that may lose (`_squares`; 0.013 % of the norm at most);
  the sum over m rows errs by gamma_(m+1) times the sum of the norms.
- `Outer`, one position: b a^T of the two float vectors, exactly; |a|^2 |b|^2 is its squared norm.
- `Outer`, T positions: formed as a `Dense` where that is cheap. Otherwise sum_t b_t a_t^T, exactly; its norm
  comes from T x T Gram matrices (Goodfellow 2015; Li et al. 2022; Bu et al. 2023), whose error is gamma A^2
  with A = sum_t |a_t| |b_t|, which may exceed the norm by far where positions cancel. So gamma A^2 is added
  to the square, and the square is never taken below (A / `CANCELLATION`)^2: then factor times A is at most
  `CANCELLATION` times clip, and the sum errs by gamma_(m T) `CANCELLATION` m clip.
- `Lookup`: rows of a table, each example's entries for one row of the table added up beforehand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from cloister.errors import InputError
from cloister.learning.private.ladder import CANCELLATION
from cloister.learning.torch.arena import Arena

__all__ = ["CANCELLATION", "Dense", "Lookup", "Outer", "Term", "combine"]

_CACHED: Final = 1 << 18  # float64 numbers that a core's own cache holds
_LAUNCHED: Final = 1 << 27  # as many as a GPU takes in one launch, which costs more than the cache would save
_LARGEST_FORMED: Final = 1 << 22
_NARROW: Final = 4096
_U: Final = 2.0**-53


class Term(Protocol):
    """Gradients of n examples by one parameter."""

    def settle(self, arena: Arena) -> int:
        """Prepare what the other methods need; return the floats held for each example."""

    def squares(self) -> Tensor:
        """Return float64[n], not below the contributions' squared norms but for a relative 2**-23."""

    def clear(self, rows: Tensor) -> None:
        """Make the contributions of some rows zero; bool[n]."""

    def add_into(self, total: Tensor, factors: Tensor, rows: slice, arena: Arena) -> None:
        """Add factor times contribution, summed over `rows`, to `total` (float64, the parameter, flat)."""

    def dense(self) -> Tensor:
        """Return the contributions as [n, entries], in the layer's own precision."""

    def numbers(self) -> Tensor:
        """Return [n, k]: what each example's contribution is made of."""


class Dense:
    """Gradients that were computed one by one.

    Args:
        gradients: [n, entries].
        squares: their squared norms in float64, where they were computed along the way.
    """

    def __init__(self, gradients: Tensor, squares: Tensor | None = None) -> None:
        self.gradients, self._squares = gradients, squares

    @classmethod
    def form(
        cls,
        shape: tuple[int, int],
        dtype: torch.dtype,
        part: Callable[[slice, Tensor], object],
        arena: Arena,
        *,
        floats: int,
    ) -> Dense:
        """Return gradients [n, entries] that `part(rows, into)` writes for a few examples at a time.

        Args:
            shape: n and entries.
            dtype: of the gradients.
            part: writes the gradients of some examples.
            arena: for memory.
            floats: numbers that `part` handles for one example. So many examples are taken together that
                these, and the gradients whose norms are taken, stay in the processor's cache.
        """
        gradients = arena.take(shape, dtype)
        squares = torch.empty(shape[0], dtype=torch.float64, device=gradients.device)
        for rows in _pieces(slice(0, shape[0]), floats + shape[1], gradients.device):
            part(rows, gradients[rows])
            squares[rows] = _squares(gradients[rows])
        return cls(gradients, squares)

    def settle(self, arena: Arena) -> int:
        """Nothing is to be done."""
        return self.gradients.shape[1]

    def squares(self) -> Tensor:
        """Return the squared norms, float64[n]."""
        return _squares(self.gradients) if self._squares is None else self._squares

    def clear(self, rows: Tensor) -> None:
        """Make some rows zero."""
        self.gradients = self.gradients.masked_fill(rows[:, None], 0.0)

    def add_into(self, total: Tensor, factors: Tensor, rows: slice, arena: Arena) -> None:
        """Add the weighted sum over `rows`."""
        for some in _pieces(rows, self.gradients.shape[1], self.gradients.device):
            with _widened(self.gradients[some], arena) as wide:
                total.addmv_(wide.t(), factors[some])

    def dense(self) -> Tensor:
        """Return the gradients."""
        return self.gradients

    def numbers(self) -> Tensor:
        """Return the gradients."""
        return self.gradients


class Outer:
    """Sums over positions of outer products: weights of linear and convolutional layers.

    Args:
        inputs: [n, g, T, q], what entered each of g independent groups at each position, a.
        residuals: [n, g, T, p], the derivative of the example's loss by what came out, b.
    """

    def __init__(self, inputs: Tensor, residuals: Tensor) -> None:
        self.inputs, self.residuals = inputs, residuals
        self._formed: Dense | None = None

    @property
    def unformed(self) -> bool:
        """Whether several positions are added up only in the weighted sum."""
        return self._formed is None and self.inputs.shape[2] > 1

    def settle(self, arena: Arena) -> int:
        """Form the gradients where that is cheaper than Gram matrices in float64 and not too large."""
        count, groups, positions, inputs = self.inputs.shape
        outputs = self.residuals.shape[3]
        entries, held = groups * inputs * outputs, groups * positions * (inputs + outputs)
        if Outer.is_formed(groups, positions, inputs, outputs):
            shape = (count, entries)
            self._formed = Dense.form(shape, self.inputs.dtype, self.write, arena, floats=held)
            return held + entries
        return held + (groups * positions * positions if positions > 1 else 0)

    @staticmethod
    def is_formed(groups: int, positions: int, inputs: int, outputs: int) -> bool:
        """Whether gradients are formed: not for one position, nor where Gram matrices are cheaper."""
        cheaper = inputs * outputs <= 2 * positions * (inputs + outputs)
        return positions > 1 and cheaper and groups * inputs * outputs <= _LARGEST_FORMED

    def squares(self) -> Tensor:
        """Return the squared norms, float64[n], with what Gram matrices may have lost added."""
        if self._formed is not None:
            return self._formed.squares()
        norms = _lengths(self.inputs) * _lengths(self.residuals)
        positions, inputs, outputs = self.inputs.shape[2], self.inputs.shape[3], self.residuals.shape[3]
        if positions == 1:
            return norms.square().sum((1, 2))
        gram = _gram(self.inputs).mul_(_gram(self.residuals)).sum((1, 2, 3))
        most = norms.sum((1, 2)).square()
        lost = (inputs + outputs + positions * positions + 8) * 2.0 * _U
        return torch.maximum(gram.clamp_(min=0.0) + lost * most, most * CANCELLATION**-2)

    def clear(self, rows: Tensor) -> None:
        """Make some rows zero."""
        mask = rows[:, None, None, None]
        self.inputs = self.inputs.masked_fill(mask, 0.0)
        self.residuals = self.residuals.masked_fill(mask, 0.0)
        if self._formed is not None:
            self._formed.clear(rows)

    def add_into(self, total: Tensor, factors: Tensor, rows: slice, arena: Arena) -> None:
        """Add the weighted sum over `rows`: one matrix product for each group."""
        if self._formed is not None:
            self._formed.add_into(total, factors, rows, arena)
            return
        groups, outputs, inputs = self.residuals.shape[1], self.residuals.shape[3], self.inputs.shape[3]
        into = total.view(groups, outputs, inputs)
        for group in range(groups):
            weighted = self.residuals[rows, group].double() * factors[rows, None, None]
            below = self.inputs[rows, group].double()
            into[group].addmm_(weighted.reshape(-1, outputs).t(), below.reshape(-1, inputs))

    def dense(self) -> Tensor:
        """Return the gradients, [n, g p q]."""
        groups, outputs, inputs = self.residuals.shape[1], self.residuals.shape[3], self.inputs.shape[3]
        gradients = self.inputs.new_empty((len(self.inputs), groups * outputs * inputs))
        self.write(slice(None), gradients)
        return gradients

    def numbers(self) -> Tensor:
        """Return the gradients where they were formed, else inputs and residuals."""
        if self._formed is not None:
            return self._formed.gradients
        return torch.cat([self.inputs.flatten(1), self.residuals.flatten(1)], 1)

    def write(self, rows: slice, into: Tensor) -> None:
        """Write the gradients of some rows to `into`, [rows, g p q]."""
        above, below = self.residuals[rows].transpose(2, 3).flatten(0, 1), self.inputs[rows].flatten(0, 1)
        torch.bmm(above, below, out=into.view(len(above), above.shape[1], -1))


class Lookup:
    """Gradients by a table of which each example used some rows: embeddings.

    Args:
        index: int64[n, T], the table's rows that were used.
        residuals: [n, T, p], the derivatives by what was looked up.
        entries: rows of the table, V.
    """

    def __init__(self, index: Tensor, residuals: Tensor, entries: int) -> None:
        self.index, self.residuals, self.entries = index, residuals, entries
        self._sums = self._example = self._row = torch.empty(0)

    def settle(self, arena: Arena) -> int:
        """Add up each example's residuals for one row of the table."""
        count, positions, width = self.residuals.shape
        example = torch.arange(count, device=self.index.device)[:, None]
        keys, place = torch.unique((self.index + example * self.entries).flatten(), return_inverse=True)
        sums = self.residuals.new_zeros((len(keys), width))
        self._sums = sums.index_add_(0, place, self.residuals.reshape(-1, width))
        self._example, self._row = keys // self.entries, keys % self.entries
        return 2 * positions * width

    def squares(self) -> Tensor:
        """Return the squared norms, float64[n]."""
        each = _squares(self._sums)
        return each.new_zeros(len(self.index)).index_add_(0, self._example, each)

    def clear(self, rows: Tensor) -> None:
        """Make some rows zero."""
        self._sums = self._sums.masked_fill(rows[self._example, None], 0.0)

    def add_into(self, total: Tensor, factors: Tensor, rows: slice, arena: Arena) -> None:
        """Add the weighted sum over `rows` to the rows of the table that they used."""
        first, last, _ = rows.indices(len(self.index))
        begin, end = torch.searchsorted(
            self._example, torch.tensor([first, last], device=self._example.device)
        ).tolist()
        weighted = self._sums[begin:end].double() * factors[self._example[begin:end], None]
        total.view(self.entries, -1).index_add_(0, self._row[begin:end], weighted)

    def dense(self) -> Tensor:
        """Return the gradients, [n, V p]."""
        count, _, width = self.residuals.shape
        example = torch.arange(count, device=self.index.device)[:, None]
        table = self.residuals.new_zeros((count * self.entries, width))
        place = (self.index + example * self.entries).flatten()
        return table.index_add_(0, place, self.residuals.reshape(-1, width)).view(count, -1)

    def numbers(self) -> Tensor:
        """Return the residuals."""
        return self.residuals.flatten(1)


def combine(terms: Sequence[Term], arena: Arena) -> tuple[Term, int]:
    """Return one settled term for a parameter, and the floats it holds for each example.

    Where a parameter was used several times, its gradients add up before the norm is taken.

    Raises:
        InputError: it is used in ways of which only the gradients themselves could be added, and is too
            large for that.
    """
    term = terms[0] if len(terms) == 1 else _sum(terms)
    return term, term.settle(arena)


def _sum(terms: Sequence[Term]) -> Term:
    outer = [term for term in terms if isinstance(term, Outer)]
    if len(outer) == len(terms):
        inputs = torch.cat([term.inputs for term in outer], dim=2)
        return Outer(inputs, torch.cat([term.residuals for term in outer], dim=2))
    found = [term for term in terms if isinstance(term, Lookup)]
    if len(found) == len(terms):
        index = torch.cat([term.index for term in found], dim=1)
        residuals = torch.cat([term.residuals for term in found], dim=1)
        return Lookup(index, residuals, found[0].entries)
    total = terms[0].dense()
    if total.shape[1] > _LARGEST_FORMED:
        raise InputError(
            "a large parameter is shared by layers of different kinds",
            fix="Give each layer its own, or freeze the shared one",
        )
    for term in terms[1:]:
        total = total + term.dense()
    return Dense(total)


def _lengths(vectors: Tensor) -> Tensor:
    """Return the L2 norms along the last axis, computed in float64."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return lengths


def _pieces(rows: slice, floats: int, device: torch.device) -> Iterator[slice]:
    """Yield `rows` a few at a time, so that so many floats of each stay in a core's own cache."""
    together = max(1, (_CACHED if device.type == "cpu" else _LAUNCHED) // floats)
    for at in range(rows.start, rows.stop, together):
        yield slice(at, min(rows.stop, at + together))


@contextlib.contextmanager
def _widened(vectors: Tensor, arena: Arena) -> Iterator[Tensor]:
    """Yield a copy in float64, in scratch memory."""
    with arena.scratch(tuple(vectors.shape), torch.float64) as wide:
        yield wide.copy_(vectors)


def _squares(vectors: Tensor) -> Tensor:
    """Return float64[n], not below the squared norms of rows [n, k].

    float32 is added up as it is, c = `_NARROW` squares at a time. With v = 2**-24, a sum is low by
    gamma_c (of v) at most, its root by v; what underflows, flushed or not, loses 2**-126 for each square.
    """
    if vectors.dtype == torch.float64:
        return _lengths(vectors).square()
    total = vectors.new_full((len(vectors),), vectors.shape[1] * 2.0**-126, dtype=torch.float64)
    for at in range(0, vectors.shape[1], _NARROW):
        some = vectors[:, at : at + _NARROW]
        total += torch.linalg.vector_norm(some, dim=1).double().square()
    return total * (1.0 + (_NARROW + 16) * 2.0**-24)


def _gram(vectors: Tensor) -> Tensor:
    wide = vectors.double()
    return torch.matmul(wide, wide.transpose(2, 3))
