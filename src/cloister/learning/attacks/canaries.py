"""Synthetic canaries: rows whose gradients are long and point into directions of their own.

The claim holds for any row whatever, so an auditor may choose rows that no person has: far outside the
schema's bounds along one feature, with a label that the model cannot fit. Their clipped gradients are a whole
clip long, and nearly orthogonal, so that each can be looked for by itself. Where labels are classes, a canary
has a class as its label, and its gradient is as long as the model's error on it.

Candidates are drawn, their contributions computed at the start, and chosen greedily: long ones first, each
within `_MOST_ALIKE` (cosine) of those before it. No row of anybody's is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.attacks.mechanism import Mechanism, Rows
from cloister.learning.heads import Array

__all__ = ["Canaries", "make_canaries"]

_FAR = (8.0, 1.0)  # features, in scaled units, of candidates
_MISFIT = 16.0  # labels of candidates, where labels are numbers
_MOST_ALIKE = 0.35
_SHORTEST = 0.3  # of a clip
_MOST_FEATURES = 64  # that candidates are drawn along
_MOST_NUMBERS = 1 << 24  # of all candidates' contributions together


@dataclass(frozen=True, eq=False)
class Canaries:
    """Rows that are put in or left out, one coin each.

    Attributes:
        X: float64[m, f].
        y: float64[m].
    """

    X: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    @property
    def rows(self) -> Rows:
        """Both."""
        return self.X, self.y


def make_canaries(
    mechanism: Mechanism, start: Array, *, features: int, classes: int, most: int = 24
) -> Canaries:
    """Return canaries for a model over `features` numbers.

    Args:
        mechanism: what is audited; asked for what each candidate would contribute at the start.
        start: float64[d].
        features: columns of X.
        classes: 0 where labels are numbers to the model (a binary label too); else the number of classes.
        most: how many at most; never more than the model has parameters.

    Raises:
        InputError: no candidate moves the model; it is not trained by gradients of rows.
    """
    candidates = _candidates(features, classes, mechanism.claim.clip, _MOST_NUMBERS // mechanism.size)
    signals = mechanism.signals(start, candidates, mechanism.claim.clip)[:, : mechanism.size]
    norms = np.linalg.norm(signals, axis=1)
    chosen: list[int] = []
    for at in np.argsort(-np.minimum(norms, mechanism.claim.grid.clip_units), kind="stable"):
        if len(chosen) == min(most, mechanism.size):
            break
        if norms[at] < _SHORTEST * mechanism.claim.grid.clip_units:
            continue
        alike = np.abs(signals[chosen] @ signals[at]) / np.maximum(norms[chosen] * norms[at], 1e-300)
        if not len(chosen) or float(alike.max()) <= _MOST_ALIKE:
            chosen.append(int(at))
    if not chosen:
        raise InputError(
            "no canary moves this model by a noticeable part of the clip",
            where="audit",
            fix="Lower the clip, or check that the model's start is not a fixed point",
        )
    X, y = candidates
    return Canaries(X[chosen], y[chosen])


def _candidates(features: int, classes: int, clip: float, most: int) -> Rows:
    """Return far rows along each feature and along random signs, and rows of zeros, with every label.

    Of a wide table some features are taken, and of all that a large model allows `most`, evenly.
    """
    random = StreamRandom.from_seed(0, "audit canaries")  # public: the adversary knows the canaries
    along = np.unique(np.linspace(0, features - 1, min(features, _MOST_FEATURES)).astype(np.int64))
    axes = np.zeros((len(along), features))
    axes[np.arange(len(along)), along] = 1.0
    signs = random.integers(2, (2 * len(along), features)) * 2.0 - 1.0
    directions = np.concatenate([axes, signs, np.zeros((1, features))])
    if classes:
        labels = np.arange(min(classes, 8), dtype=np.float64)
    else:
        size = _MISFIT * max(1.0, clip / max(_FAR))
        labels = np.array([size, -size])
    X = np.repeat(np.concatenate([directions * far for far in _FAR]), len(labels), axis=0)
    y = np.tile(labels, len(_FAR) * len(directions))
    kept = np.arange(0, len(y), -(-len(y) // max(8, most)))
    return X[kept], y[kept]
