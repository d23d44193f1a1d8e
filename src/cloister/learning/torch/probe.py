"""Tests of a module before it may see rows: does each example have a gradient of its own, and do we have it?

Four tests on made-up rows (`samples`), with parameters moved off their start (a LoRA's zeros would hide
a layer). What fails is refused, with the reason:

1. the layers are called alike for two numbers of examples, each with the examples along one axis (`layout`);
2. another content of one example changes nothing, bit for bit, in what is recorded for the others: no
   statistics over the batch, no attention across it, no other order of folded axes;
3. for every example, the gradient by each parameter is autograd's for that example alone, and the squared
   norm is not below it: nothing is used behind a layer's back, and every layer's formula is right;
4. nothing but the output changes in the module: no running statistics.

A module written to deceive can pass. User code is therefore run only where its owner allows it.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import torch
from torch import Tensor

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.torch.bookkeeping import Block, Bookkeeping
from cloister.learning.torch.flat import Flat
from cloister.learning.torch.layout import Axis, Layout
from cloister.learning.torch.record import Call
from cloister.learning.torch.samples import CHANGED, Samples
from cloister.learning.torch.scores import Scores

__all__ = ["Findings", "interchangeable", "probe"]

_FEW, _MANY = 3, 5
_PLACED: Final = 64


@dataclass(frozen=True)
class Findings:
    """What the tests found out about a module.

    Args:
        scores: how its output is read.
        layouts: where examples lie in each call of its layers, in order.
        floats: numbers held for one row in the passes and up to the sum, about.
        positions: of one row that a weighted sum adds up without their gradients being formed; 0 for none.
    """

    scores: Scores
    layouts: tuple[Layout, ...]
    floats: int
    positions: int


def probe(bookkeeping: Bookkeeping, flat: Flat, samples: Samples) -> Findings:
    """Test a module; its parameters are as before afterwards.

    Args:
        bookkeeping: of the module.
        flat: its parameters.
        samples: made-up rows.

    Raises:
        InputError: a test failed; the message says which layer and why.
    """
    random = StreamRandom.from_seed(0, "probe of a module")
    fixed = flat.fixed_state()
    X, labels = samples.rows(random, _MANY)
    with torch.random.fork_rng(devices=[]), flat.moved(random), warnings.catch_warnings(), _explained():
        warnings.simplefilter("ignore")  # torch's advice on speed, given once for each process
        findings, block = _layouts_and_block(bookkeeping, X, labels, samples)
        for pair in samples.pairs(X):
            _independent(bookkeeping, pair, labels, findings)
        _gradients(bookkeeping, flat, X, labels, findings.scores, block, samples.tolerance)
    if flat.fixed_state() != fixed:
        _refuse(
            "a frozen parameter or a buffer changes when the module is called", "", "Keep no running values"
        )
    return findings


def interchangeable(
    bookkeeping: Bookkeeping, flat: Flat, samples: Samples, found: Findings, sizes: Sequence[int]
) -> tuple[int, ...]:
    """Return those of `sizes` among which a row gives the same bits, wherever in a block it stands.

    Libraries' kernels may treat the rows at an edge of a matrix in another way; which ones they do depends on
    shapes, so this is asked of the shapes in use: rows in two orders, in blocks of each size.
    The parameters are as before afterwards.

    Args:
        bookkeeping: of the module.
        flat: its parameters.
        samples: made-up rows.
        found: what `probe` found.
        sizes: numbers of rows, descending.

    Returns:
        Ascending. (1,) where no size will do: a row alone has one place only.
    """
    random = StreamRandom.from_seed(0, "places of a row")
    count = max(_PLACED, *sizes, 1)
    X, labels = samples.rows(random, count)
    order = random.permutation(count)
    place = torch.from_numpy(order)
    mixed = X[place.to(X.device)], labels[order]
    with torch.random.fork_rng(devices=[]), flat.moved(random):
        for most in sizes:
            expected = _marks(bookkeeping, X, labels, most, found)
            expected = expected[place.to(expected.device)]
            alike = [s for s in sizes if torch.equal(_marks(bookkeeping, *mixed, s, found), expected)]
            if most in alike:
                return tuple(sorted(alike))
    return (1,)


def _marks(bookkeeping: Bookkeeping, X: Tensor, labels: Array, size: int, found: Findings) -> Tensor:
    """Return marks of what becomes of each row in blocks of `size` rows, [n, k]."""
    parts = []
    for at in range(0, len(X), size):
        torch.manual_seed(0)
        rows = X[at : at + size].clone()  # memory of its own, aligned like any block's
        calls, residuals = bookkeeping.passes(rows, labels[at : at + size], found.scores, found.layouts)
        parts.append(bookkeeping.block(calls, residuals, found.layouts).marks())
    return torch.cat(parts)


def _layouts_and_block(
    bookkeeping: Bookkeeping, X: Tensor, labels: Array, samples: Samples
) -> tuple[Findings, Block]:
    output, few = _forward(bookkeeping, X[:_FEW])
    samples.scores(output, _FEW)
    output, many = _forward(bookkeeping, X)
    scores = samples.scores(output, _MANY)
    if [call.name for call in few] != [call.name for call in many]:
        _refuse("the number of rows decides which layers are called", "", "Call them always")
    layouts = tuple(_layout(a, b) for a, b in zip(few, many, strict=True))
    torch.manual_seed(0)
    with bookkeeping.counted() as count:
        passed = bookkeeping.passes(X, labels, scores, layouts)
    block = bookkeeping.block(*passed, layouts)
    activations = count.floats // _MANY
    return Findings(scores, layouts, 2 * activations + block.held, block.positions), block


def _layout(few: Call, many: Call) -> Layout:
    counts = (_FEW, _MANY)
    inputs = Axis.between(tuple(few.inputs.shape), tuple(many.inputs.shape), counts)
    outputs = Axis.between(few.shape, many.shape, counts)
    if inputs is None or outputs is None:
        _refuse(
            "what enters this layer does not hold the examples along one axis",
            many.name,
            "Give it one input for each example: numbers of positions, say, expanded to the whole batch",
        )
    return Layout(many.name, inputs, outputs)


def _independent(
    bookkeeping: Bookkeeping, pair: tuple[Tensor, Tensor], labels: Array, findings: Findings
) -> None:
    """Take rows of which one differs; nothing that belongs to the others may differ."""
    seen = []
    for rows in pair:
        torch.manual_seed(0)
        seen.append(bookkeeping.passes(rows, labels, findings.scores, findings.layouts))
    rest = [at for at in range(_MANY) if at != CHANGED]
    for (call, back), (changed, again), layout in zip(
        zip(*seen[0], strict=True), zip(*seen[1], strict=True), findings.layouts, strict=True
    ):
        for one, two, axis in (
            (call.inputs, changed.inputs, layout.inputs),
            (back, again, layout.outputs),
        ):
            a, b = (each.movedim(axis.at, 0).reshape(_MANY, -1)[rest] for each in (one, two))
            if not _same(a, b):
                _refuse(
                    "one example changes what this layer sees of another",
                    call.name,
                    "Take statistics or attention over the batch away, and keep the batch in the first axis",
                )


def _gradients(
    bookkeeping: Bookkeeping,
    flat: Flat,
    X: Tensor,
    labels: Array,
    scores: Scores,
    block: Block,
    tolerance: float,
) -> None:
    """Compare each example's gradient with autograd's for that example alone."""
    for at in range(_MANY):
        ours = torch.zeros(flat.size, dtype=torch.float64, device=flat.device)
        block.add_into(ours, slice(at, at + 1))
        output, _ = _forward(bookkeeping, X[at : at + 1])
        found = scores.read(output)
        exact = torch.autograd.grad(
            found,
            list(flat.parameters.values()),
            grad_outputs=scores.residuals(found, labels[at : at + 1]),
            allow_unused=True,
        )
        norm = float(torch.linalg.vector_norm(ours))
        if not math.isfinite(norm):
            _refuse("a made-up row has no finite gradient", "", "Choose a start near zero")
        if not float(block.squares[at]) >= norm * norm * (1.0 - 2.0**-20):
            _refuse("the norm of an example's gradient comes out too small", "", "Report this module")
        for (name, where), each in zip(flat.slices.items(), exact, strict=True):
            expected = torch.zeros_like(ours[where]) if each is None else each.to_dense().double().flatten()
            error = float(torch.linalg.vector_norm(ours[where] - expected))
            if not error <= tolerance * (float(torch.linalg.vector_norm(expected)) + 0.01 * norm):
                _refuse(
                    "the gradient of one example is not what autograd finds for it alone",
                    f"parameter {name}",
                    "Use parameters only by calling their layer, and nothing random or shared between rows",
                )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers are equal or both undefined."""
    return bool((a.eq(b) | (a.isnan() & b.isnan())).all())


def _forward(bookkeeping: Bookkeeping, X: Tensor) -> tuple[Tensor, list[Call]]:
    torch.manual_seed(0)
    return bookkeeping.forward(X)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Let what a module said when it failed be part of the message: these rows are nobody's."""
    try:
        yield
    except InputError as error:
        if error.__cause__ is None:
            raise
        raise InputError(f"{error.what}: {error.__cause__}", where=error.where, fix=error.fix) from error


def _refuse(what: str, layer: str, fix: str) -> NoReturn:
    raise InputError(what, where=layer if " " in layer else f"layer {layer}" if layer else "", fix=fix)
