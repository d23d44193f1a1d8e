"""Intervals for rates, and the epsilon that a plain membership test shows.

A plain test: independent runs, in each of which one thing (a row, a canary) is in or out, and a decision made
by a rule that was fixed before. Decisions about many rows of one run are not independent; for those there is
`onerun`.

Intervals are those of Clopper and Pearson (1934): exact, by quantiles of the beta distribution.
"""

from __future__ import annotations

import math

from cloister.errors import InputError

__all__ = ["membership_bound", "rate_interval", "rate_lower", "rate_upper"]


def rate_lower(successes: int, trials: int, *, confidence: float) -> float:
    """Return a number that the rate exceeds, with this confidence, after so many successes.

    Raises:
        InputError: not 0 <= successes <= trials, no trial, or a confidence that is not between 0 and 1.
    """
    from scipy.stats import beta

    _check(successes, trials, confidence)
    return float(beta.ppf(1.0 - confidence, successes, trials - successes + 1)) if successes else 0.0


def rate_upper(successes: int, trials: int, *, confidence: float) -> float:
    """Return a number that exceeds the rate, with this confidence; as `rate_lower`."""
    return 1.0 - rate_lower(trials - successes, trials, confidence=confidence)


def rate_interval(successes: int, trials: int, *, confidence: float) -> tuple[float, float]:
    """Return both, so that together they hold with this confidence."""
    one_sided = (1.0 + confidence) / 2.0
    return (
        rate_lower(successes, trials, confidence=one_sided),
        rate_upper(successes, trials, confidence=one_sided),
    )


def membership_bound(
    hits: int, members: int, false_alarms: int, others: int, *, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that a plain membership test refutes at `delta`.

    (epsilon, delta) holds true positives within e^epsilon false positives + delta, and likewise the two kinds
    of right and wrong "out". Both rates are taken at the bad end of an interval at half of what may go wrong.

    Args:
        hits: runs with the thing in, said to be in.
        members: runs with the thing in.
        false_alarms: runs without it, said to be in.
        others: runs without it.
        delta: the claim's, 0 to 1.
        confidence: such as 0.95.

    Returns:
        Epsilon; 0 where nothing is refuted.

    Raises:
        InputError: counts that contradict each other, delta or confidence out of range.
    """
    if not 0.0 <= delta <= 1.0:
        raise InputError("delta is out of range", fix="Give a number of 0 to 1")
    each = (1.0 + confidence) / 2.0
    hit = rate_lower(hits, members, confidence=each)
    alarm = rate_upper(false_alarms, others, confidence=each)
    return max(0.0, _ratio(hit - delta, alarm), _ratio(1.0 - alarm - delta, 1.0 - hit))


def _ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0.0 and below > 0.0 else 0.0


def _check(successes: int, trials: int, confidence: float) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(
            f"{successes} successes in {trials} trials", fix="Give at least one trial, successes among them"
        )
    if not 0.0 < confidence < 1.0:
        raise InputError("a confidence must be between 0 and 1", fix="Give a number such as 0.95")
