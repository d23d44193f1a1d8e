"""Rows of one shape on their way through a module: what its tests found, and blocks of sizes that are alike.

A module that takes rows of several shapes has one `Form` for each, over the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cloister.learning.heads import Array
from cloister.learning.torch.bookkeeping import Block, Bookkeeping
from cloister.learning.torch.flat import Flat
from cloister.learning.torch.probe import Findings, interchangeable, probe
from cloister.learning.torch.samples import Samples

__all__ = ["Form"]


class Form:
    """A module for rows of one shape, tested before it may see any.

    Args:
        books: of the module.
        flat: its parameters.
        samples: made-up rows of this shape.
        candidates: from the bytes that one row takes to numbers of rows that a block may have, descending;
            none where only single rows fit.

    Attributes:
        found: what the tests found.
        most_rows: of a block, on any machine.

    Raises:
        InputError: a test failed; the message says which layer and why.
    """

    def __init__(
        self, books: Bookkeeping, flat: Flat, samples: Samples, candidates: Callable[[int], Sequence[int]]
    ) -> None:
        self._books, self._flat, self._samples = books, flat, samples
        self.found: Findings = probe(books, flat, samples)
        self._candidates = candidates(self.found.floats * flat.dtype.itemsize)
        self.most_rows = max(self._candidates, default=1)
        self._alike: dict[int, tuple[int, ...]] = {}

    def sizes(self) -> tuple[int, ...]:
        """Return the numbers of rows that a block may have on this machine, ascending."""
        threads = torch.get_num_threads()
        if threads not in self._alike:
            self._alike[threads] = interchangeable(
                self._books, self._flat, self._samples, self.found, self._candidates
            )
        return self._alike[threads]

    def block(self, rows: Tensor, labels: Array) -> Block:
        """Return the gradients of some rows, as many as one of `sizes`; the block before it is void.

        Args:
            rows: [n, ...] as the module takes them.
            labels: float64[k], k <= n; those of the rows beyond are zeros.
        """
        found = self.found
        padded = np.zeros(len(rows))
        padded[: len(labels)] = labels
        calls, residuals = self._books.passes(rows, padded, found.scores, found.layouts)
        return self._books.block(calls, residuals, found.layouts)
