"""Embeddings: token vectors of the last hidden layer, pooled into one vector of unit length for each prompt.

Prompts of one call are computed in groups of similar length, padded on the right and masked: a prompt's
vector is the same, up to rounding, whatever others it was grouped with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from cloister.learning.modelfiles.folder import Pooling

__all__ = ["embedded", "groups"]

_GROUP_TOKENS: Final = 4096


def groups(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield indices of prompts to compute together: short ones first, at most 4,096 tokens with padding."""
    group: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda at: len(prompts[at])):
        if group and len(prompts[index]) * (len(group) + 1) > _GROUP_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@torch.inference_mode()
def embedded(model: Any, prompts: Sequence[Sequence[int]], pooling: Pooling) -> list[list[float]]:
    """Return a vector for each prompt.

    Args:
        model: of transformers, without a head: returns `last_hidden_state` (prompts, tokens, width).
        prompts: token ids, each at least one.
        pooling: mean of the tokens, the first, or the last.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
    if pooling == "mean":
        pooled = (hidden * mask[:, :, None]).sum(1) / lengths[:, None]
    else:
        pooled = hidden[torch.arange(len(prompts)), 0 if pooling == "cls" else lengths - 1]
    vectors: list[list[float]] = torch.nn.functional.normalize(pooled, dim=-1).tolist()
    return vectors
