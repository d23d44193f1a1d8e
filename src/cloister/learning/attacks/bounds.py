"""What a canary game says about epsilon: bounds by name, and the one that is held against the claim.

The bound is the larger of two, each at half of what may go wrong, so that together they hold with the
confidence that is stated:

    independent runs   the share of right guesses in each run, all canaries guessed (`auditing.runs`)
    f-DP               the surest guesses of all runs, as one run (Mahloujifar et al. 2025)

Both look for the least noise with which the guesses refute the plan's own mechanism, and give the epsilon
that it has at the claim's delta: that of the plan's events, their sensitivity scaled. Beside them stand
bounds that assume (epsilon, delta) and nothing about the mechanism, and one from the final model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from cloister.errors import InputError
from cloister.learning.attacks.canarygame import Game
from cloister.privacy.accounting import Event, epsilon
from cloister.privacy.auditing import (
    curve_of,
    distance_of,
    epsilon_bound,
    mean_lower,
    membership_bound,
    refutes,
    scaled,
    tradeoff_epsilon_bound,
)

__all__ = ["Bound", "curve_bound", "game_bounds"]

_SURE = 0.3  # of all canaries are guessed in the tests that leave some out
_SPAN = 12  # half octaves of noise around the claim
_REFINED = 3


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lower bound on epsilon.

    Attributes:
        attack: "white-box": by the noisy sums that the hub sees; "black-box": by the final model.
        method: of the module's docstring; or "Steinke", "f-DP, epsilon and delta" and "one canary" (a plain
            membership test over the runs), which assume no more than epsilon and delta.
        epsilon: the bound, at the claim's delta.
        confidence: with which this bound holds by itself.
        guesses: canaries that were guessed, over all runs.
        correct: of them, right.
    """

    attack: str
    method: str
    epsilon: float
    confidence: float
    guesses: int
    correct: int


def game_bounds(
    game: Game, events: Sequence[Event], delta: float, *, confidence: float
) -> tuple[float, tuple[Bound, ...]]:
    """Return the bound, and all bounds that were computed, the two that it is made of first.

    Args:
        game: as it was played.
        events: of the view that is claimed, as they were accounted for.
        delta: of the claim.
        confidence: of the bound, such as 0.95.

    Raises:
        InputError: a confidence or delta out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise InputError("a confidence must be between 0 and 1", fix="Give a number such as 0.95")
    each = (1.0 + confidence) / 2.0
    total = game.canaries
    guesses = max(2, 2 * round(_SURE * total / 2.0)) if total > 1 else 0
    white, black = game.surest(game.white, guesses), game.surest(game.black, guesses)
    right = round(float(game.shares().sum()) * game.included.shape[1])
    lowest = mean_lower(game.shares().tolist(), confidence=each, spread=0.25 / game.included.shape[1])

    def by_runs(factor: float) -> bool:
        return (1.0 + distance_of(scaled(events, factor))) / 2.0 < lowest

    def by_curve(correct: int, confidence: float) -> float:
        return curve_bound(events, total, guesses, correct, delta=delta, confidence=confidence)

    plain = {"delta": delta, "confidence": confidence}
    bounds = (
        Bound("white-box", "independent runs", _found(events, by_runs, delta), each, total, right),
        Bound("white-box", "f-DP", by_curve(white, each), each, guesses, white),
        Bound(
            "white-box",
            "f-DP, epsilon and delta",
            tradeoff_epsilon_bound(total, guesses, white, **plain),
            confidence,
            guesses,
            white,
        ),
        Bound(
            "white-box",
            "Steinke",
            epsilon_bound(total, guesses, white, **plain),
            confidence,
            guesses,
            white,
        ),
        _plain(game, delta, confidence),
        Bound("black-box", "f-DP", by_curve(black, confidence), confidence, guesses, black),
    )
    return max(bounds[0].epsilon, bounds[1].epsilon), bounds


def curve_bound(
    events: Sequence[Event], total: int, guesses: int, correct: int, *, delta: float, confidence: float
) -> float:
    """Return epsilon at `delta` of the least noise with which guesses refute the mechanism of `events`.

    Args:
        events: as they were accounted for.
        total: canaries of all runs together.
        guesses: of them, guessed.
        correct: of these, right.
        delta: of the claim.
        confidence: such as 0.95.

    Returns:
        Epsilon; 0 where nothing is refuted.
    """
    level = 1.0 - confidence
    return _found(
        events,
        lambda factor: refutes(curve_of(scaled(events, factor)), total, guesses, correct, level),
        delta,
    )


def _found(events: Sequence[Event], refuted: Callable[[float], bool], delta: float) -> float:
    factor = _largest(refuted)
    return epsilon(scaled(events, factor), delta) if factor else 0.0


def _plain(game: Game, delta: float, confidence: float) -> Bound:
    """Return what the first canary of each run shows by itself, guessed in where its ratio is above 0."""
    inside, said = game.included[:, 0], game.white[:, 0] > 0.0
    members, hits, alarms = int(inside.sum()), int((inside & said).sum()), int((~inside & said).sum())
    others = len(inside) - members
    known = 0.0
    if members and others:
        known = membership_bound(hits, members, alarms, others, delta=delta, confidence=confidence)
    return Bound("white-box", "one canary", known, confidence, len(inside), hits + others - alarms)


def _largest(refuted: Callable[[float], bool]) -> float:
    """Return the largest factor on the claim's sensitivity that is refuted, 0 where none is.

    From beside the claim outwards in half octaves, then closer in: less noise costs more to account for.
    """
    level = 0
    if refuted(_factor(level)):
        while level < _SPAN and refuted(_factor(level + 1)):
            level += 1
    else:
        while not refuted(_factor(level - 1)):
            level -= 1
            if level == -_SPAN:
                return 0.0
        level -= 1
    best, above = _factor(level), _factor(level + 1)
    for _ in range(_REFINED):
        between = (best * above) ** 0.5
        if refuted(between):
            best = between
        else:
            above = between
    return best


def _factor(level: int) -> float:
    return float(2.0 ** ((level + 0.2) / 2.0))  # none is the claim itself
