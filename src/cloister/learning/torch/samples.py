"""Made-up rows for the tests of a module, and how its output for them is read.

`ZerosAndOnes` are those of a module that takes numbers. Language models have their own (`language.rows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cloister.crypto import StreamRandom
from cloister.learning.heads import Array
from cloister.learning.torch.scores import Scores

__all__ = ["CHANGED", "Samples", "ZerosAndOnes"]

CHANGED = 1
"""The row that differs between the two of a pair."""


class Samples(Protocol):
    """Where the tests take their rows from."""

    @property
    def tolerance(self) -> float:
        """How far a gradient may be from autograd's for the row alone, relative to its norm."""

    def rows(self, random: StreamRandom, count: int) -> tuple[Tensor, Array]:
        """Return rows [count, ...] as the module takes them, and labels float64[count]."""

    def pairs(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows twice: the same but for row `CHANGED`, in which all differs that can differ."""

    def scores(self, output: object, count: int) -> Scores:
        """Return how the output for `count` rows is read. Raises InputError where it does not fit."""


@dataclass(frozen=True)
class ZerosAndOnes:
    """Rows of zeros and ones, and labels of so many classes.

    Args:
        shape: of one row.
        classes: of the label; 0 for a number.
        dtype: of the module.
    """

    shape: tuple[int, ...]
    classes: int
    dtype: torch.dtype
    tolerance: float = 2e-3

    def rows(self, random: StreamRandom, count: int) -> tuple[Tensor, Array]:
        """Return rows and labels."""
        rows = torch.from_numpy(random.integers(2, (count, *self.shape))).to(self.dtype)
        return rows, random.integers(max(self.classes, 2), count).astype(np.float64)

    def pairs(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pair: ones become zeros and zeros ones."""
        other = rows.clone()
        other[CHANGED] = 1.0 - other[CHANGED]
        yield rows, other

    def scores(self, output: object, count: int) -> Scores:
        """Return how the output is read."""
        return Scores.of(self.classes, output, count)
