"""A language model as a `PrivateModel`: the gradients of single rows by book-keeping, clipped one by one.

The arithmetic is that of `learning.torch.private`. What is a language model's own:

**Examples are numbered rows.** X is int64[b] into the `Examples` that were given, y is ignored; labels lie
with the rows. Nothing but their numbers travels through sampling and microbatches.

**A row's loss** is its cross entropy for a classifier, and the mean over its learnt tokens for next tokens
(`rows`): every row weighs the same, however long it is, and is clipped as a whole. (Plain training weighs
every token of a batch the same.) A row of no token, or of none that is learnt, contributes nothing: that it
is there must not show.

**Lengths.** A row goes through the model padded to its rung of `learning.private.ladder`, which follows from
the row alone. For every length that occurs there is one `Form` over the same module: it was tested that what
is computed for a row depends, to the last bit, on that row and the parameters alone. The shortest and the
longest rows that the context allows are tested whether there are such or not, and a base that fails there is
refused; rows of a length between, where it fails, contribute nothing: a refusal would tell of them.

A block holds rows of one length; a microbatch's sum goes through the lengths in ascending order, each cut
from its own first row, so that it depends on its own rows alone.

**The window.** A round moves one window of the vector (`learning.language.layout`); `size`, sums and bounds
speak of it. What is outside stands still, and is what `hold` was given last.

Packed rows are refused: they hold several owners' texts, of which none can be clipped by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.private import check_clip
from cloister.learning.private.ladder import BLOCK_ROWS, most_rows, tokens_float_bound
from cloister.learning.torch.bookkeeping import Bookkeeping
from cloister.learning.torch.flat import Flat
from cloister.learning.torch.forms import Form
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.rows import Length, RowModule, TokenSamples, block_of
from cloister.learning.torch.language.training import memory_errors
from cloister.learning.torch.layers import check_layers

if TYPE_CHECKING:
    from cloister.learning.language.layout import Window
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["LanguagePrivate", "check_rows"]

_SIZES: Final = (BLOCK_ROWS, 48, 32, 16)
"""Rows of a block; kernels rarely treat the rows of smaller ones alike."""

_SMALL: Final = (8, 4, 2)

_BLOCK_BYTES: Final = 1 << 30
_LESS: Final = "Write a smaller [language] context, or use a smaller base"
_TOLERANCES: Final = {"float32": 2e-3, "bfloat16": 5e-2}


class LanguagePrivate:
    """A language model and one site's rows.

    Args:
        learner: the model; its module's trainable parameters follow the window while sums are made.
        examples: the rows.
        window: what of the vector is moved; None for the learner's first.

    Raises:
        InputError: rows do not fit the model, or a layer's per-row gradients are not known, or rows would be
            mixed, or the base lies in parts in several processes.
        StorageError: there is not enough memory; sums raise it too.
    """

    def __init__(self, learner: LanguageLearner, examples: Examples, window: Window | None = None) -> None:
        if learner.sharded:
            raise InputError(
                "single rows are clipped in one process, and the base lies in parts in several",
                where="[privacy]",
                fix="Start without shard, or protect a unit column",
            )
        self._learner = learner
        self.window = learner.windows[0] if window is None else window
        self._context, self._vocabulary = learner.language.context, learner.vocabulary
        learner.load(learner.initial(learner.section.seed))
        learner.vector.select(self.window)
        module = RowModule(learner.module, learner.passes.autocast, placed=learner.language.method == "full")
        chosen = {name: each for name, each in learner.vector.names.items() if each.requires_grad}
        self._flat = Flat(module, chosen)
        self._books = Bookkeeping(module, self._flat, check_layers(module))
        self._forms: dict[Length, Form] = {}
        self.take(examples)

    def __repr__(self) -> str:
        return f"<LanguagePrivate {self.size} parameters, {len(self._examples)} rows>"

    @property
    def size(self) -> int:
        """Elements of the window."""
        return self._flat.size

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which of them an l2 penalty touches; bool[size]."""
        return self._flat.penalised

    @property
    def rows(self) -> tuple[NDArray[np.int64], Array]:
        """X and y of all rows: their numbers, and zeros."""
        return np.arange(len(self._examples)), np.zeros(len(self._examples))

    def take(self, examples: Examples) -> None:
        """Go on with other rows. Raises as for the first ones."""
        check_rows(self._learner, examples)
        encoder = self._learner.module.encoder
        self._examples = examples
        self._lengths, self._length = _numbered(examples, self._context, encoder=encoder)
        edges = {Length.of(n, self._context, encoder=encoder) for n in (1, self._context - 1, self._context)}
        with memory_errors(_LESS):
            self._test(sorted(edges))

    def rehearse(self) -> None:
        """Clip a whole block of the first rows: the memory that it takes is there, or it is not.

        Raises:
            StorageError: there is not enough.
        """
        length = self._lengths[int(self._length[0])]
        with memory_errors(_LESS):
            index = np.arange(len(self._examples))[: self._forms[length].sizes()[-1]]
        self._sum(self._flat.read(), index, 1.0)

    def hold(self, params: NDArray[np.floating[Any]]) -> None:
        """Set the whole vector, float[d]: what lies outside the window stays as it is here."""
        self._learner.load(params)

    def float_bound(self, microbatch: int) -> float:
        """Return the float error of one microbatch's sum, relative to the clip; see `ladder`."""
        return tokens_float_bound(self._context, microbatch)

    def clipped_sums(
        self, params: Array, X: NDArray[Any], y: Array, clip: float, microbatch: int
    ) -> Iterator[Array]:
        """Yield the sum of clipped gradients of each `microbatch` consecutive rows; as `PrivateModel` says.

        Args:
            params: float64[size], the window's elements; rounded to float32.
            X: int64[b], numbers of rows.
            y: ignored.
            clip: L2 norm of a row's gradient at most.
            microbatch: rows of one sum.

        Raises:
            InputError: a number is out of range.
        """
        check_clip(clip)
        if microbatch < 1:
            raise InputError("a microbatch has at least one row", fix="Give 1 or more")
        index = np.asarray(X, dtype=np.int64)
        if index.ndim != 1 or not ((index >= 0) & (index < len(self._examples))).all():
            raise InputError("there are no rows of these numbers", fix="Number them from 0")
        for at in range(0, len(index), microbatch):
            yield self._sum(params, index[at : at + microbatch], clip)

    def _sum(self, params: Array, index: NDArray[np.int64], clip: float) -> Array:
        self._learner.vector.select(self.window)
        self._flat.write(params)
        total = torch.zeros(self.size, dtype=torch.float64, device=self._flat.device)
        lengths = self._length[index]
        with memory_errors(_LESS):
            for number in np.unique(lengths[lengths >= 0]).tolist():
                self._add(total, index[lengths == number], number, clip)
        found: Array = total.cpu().numpy()
        return found

    def _add(self, total: torch.Tensor, rows: NDArray[np.int64], number: int, clip: float) -> None:
        """Add the clipped gradients of some rows of one length, given by its number."""
        length, labels = self._lengths[number], self._examples.labels
        form = self._forms[length]
        sizes = form.sizes()
        for at in range(0, len(rows), sizes[-1]):
            some = rows[at : at + sizes[-1]]
            size = next(each for each in sizes if each >= len(some))
            tokens = block_of(self._examples, some, length, size).to(self._flat.device)
            block = form.block(tokens, labels[some])
            block.clip(clip)
            block.add_into(total, slice(0, len(some)))

    def _test(self, edges: Sequence[Length]) -> None:
        """Make a form for each length; rows of one that fails are numbered as if they had no tokens.

        Raises:
            InputError: one of `edges` fails, whatever rows there are.
        """
        for length in edges:
            if length not in self._forms:
                self._forms[length] = self._form(length)
        for number, length in enumerate(self._lengths):
            if length not in self._forms:
                try:
                    self._forms[length] = self._form(length)
                except InputError:
                    self._length[self._length == number] = -1

    def _form(self, length: Length) -> Form:
        samples = TokenSamples(
            length=length,
            vocabulary=self._vocabulary,
            classes=self._learner.classes,
            device=self._flat.device,
            tolerance=_TOLERANCES[self._learner.language.precision],
        )
        form = Form(self._books, self._flat, samples, _candidates(length.tokens))
        if form.found.positions > length.tokens:
            raise InputError(
                "an adapter is used several times for one row, which the float error does not allow for",
                fix="Take a base whose layers do not share adapters",
            )
        return form


