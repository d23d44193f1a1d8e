"""Rows of tokens as a module for per-row clipping takes them: one tensor in, one row of scores out.

A block is int64[b, 2, T]: the tokens, and for each of them 0 (padding), 1 (a token) or 3 (a token that is
learnt). What comes out is a row's scores for its class, or the row's own loss:

    the mean, over the row's tokens that are learnt, of the negative log likelihood in nats

A row without any has a loss of zero and no gradient. The logits of all T tokens are computed, whichever are
learnt: shapes that followed the rows would make one row's rounding depend on another row.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array, TokensHead
from cloister.learning.private.ladder import rung
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.module import LanguageModule
from cloister.learning.torch.samples import CHANGED
from cloister.learning.torch.scores import Scores

__all__ = ["Length", "RowModule", "TokenSamples", "block_of"]

TOKEN: Final = 1
LEARNT: Final = 3


class Length(NamedTuple):
    """Rows that go through a model together.

    Attributes:
        tokens: T, of a block.
        least: tokens of a row at least; the rest is padding.
        most: tokens of a row at most.
    """

    tokens: int
    least: int
    most: int

    @classmethod
    def of(cls, tokens: int, context: int, *, encoder: bool) -> Length:
        """Return the length of a row of so many tokens: its rung, and which rows stand on it.

        A library may take another way through attention where nothing at all is masked. So an encoder's rows
        have at least one token of padding each, but for those of `context` tokens, which have none and go
        by themselves. A causal model masks nothing in any row.
        """
        if encoder and tokens == context:
            return cls(context, context, context)
        extra = 1 if encoder else 0
        rung_of = functools.partial(rung, context=context)
        length = rung_of(tokens + extra)
        least = next(n for n in range(1, tokens + 1) if rung_of(n + extra) == length)
        return cls(length, least, length - extra)


class RowModule(nn.Module):
    """A language module that takes blocks.

    Args:
        module: the model.
        autocast: what the passes run under; a context manager for each.
        placed: whether to number each row's tokens, for a base that looks places up in a table which is
            trained: numbers that all rows share would have no gradient of single rows.
    """

    def __init__(
        self,
        module: LanguageModule,
        autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        *,
        placed: bool = False,
    ) -> None:
        super().__init__()
        self.module, self._autocast, self._placed = module, autocast, placed
        self.eval()

    def forward(self, block: Tensor) -> Tensor:
        """Return scores float32[b, classes], or losses float32[b]."""
        ids, flags = block[:, 0], block[:, 1]
        places = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1) if self._placed else None
        with self._autocast():
            if self.module.classes:
                return self.module.scores(ids, flags >= TOKEN, places).float()
            learnt = flags >= LEARNT
            learnt[:, 0] = False  # nothing stands before a first token
            return self.module.token_losses(ids, learnt, places=places) / learnt.sum(1).clamp(min=1)


def block_of(examples: Examples, index: NDArray[np.int64], length: Length, rows: int) -> Tensor:
    """Return int64[rows, 2, T]: some rows, and below them the shortest rows possible, nothing of them learnt.

    Args:
        examples: all rows.
        index: int64[k], k <= rows, of rows of this length.
        length: theirs.
        rows: of the block.
    """
    block = np.zeros((rows, 2, length.tokens), dtype=np.int64)
    block[:, 0] = examples.pad
    block[len(index) :, 1, : length.least] = TOKEN
    ids, counted = examples.padded(index, length.tokens)
    block[: len(index), 0] = ids
    block[: len(index), 1] = examples.mask(index, length.tokens) * TOKEN + counted * (LEARNT - TOKEN)
    return torch.from_numpy(block)


@dataclass(frozen=True)
class TokenSamples:
    """Made-up rows of one length.

    Args:
        length: theirs.
        vocabulary: how many tokens there are.
        classes: of the label; 0 where the row's own loss comes out.
        device: where the module is.
        tolerance: how far a gradient may be from autograd's, relative to its norm.
    """

    length: Length
    vocabulary: int
    classes: int
    device: torch.device
    tolerance: float

    def rows(self, random: StreamRandom, count: int) -> tuple[Tensor, Array]:
        """Return rows of all numbers of tokens that the length allows, and labels."""
        shape = (count, self.length.tokens)
        lengths = self.length.least + random.integers(self.length.most - self.length.least + 1, count)
        inside = np.arange(self.length.tokens) < lengths[:, None]
        flags = np.where(random.integers(2, shape), LEARNT, TOKEN) * inside
        block = torch.from_numpy(np.stack([random.integers(self.vocabulary, shape), flags], 1))
        labels = random.integers(max(self.classes, 2), count).astype(np.float64)
        return block.to(self.device), labels

    def pairs(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows with another row in one place: other tokens; as short as may be among the longest;
        as long as may be among the shortest.

        Libraries take other ways where nothing is padding; the way a row goes must not be others' doing.
        """
        other = rows.clone()
        other[CHANGED, 0] = self.vocabulary - 1 - other[CHANGED, 0]
        learnt = torch.where(other[CHANGED, 1] == TOKEN, LEARNT, TOKEN)
        other[CHANGED, 1] = learnt.masked_fill(other[CHANGED, 1] == 0, 0)
        yield rows, other
        longest, shortest = rows.clone(), rows.clone()
        longest[:, 1, : self.length.most].clamp_(min=TOKEN)
        shortest[:, 1, self.length.least :] = 0
        for most, changed in ((longest, shortest), (shortest, longest)):
            mixed = most.clone()
            mixed[CHANGED] = changed[CHANGED]
            yield most, mixed

    def scores(self, output: object, count: int) -> Scores:
        """Return how the output is read."""
        if self.classes:
            return Scores.of(self.classes, output, count)
        if not isinstance(output, Tensor) or tuple(output.shape) != (count,):
            raise InputError("the module does not return one loss for each row")
        return Scores(TokensHead(), 1)
