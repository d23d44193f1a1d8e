"""How the rows of one step are shared out among the processes of one site; alone, there is nothing to share.

Each process takes every n-th row. All of them go through the model equally often, for a sharded base is put
together in each pass: who has no row left goes through it with one that counts nothing. Sums are the same
bits everywhere, so that parameters that start alike stay alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["ALONE", "Team"]


@dataclass(frozen=True)
class Team:
    """The processes of one site.

    Args:
        rank: this one's number.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def part(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's share of some rows, perhaps none."""
        return rows[self.rank :: self.size] if self.size > 1 else rows

    def most(self, rows: int) -> int:
        """Return how many of so many rows one process takes at most."""
        return -(-rows // self.size)

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over the team; everybody must ask for it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)


ALONE = Team()
"""One process."""
