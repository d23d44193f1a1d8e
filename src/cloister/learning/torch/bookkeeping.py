"""From rows to their clipped gradients: one forward, one backward, a term for each parameter.

The order is `private`'s steps 1 to 5. A `Block` is what lies between: the terms of some rows, and the factor
of each row once a clip is named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.torch.arena import Arena
from cloister.learning.torch.flat import Flat
from cloister.learning.torch.layers import Sampler
from cloister.learning.torch.layout import Layout
from cloister.learning.torch.record import Call, Count, Recorder
from cloister.learning.torch.scores import Scores
from cloister.learning.torch.terms import Outer, Term, combine

__all__ = ["Block", "Bookkeeping"]

_SPREAD: Final = -7046029254386353131  # of odd weights: 2**64 over the golden ratio, as a signed integer
_DEFLATION: Final = 1.0 - 2.0**-20
"""Norms of up to 2**28 numbers are good to 2**-23 in float64; factors stay further below clip / norm."""


class Block:
    """The gradients of some rows, not yet added up.

    Args:
        terms: for each parameter, by name.
        slices: where each parameter lies in the flat vector.
        held: floats kept for each row.
    """

    def __init__(
        self, terms: Mapping[str, Term], slices: Mapping[str, slice], held: int, arena: Arena
    ) -> None:
        self._terms, self._slices, self._arena, self.held = terms, slices, arena, held
        self.squares = torch.stack([term.squares() for term in terms.values()]).sum(0)
        self._factors = torch.ones_like(self.squares)

    @property
    def positions(self) -> int:
        """Positions of one row that a weighted sum adds up, where gradients were not formed; else 0."""
        found = [t.inputs.shape[2] for t in self._terms.values() if isinstance(t, Outer) and t.unformed]
        return max(found, default=0)

    def clip(self, clip: float) -> None:
        """Let no row count for more than `clip`, and a row that is not finite for nothing."""
        lost = ~torch.isfinite(self.squares)
        if lost.any():
            for term in self._terms.values():
                term.clear(lost)
        self._factors = (clip * _DEFLATION / self.squares.sqrt()).clamp(max=1.0).masked_fill(lost, 0.0)

    def marks(self) -> Tensor:
        """Return int64[n, k]: rows of which some bit differs have other marks, but for a chance of 2**-32."""
        found = [_marks(each.numbers()) for each in self._terms.values()]
        return torch.stack([*found, _marks(self.squares[:, None])], 1)

    def add_into(self, total: Tensor, rows: slice) -> None:
        """Add the contributions of some rows to `total`, float64[d]."""
        for name, term in self._terms.items():
            term.add_into(total[self._slices[name]], self._factors, rows, self._arena)


def _marks(numbers: Tensor) -> Tensor:
    """Return int64[n], a weighted sum of each row's bits that wraps around."""
    kind = torch.int32 if numbers.dtype == torch.float32 else torch.int64
    bits = (numbers + 0.0).contiguous().view(kind).long()  # + 0: minus zero is zero
    weights = torch.arange(1, 2 * bits.shape[1], 2, device=bits.device) * _SPREAD
    return (bits * (weights ^ (weights >> 29) | 1)).sum(1)


class Bookkeeping:
    """Turns rows into blocks.

    Args:
        module: in evaluation mode, its parameters set.
        flat: its trainable parameters.
        layers: those that hold them, with their samplers.
    """

    def __init__(
        self, module: nn.Module, flat: Flat, layers: Mapping[str, tuple[nn.Module, Sampler]]
    ) -> None:
        self._flat, self._layers, self._arena = flat, layers, Arena(flat.device)
        self._recorder = Recorder(module, {name: layer for name, (layer, _) in layers.items()})
        names = {parameter: name for name, parameter in flat.parameters.items()}
        self._names = {
            name: {own: names[each] for own, each in layer.named_parameters(recurse=False) if each in names}
            for name, (layer, _) in layers.items()
        }

    def forward(self, X: Tensor) -> tuple[Tensor, list[Call]]:
        """Return the module's output and its layers' calls."""
        return self._recorder.forward(X)

    def passes(
        self, X: Tensor, labels: Array, scores: Scores, layouts: Sequence[Layout]
    ) -> tuple[list[Call], list[Tensor]]:
        """Return the calls of one forward pass, and what came back to each in one backward pass.

        Args:
            X: [n, ...] in the module's type.
            labels: float64[n].
            scores: how the output is read.
            layouts: where examples lie in each call.

        Raises:
            InputError: the layers were not called as the layouts say.
        """
        output, calls = self.forward(X)
        self._check(calls, layouts, len(X))
        found = scores.read(output)
        return calls, self._recorder.backward(found, scores.residuals(found, labels), calls)

    def block(self, calls: Sequence[Call], residuals: Sequence[Tensor], layouts: Sequence[Layout]) -> Block:
        """Return the gradients of the rows that went through both passes; the block before it is void."""
        uses: dict[str, list[Term]] = {name: [] for name in self._flat.parameters}
        self._arena.reset()
        with torch.no_grad():
            for call, residual, layout in zip(calls, residuals, layouts, strict=True):
                layer, sampler = self._layers[call.name]
                names = self._names[call.name]
                entered, back = self._widened(call.inputs), self._widened(residual)
                for own, term in sampler(layer, entered, back, layout, self._arena).items():
                    if own in names:
                        uses[names[own]].append(term)
            settled = {name: combine(terms, self._arena) for name, terms in uses.items() if terms}
            held = sum(floats for _, floats in settled.values())
            return Block(
                {name: term for name, (term, _) in settled.items()}, self._flat.slices, held, self._arena
            )

    def _widened(self, numbers: Tensor) -> Tensor:
        """Return what a part of the module computed in half precision in the parameters' own, exactly."""
        return numbers.to(self._flat.dtype) if numbers.is_floating_point() else numbers

    def counted(self) -> contextlib.AbstractContextManager[Count]:
        """Count what the module's parts put out, for the length of a `with`."""
        return self._recorder.counted()

    @staticmethod
    def _check(calls: Sequence[Call], layouts: Sequence[Layout], count: int) -> None:
        same = len(calls) == len(layouts) and all(
            call.name == layout.name
            and layout.inputs.fits(tuple(call.inputs.shape), count)
            and layout.outputs.fits(call.shape, count)
            for call, layout in zip(calls, layouts, strict=True)
        )
        if not same:
            raise InputError(
                "the module does not call its layers the same way for every batch",
                fix="Its layers, their order and their shapes must not depend on the rows",
            )
