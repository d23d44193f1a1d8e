"""Rows as tokens: ragged, in three flat arrays. Nothing here knows a tokenizer or torch.

Row i is ids[starts[i]:starts[i + 1]]. `counted` says which of its tokens are learnt: a token's loss is that
of predicting it from those before it in its own text, so the first of a text never counts.

A packed row holds several texts one after the other; `places` then counts each token from the beginning of
its own text, and a model that is given those places and no mask keeps texts apart (`packing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Examples", "joined", "longest_rows"]

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Examples:
    """n rows of tokens.

    Attributes:
        ids: int32[total], tokens of all rows.
        starts: int64[n + 1], where each row begins; the last is `total`.
        counted: bool[total], whether a token's loss counts; all False for classifiers.
        labels: float64[n], classes' numbers; zeros where there are none.
        pad: the token that fills short rows up; it is masked wherever it stands.
        cut: how many rows were longer than the context and lost tokens.
        places: int32[total], each token's place in its own text, of packed rows; None for others.
    """

    ids: NDArray[np.int32]
    starts: Integers
    counted: Flags
    labels: NDArray[np.float64]
    pad: int = 0
    cut: int = 0
    places: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"<Examples {len(self)} rows, {len(self.ids)} tokens>"

    @property
    def lengths(self) -> Integers:
        """int64[n], tokens of each row."""
        return np.diff(self.starts)

    @property
    def counts(self) -> Integers:
        """int64[n], tokens of each row whose loss counts."""
        before = np.concatenate([[0], np.cumsum(self.counted, dtype=np.int64)])
        return np.diff(before[self.starts])

    def select(self, index: Integers) -> Examples:
        """Return the rows numbered `index`, int64[b], in that order."""
        index = np.asarray(index, dtype=np.int64)
        lengths = self.lengths[index]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        at = np.repeat(self.starts[index] - starts[:-1], lengths) + np.arange(starts[-1])
        return replace(
            self,
            ids=self.ids[at],
            starts=starts,
            counted=self.counted[at],
            labels=self.labels[index],
            cut=0,
            places=None if self.places is None else self.places[at],
        )

    def emptied(self, rows: Flags) -> Examples:
        """Return as many rows, of which those flagged, bool[n], have no tokens; packed rows stay together."""
        keep = np.repeat(~rows, self.lengths)
        starts = np.concatenate([[0], np.cumsum(np.where(rows, 0, self.lengths), dtype=np.int64)])
        places = None if self.places is None else self.places[keep]
        return replace(self, ids=self.ids[keep], starts=starts, counted=self.counted[keep], places=places)

    def beyond(self, vocabulary: int) -> Flags:
        """Return which rows have a token that is not one of the first `vocabulary`, bool[n]."""
        unknown = (self.ids < 0) | (self.ids >= vocabulary)
        before = np.concatenate([[0], np.cumsum(unknown, dtype=np.int64)])
        return np.diff(before[self.starts]) > 0

    def padded(self, index: Integers, length: int | None = None) -> tuple[Integers, Flags]:
        """Return rows as rectangles, padded at their right.

        Args:
            index: int64[b], the rows.
            length: T, at least that of the longest of them; None for that.

        Returns:
            ids int64[b, T] and counted bool[b, T], False in the padding.
        """
        inside, at = self._places_of(index, length)
        ids = np.full(inside.shape, self.pad, dtype=np.int64)
        counted = np.zeros(inside.shape, dtype=np.bool_)
        ids[inside], counted[inside] = self.ids[at], self.counted[at]
        return ids, counted

    def padded_places(self, index: Integers, length: int | None = None) -> Integers:
        """Return int64[b, T]: each token's place in its own text, padding counted as a text of its own."""
        inside, at = self._places_of(index, length)
        places = np.zeros(inside.shape, dtype=np.int64)
        if self.places is None:
            places[:] = np.arange(inside.shape[1])
        else:
            beyond = np.arange(inside.shape[1]) - self.lengths[index][:, None]
            places = np.maximum(beyond, 0)
            places[inside] = self.places[at]
        return places

    def mask(self, index: Integers, length: int | None = None) -> Flags:
        """Return bool[b, T]: which places of `padded` hold tokens of the row."""
        return self._places_of(index, length)[0]

    def _places_of(self, index: Integers, length: int | None) -> tuple[Flags, Integers]:
        """Return which places of the rectangle are tokens, and which tokens these are, row by row."""
        lengths = self.lengths[index]
        width = int(lengths.max(initial=0)) if length is None else length
        if (lengths > width).any():
            raise ValueError("a row is longer than the width it is padded to")
        steps = np.arange(width)
        inside = steps < lengths[:, None]
        return inside, (self.starts[:-1][index][:, None] + steps)[inside]


def joined(
    rows: Sequence[NDArray[np.int32]],
    counted: Sequence[Flags],
    labels: NDArray[np.float64] | None,
    *,
    pad: int,
    cut: int = 0,
) -> Examples:
    """Return rows, given one by one, as `Examples`."""
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    return Examples(
        ids=np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32, copy=False),
        starts=starts,
        counted=np.concatenate([*counted, np.zeros(0, np.bool_)]),
        labels=np.zeros(len(rows)) if labels is None else labels,
        pad=pad,
        cut=cut,
    )


def longest_rows(count: int, context: int) -> Examples:
    """Return made-up rows of as many tokens as the context has, all of them learnt."""
    row, learnt = np.zeros(context, np.int32), np.ones(context, np.bool_)
    return joined([row] * count, [learnt] * count, None, pad=0)
