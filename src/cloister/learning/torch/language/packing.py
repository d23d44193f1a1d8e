"""Several texts in one row of `context` tokens, so that no room is spent on padding. Never under privacy.

Texts keep their order. Each goes into the row that the one before it went into if there is room, and into a
new one otherwise; none is cut in two. `Examples.places` counts each text's tokens from 0. A model that is
given these places as position ids, and no attention mask, keeps its attention within each text where
transformers finds packed texts by them (its decoders with full attention do); a model that does not sees
what stands before in its row, which is plain concatenation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloister.learning.torch.language.examples import Examples

__all__ = ["packed"]


def packed(examples: Examples, context: int) -> Examples:
    """Return the same tokens in fewer rows.

    Args:
        examples: rows of at most `context` tokens each, not packed.
        context: tokens of a row at most.
    """
    lengths = examples.lengths
    begins, room = [0], context
    for row, length in enumerate(lengths.tolist()):
        if length > room and row:
            begins.append(row)
            room = context
        room -= length
    rows = np.asarray(begins if len(examples) else [], dtype=np.int64)
    starts = np.concatenate([examples.starts[rows], examples.starts[-1:]])
    places = np.arange(len(examples.ids)) - np.repeat(examples.starts[:-1], lengths)
    return replace(examples, starts=starts, labels=np.zeros(len(rows)), places=places.astype(np.int32))
