"""Which rows of which group go through a module together.

A group is cut from its own first row on, whatever groups lie before it, so that its sum adds up the same
numbers in the same order. Small groups, and what is left of large ones, share a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Piece", "packed"]


class Piece(NamedTuple):
    """Rows of one group in one block, and whether the group ends with them."""

    begin: int
    end: int
    last: bool


def packed(starts: Sequence[int], rows: int) -> Iterator[list[Piece]]:
    """Yield the pieces of each block of at most `rows` consecutive rows.

    Args:
        starts: group j is rows starts[j] to starts[j + 1]; an empty one has no piece.
        rows: of a block at most.
    """
    block: list[Piece] = []
    for first, stop in itertools.pairwise(starts):
        for begin in range(first, stop, rows):
            piece = Piece(begin, min(stop, begin + rows), begin + rows >= stop)
            if block and piece.end - block[0].begin > rows:
                yield block
                block = []
            block.append(piece)
    if block:
        yield block
