"""The parameters of a language model as one flat vector: its tensors, in order, and what a round moves of it.

A round moves one window, elements [start, stop) of the vector; rounds take the windows in turn. All models
but those with alternating adapters have one window, which is the whole vector.

What travels in a round has `width_of(windows)` elements whatever the round; the tail beyond a window that is
shorter is zero and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec

from cloister.errors import InputError

__all__ = ["Tensor", "Window", "check_layout", "width_of", "window_of"]

Window: TypeAlias = tuple[int, int]
"""Elements [start, stop) of the vector."""

_Extent = Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One named tensor of the vector, row by row.

    Attributes:
        name: as the model calls it.
        shape: its extents, all at least 1; () for a single number.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    shape: Annotated[tuple[_Extent, ...], msgspec.Meta(max_length=8)]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def width_of(windows: Sequence[Window]) -> int:
    """Return how many elements travel in a round: as many as the longest window has."""
    return max(stop - start for start, stop in windows)


def window_of(windows: Sequence[Window], round: int) -> Window:
    """Return what round `round` moves, counted from 0."""
    return windows[round % len(windows)]


def check_layout(size: int, tensors: Sequence[Tensor], windows: Sequence[Window]) -> None:
    """Return if tensors, where there are any, fill a vector of `size` elements, and windows lie in it.

    Raises:
        InputError: they do not, or a name stands there twice.
    """
    fits = not tensors or sum(tensor.size for tensor in tensors) == size
    fits &= len({tensor.name for tensor in tensors}) == len(tensors)
    fits &= bool(windows) and all(0 <= start < stop <= size for start, stop in windows)
    if not fits:
        raise InputError("the stated tensors and windows of a model do not fit its vector")
