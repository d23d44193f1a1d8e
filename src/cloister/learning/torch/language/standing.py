"""Where a base's vectors of whole texts lie, and how far they spread, found without anybody's text.

The mean of a text's last hidden states is nearly the same for all texts: most of it says no more than that it
is one. A head over it learns slowly, and under privacy the common part takes the clip from what differs. So
the head is given (mean - centre) / spread, by elements; both come from rows of random tokens that the plan's
seed draws, between those that the tokenizer puts around every text, through the base alone, before anything
is trained. They are public, say nothing of rows, and are alike at all parties but for the rounding of
whoever computes.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from cloister.crypto import StreamRandom
from cloister.learning.torch.language.module import LanguageModule
from cloister.learning.torch.language.words import Words

__all__ = ["RECIPE", "stand"]

_ROWS: Final = 256
_TOKENS: Final = 24
_TOGETHER: Final = 32
_LEAST: Final = 1e-2
"""Of the mean spread: an element that hardly moves is not blown up."""
RECIPE: Final = f"rows of nobody/v2|{_ROWS}|{_TOKENS}|{_LEAST}"
"""What centre and spread follow from beside base, tokenizer and seed, for a plan to pin: their own digits may
differ by rounding. Another way to make them needs another name."""


@torch.no_grad()
def stand(module: LanguageModule, words: Words, vocabulary: int, seed: int) -> None:
    """Set what the module's head takes off and divides by; its adapters must be at their start.

    Args:
        module: base and head.
        words: its tokenizer.
        vocabulary: tokens that the base knows.
        seed: of the plan, public.
    """
    device = module.centre.device
    random = StreamRandom.from_seed(seed, "rows of nobody")
    drawn = torch.from_numpy(words.enclosed(random.integers(vocabulary, (_ROWS, _TOKENS)))).to(device)
    everything = torch.ones((_TOGETHER, drawn.shape[1]), dtype=torch.bool, device=device)
    found: list[Tensor] = [
        module.pooled(drawn[at : at + _TOGETHER], everything) for at in range(0, _ROWS, _TOGETHER)
    ]
    vectors = torch.cat(found)
    spread = vectors.std(0)
    module.centre.copy_(vectors.mean(0))
    module.spread.copy_(spread.clamp(min=max(float(spread.mean()) * _LEAST, 1e-6)))
