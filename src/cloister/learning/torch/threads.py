"""How many threads torch computes with, for who may not know torch."""

from __future__ import annotations

import torch

__all__ = ["use_threads"]


def use_threads(count: int) -> None:
    """Let torch compute one operation with so many threads."""
    torch.set_num_threads(count)
