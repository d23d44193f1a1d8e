"""What losses of canaries say about epsilon: one run, each canary in or out by a coin of its own.

The score of a canary is how much training lowered its loss: that under the base less that under the model.
The surest ones are guessed, half as in and half as out, and the guesses bound epsilon as
`cloister.privacy.auditing.onerun` proves. How many are guessed is fixed before: `SURE` of all.

It is a black-box attack that asks the final model alone. A canary is one row, or, where persons are
protected, one person's: what was planted several times by a coin of one row is not what a claim per row
speaks of, so coins put in one row each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.attacks.bounds import Bound, curve_bound
from cloister.learning.heads import Array
from cloister.privacy.accounting import Event
from cloister.privacy.auditing import epsilon_bound, tradeoff_epsilon_bound

__all__ = ["SURE", "coin_bounds"]

SURE: Final = 0.3


def coin_bounds(
    scores: Array,
    included: NDArray[np.bool_],
    *,
    delta: float,
    confidence: float,
    events: Sequence[Event] = (),
) -> tuple[Bound, ...]:
    """Return the bounds of one run.

    Args:
        scores: float64[m]; larger says in.
        included: bool[m], the coins.
        delta: of the claim.
        confidence: of each bound.
        events: of the view that is claimed; then its own curve is tested too, and that bound comes first.

    Raises:
        InputError: fewer than 2 canaries, or a score that is not a number.
    """
    count = len(scores)
    if count < 2 or np.isnan(scores).any():
        raise InputError("a bound needs finite scores of 2 canaries at least", where="audit")
    guesses = max(2, 2 * round(SURE * count / 2.0))
    order = np.argsort(scores, kind="stable")
    ranked, side = included[order], guesses // 2
    right = int((~ranked[:side]).sum() + ranked[count - side :].sum())

    def bound(method: str, epsilon: float) -> Bound:
        return Bound("black-box", method, epsilon, confidence, guesses, right)

    found = []
    if events:
        by_curve = curve_bound(events, count, guesses, right, delta=delta, confidence=confidence)
        found.append(bound("f-DP", by_curve))
    by_pair = tradeoff_epsilon_bound(count, guesses, right, delta=delta, confidence=confidence)
    by_steinke = epsilon_bound(count, guesses, right, delta=delta, confidence=confidence)
    return (*found, bound("f-DP, epsilon and delta", by_pair), bound("Steinke", by_steinke))
