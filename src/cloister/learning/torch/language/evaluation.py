"""Addable evaluation sums of a language model: those of disjoint sets of rows add up to those of their union.

A classifier's are the four of `learning.evaluation`: rows, correct, log loss, Brier score. A model of next
tokens has three: rows, counted tokens, and their summed losses in nats; `token_loss` is nats over tokens and
`perplexity` its exponential.
"""

from __future__ import annotations

import numpy as np

from cloister.errors import InputError
from cloister.learning.heads import Array, SoftmaxHead
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.passing import Passes

__all__ = ["evaluation_sums"]


def evaluation_sums(passes: Passes, examples: Examples, classes: int) -> Array:
    """Return float64[4] of a classifier, float64[3] of a model of next tokens.

    Raises:
        InputError: there are no rows, a label is no class, or no token counts.
    """
    if len(examples) == 0 or not (classes or examples.counted.any()):
        raise InputError("there are no rows to evaluate on", fix="Give at least one with something to learn")
    if not classes:
        nats = passes.all_losses(examples).sum()
        return np.array([len(examples), np.count_nonzero(examples.counted), nats], dtype=np.float64)
    labels, head = passes.labels(examples, np.arange(len(examples))), SoftmaxHead(classes)
    scores = passes.all_scores(examples)
    predicted = head.prediction(scores)
    own = np.take_along_axis(predicted, labels[:, None], axis=1)[:, 0]
    brier = np.square(predicted).sum(1) - 2.0 * own + 1.0
    correct = np.count_nonzero(predicted.argmax(1) == labels)
    losses = head.loss(scores, labels.astype(np.float64))
    return np.array([len(examples), correct, losses.sum(), brier.sum()], dtype=np.float64)
