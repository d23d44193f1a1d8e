"""Memory that is used again for every block: fresh pages cost as much as the arithmetic on them.

Order: `reset` at the beginning of a block; `take` whatever the block keeps, `scratch` what one step needs.
What was taken before a reset must not be used after it. The first block finds out how much is needed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

__all__ = ["Arena"]

_LINE: Final = 64


class Arena:
    """A stack of tensors in one piece of memory. Not for several threads.

    Args:
        device: where the memory is.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._whole = torch.empty(0, dtype=torch.uint8, device=device)
        self._used = self._most = 0

    def reset(self) -> None:
        """Forget all that was taken."""
        if self._most > len(self._whole):
            self._whole = torch.empty(self._most, dtype=torch.uint8, device=self._whole.device)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of that shape, not initialised, until the next reset."""
        size = math.prod(shape) * dtype.itemsize
        begin, self._used = self._used, self._used + -(-size // _LINE) * _LINE
        self._most = max(self._most, self._used)
        if self._used > len(self._whole):
            return torch.empty(shape, dtype=dtype, device=self._whole.device)
        return self._whole[begin : begin + size].view(dtype).view(shape)

    @contextlib.contextmanager
    def scratch(self, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield a tensor of that shape, not initialised, for the length of a `with`."""
        before = self._used
        try:
            yield self.take(shape, dtype)
        finally:
            self._used = before