def _candidates(length: int) -> Callable[[int], list[int]]:
    """Return what chooses sizes of blocks by the bytes of a row: tokens and memory are limited."""
    most = most_rows(length)

    def chosen(bytes_of_row: int) -> list[int]:
        fitting = min(most, _BLOCK_BYTES // bytes_of_row)
        usual = [rows for rows in _SIZES if rows <= fitting]
        return usual or [rows for rows in _SMALL if rows <= fitting]

    return chosen


def _numbered(examples: Examples, context: int, *, encoder: bool) -> tuple[list[Length], NDArray[np.int64]]:
    """Return the lengths that occur, ascending, and each row's number among them; -1 for rows of no token."""
    of = {n: Length.of(n, context, encoder=encoder) for n in np.unique(examples.lengths).tolist() if n}
    lengths = sorted(set(of.values()))
    numbers = {0: -1} | {n: lengths.index(length) for n, length in of.items()}
    return lengths, np.array([numbers[n] for n in examples.lengths.tolist()], dtype=np.int64)


def check_rows(learner: LanguageLearner, examples: Examples) -> None:
    """Return if every row that has tokens can go through the model by itself.

    Raises:
        InputError: one cannot; the message names nothing that a row holds.
    """
    vocabulary, classes, context = learner.vocabulary, learner.classes, learner.language.context
    if len(examples) == 0:
        raise InputError("there are no rows to train on", fix="Give at least one")
    if examples.places is not None:
        raise InputError(
            "packed rows hold several texts, of which none could be clipped by itself",
            where="[language] packing",
            fix="Write packing = false",
        )
    if not ((examples.ids >= 0) & (examples.ids < vocabulary)).all():
        raise InputError(
            f"the tokenizer gives tokens beyond the {vocabulary} that the base knows",
            fix="Use the tokenizer that belongs to this base",
        )
    if not 0 <= examples.pad < vocabulary:
        raise InputError("the padding token is none that the base knows", fix="Use the base's tokenizer")
    if classes and not np.isin(examples.labels, np.arange(classes)).all():
        raise InputError(f"a label is not one of the classes 0 to {classes - 1}", fix="Check the classes")
    if examples.lengths.max() > context:
        raise InputError(
            f"a row has more than the {context} tokens of the context", fix='Write overlong = "truncate"'
        )
