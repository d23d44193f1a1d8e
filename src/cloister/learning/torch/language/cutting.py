"""One row of tokens before it is put into the context, and what is cut where it does not fit.

Order of what goes: the prompt from its left, so that what is learnt stays whole. Where opening, answer and
end alone are too long, the prompt keeps the last tokens of it, a quarter of the context at most, and the
answer loses its end; then the end-of-text token goes too, for the text does not end there. A classifier's
ending stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Row"]

Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """Opening, prompt, answer and end of one row.

    Attributes:
        opening: tokens before it all, never cut.
        prompt: tokens that are given.
        answer: tokens that are learnt, or, in a conversation, all from the first learnt one on.
        counted: which of the answer's tokens are learnt.
        end: tokens behind it all.
        end_counts: whether the end is learnt; one that is not stays even where the answer is cut.
    """

    opening: Ids
    prompt: Ids
    answer: Ids
    counted: Flags
    end: Ids
    end_counts: bool = True

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.opening) + len(self.prompt) + len(self.answer) + len(self.end)

    def fitted(self, context: int) -> tuple[Ids, Flags]:
        """Return at most `context` tokens, and which of them are learnt; the first of a row never is."""
        prompt, answer, end = self.prompt, self.answer, self.end
        over = self.length - context
        if over > 0:
            keep = len(prompt) - over
            if keep < 0:  # the answer alone is too long
                keep = min(len(prompt), context // 4)
                end = end[:0] if self.end_counts else end
                answer = answer[: context - len(self.opening) - keep - len(end)]
            prompt = prompt[len(prompt) - keep :]
        ids = np.concatenate([self.opening, prompt, answer, end])
        counted = np.zeros(len(ids), dtype=np.bool_)
        begin = len(self.opening) + len(prompt)
        counted[begin : begin + len(answer)] = self.counted[: len(answer)]
        counted[begin + len(answer) :] = self.end_counts
        counted[:1] = False
        return ids, counted
