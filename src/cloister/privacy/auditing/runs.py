"""A lower bound on a mean from independent runs, and what it says about epsilon.

Where a run is cheap, many of them tell more than one: within a run the guesses about several canaries may
depend on each other in any way, but each is right with probability at most (1 + TV) / 2, TV = delta(0) being
the total variation distance that the claim allows, and so is their share; the runs are independent.

The mean of independent values in [0, 1] is bounded by betting (Waudby-Smith and Ramdas 2024): against "the
mean is at most m0" a stake follows from the values before, wealth is multiplied by 1 + stake (value - m0),
its expectation never exceeds 1, and the chance that it ever reaches 1 / level is at most level (Ville). No
variance is assumed; small variance, as from many canaries a run, is used where it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cloister.errors import InputError

__all__ = ["distance_epsilon", "mean_lower", "mean_p_value"]

_SHARE = 0.75  # of the wealth, at most, on one bet: it never reaches 0
_STEPS = 40


def mean_p_value(values: Sequence[float], mean: float, *, level: float, spread: float = 0.25) -> float:
    """Return a bound on the chance of values so large if their mean is at most `mean`.

    Args:
        values: independent, each in [0, 1], of one mean or of means that all lie below; in their own order.
        mean: the null hypothesis, in [0, 1].
        level: the level for which stakes are chosen; the p-value holds at any other too.
        spread: the variance that the first stakes assume, above 0; a poor one costs power alone.

    Raises:
        InputError: a value is outside [0, 1], or an argument out of range.
    """
    outcomes = _checked(values, level, spread)
    if not 0.0 <= mean <= 1.0:
        raise InputError("a mean must be within [0, 1]", fix="Give a rate")
    gains = outcomes - mean
    stakes = np.minimum(_stakes(outcomes, level, spread), _SHARE / max(mean, 1e-12))
    wealth = np.cumsum(np.log1p(stakes * gains))
    return min(1.0, math.exp(-max(0.0, float(np.max(wealth)))))


def mean_lower(values: Sequence[float], *, confidence: float, spread: float = 0.25) -> float:
    """Return a number that the mean exceeds with this confidence; 0 where nothing is known.

    Args and errors as for `mean_p_value`.
    """
    if not 0.0 < confidence < 1.0:
        raise InputError("a confidence must be between 0 and 1", fix="Give a number such as 0.95")
    level = 1.0 - confidence
    low, high = 0.0, 1.0
    if mean_p_value(values, 0.0, level=level, spread=spread) >= level:
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if mean_p_value(values, middle, level=level, spread=spread) < level:
            low = middle
        else:
            high = middle
    return low


def distance_epsilon(distance: float, delta: float) -> float:
    """Return the least epsilon with which (epsilon, delta) allows a total variation distance.

    It allows (e^epsilon - 1 + 2 delta) / (e^epsilon + 1), where the trade-off function of (epsilon, delta)
    meets the diagonal (Kairouz, Oh, Viswanath 2015).
    """
    if not (0.0 <= distance <= 1.0 and 0.0 <= delta <= 1.0):
        raise InputError("a distance or delta is out of range", fix="Give numbers of 0 to 1")
    if distance >= 1.0:
        return math.inf if delta < 1.0 else 0.0
    return max(0.0, math.log(max(1.0 + distance - 2.0 * delta, 1e-300) / (1.0 - distance)))


def _stakes(outcomes: np.ndarray, level: float, spread: float) -> np.ndarray:
    """Return each bet's stake, from the values before it and the assumed spread (counted as one value)."""
    before = np.arange(len(outcomes), dtype=np.float64)
    sums = np.cumsum(outcomes) - outcomes
    means = (0.5 + sums) / (1.0 + before)
    squares = np.concatenate([[0.0], np.square(outcomes - means)[:-1]])
    variances = (spread + np.cumsum(squares)) / (1.0 + before)
    stakes: np.ndarray = np.sqrt(2.0 * math.log(1.0 / level) / (np.maximum(variances, 1e-12) * len(outcomes)))
    return stakes


def _checked(values: Sequence[float], level: float, spread: float) -> np.ndarray:
    outcomes = np.asarray(values, dtype=np.float64)
    if outcomes.ndim != 1 or not len(outcomes) or not ((outcomes >= 0.0) & (outcomes <= 1.0)).all():
        raise InputError("a bound on a mean needs values in [0, 1]", fix="Give at least one run's share")
    if not (0.0 < level < 1.0 and spread > 0.0):
        raise InputError("a level must be between 0 and 1, and a spread above 0", fix="Correct them")
    return outcomes
