"""Lower bounds on epsilon from one run with many canaries.

The game. Each of m canaries is put into the data with probability 1/2, independently of all else. The
mechanism runs once. Whoever sees its output guesses for exactly r canaries whether they are in, and is right
for v of them; r is fixed before, which canaries are guessed may depend on the output. Runs with canaries of
their own may be put together as if they were one: a canary reaches its own run alone.

Two null hypotheses are tested. Each p-value bounds the chance of v or more right guesses if it holds, so a
small one refutes it.

- (epsilon, delta): Steinke, Nasr, Jagielski 2023, theorem 5.2 with the listing of its appendix D. With
  W ~ Binomial(r, 1 / (1 + e^-epsilon)):

      P[right >= v]  <=  P[W >= v] + 2 m delta max over i in 1..v of P[v - i <= W < v] / i

- a whole trade-off function f: Mahloujifar, Melis, Chaudhuri 2025. Let N be the number of right guesses,
  p_i = P[N = i], R_i = sum over l >= i of l p_l / m and H_i = sum over l >= i of (r - l) p_l / m. Fix all
  bits but one canary's: "it is guessed right and N >= i" and "it is guessed wrong and N >= i - 1" are the
  same event of the output, under the two inputs. Averaged over canaries, with f convex, H_{i-1} >= f(1 - R_i)
  for every i. If P[N >= v] = tau then these inequalities ask for the least total mass when all of tau sits at
  v and each p_i below is as small as it can be (mass moved one down lowers every R and raises every H that
  still matters); if even that needs more than 1, tau is impossible. `docs/proofs/audit.md` has it in full.

The second is tighter, and needs f: `PrivacyCurve` of a claimed (epsilon, delta) assumes nothing else, the
curve of a plan's own mechanism is sharper still. What neither says: that a mechanism is private. A bound of 0
is the absence of evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cloister.errors import InputError
from cloister.privacy.auditing.tradeoff import PrivacyCurve, TradeOff

__all__ = [
    "epsilon_bound",
    "p_value",
    "refutes",
    "tradeoff_bound",
    "tradeoff_epsilon_bound",
    "tradeoff_p_value",
]

_STEPS = 40
_PARTS = 8
_LARGEST_EPSILON = 100.0


def p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of so many right guesses against an (epsilon, delta) mechanism.

    Args:
        canaries: m.
        guesses: r.
        correct: v.
        epsilon: 0 or more.
        delta: 0 to 1.

    Raises:
        InputError: not 0 <= v <= r <= m, or epsilon or delta out of range.
    """
    from scipy.stats import binom

    _check_counts(canaries, guesses, correct)
    if not (epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise InputError("epsilon or delta is out of range", fix="Give epsilon >= 0 and delta of 0 to 1")
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    if not delta or not correct:
        return min(1.0, tail)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
    steepest = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2.0 * canaries * delta * steepest)


def epsilon_bound(canaries: int, guesses: int, correct: int, *, delta: float, confidence: float) -> float:
    """Return the largest epsilon that the guesses refute: with this confidence the mechanism's is larger.

    Args:
        canaries: m.
        guesses: r.
        correct: v.
        delta: the claim's.
        confidence: such as 0.95; the bound is wrong in at most 1 - confidence of all audits.

    Returns:
        Epsilon, rounded down; 0 where nothing is refuted.

    Raises:
        InputError: as `p_value`, or a confidence that is not between 0 and 1.
    """
    level = _level(confidence)

    def refuted(epsilon: float) -> bool:
        # the term of delta need not grow with epsilon: what refutes one must refute those below it too
        below = [epsilon * part / _PARTS for part in range(_PARTS, -1, -1)] if delta else [epsilon]
        return all(p_value(canaries, guesses, correct, epsilon=each, delta=delta) < level for each in below)

    return _largest(refuted)


def refutes(tradeoff: TradeOff, canaries: int, guesses: int, correct: int, level: float) -> bool:
    """Return whether so many right guesses have a chance below `level` for every mechanism with this f.

    Raises:
        InputError: not 0 <= v <= r <= m, or `level` is not in (0, 1].
    """
    _check_counts(canaries, guesses, correct)
    if not 0.0 < level <= 1.0:
        raise InputError("a level must be above 0 and at most 1", fix="Give 1 - confidence")
    total = guesses / canaries
    right = level * correct / canaries
    wrong = level * (guesses - correct) / canaries
    for i in range(correct, 0, -1):
        least = tradeoff.missed(min(1.0, max(0.0, 1.0 - right)))
        if least > wrong:
            right += (least - wrong) * (i - 1) / (guesses - i + 1)
            wrong = least
        if right + wrong > total * (1.0 + 1e-12):  # the sums' rounding must not refute
            return True
    return False


def tradeoff_p_value(tradeoff: TradeOff, canaries: int, guesses: int, correct: int) -> float:
    """Return the smallest level that `refutes` does not reach, rounded up: the p-value of the guesses.

    Args and errors as for `refutes`.
    """
    low, high = 0.0, 1.0  # `high` refutes, `low` does not
    if not refutes(tradeoff, canaries, guesses, correct, 1.0):
        return 1.0
    for _ in range(_STEPS):
        middle = math.sqrt(low * high) if low > 0.0 else high / 1024.0
        if middle < 1e-300:
            break
        if refutes(tradeoff, canaries, guesses, correct, middle):
            high = middle
        else:
            low = middle
        if low > 0.0 and high / low < 1.001:
            break
    return high


def tradeoff_epsilon_bound(
    canaries: int, guesses: int, correct: int, *, delta: float, confidence: float
) -> float:
    """As `epsilon_bound`, by the trade-off function of (epsilon, delta) alone: nothing else is assumed."""
    level = _level(confidence)

    def refuted(epsilon: float) -> bool:
        return refutes(PrivacyCurve([(epsilon, delta)]), canaries, guesses, correct, level)

    return _largest(refuted)


def tradeoff_bound(
    family: Callable[[float], TradeOff],
    canaries: int,
    guesses: int,
    correct: int,
    *,
    confidence: float,
    low: float,
    high: float,
    tolerance: float = 0.01,
) -> float:
    """Return the largest parameter of a family whose trade-off function the guesses refute.

    Args:
        family: parameter to trade-off function, less private as the parameter grows; such as the curves of
            one mechanism by the inverse of its noise.
        canaries: m.
        guesses: r.
        correct: v.
        confidence: such as 0.95.
        low: a parameter to start from, above 0.
        high: the largest to try.
        tolerance: relative width at which the search ends.

    Returns:
        The parameter, rounded down; 0 where not even `low` is refuted.
    """
    level = _level(confidence)

    def refuted(parameter: float) -> bool:
        return refutes(family(parameter), canaries, guesses, correct, level)

    if not refuted(low):
        return 0.0
    if refuted(high):
        return high
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if refuted(middle):
            low = middle
        else:
            high = middle
    return low


def _largest(refuted: Callable[[float], bool]) -> float:
    """Return the largest epsilon that is refuted, within 1e-6, rounded down; 0 where none is."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
        if high > _LARGEST_EPSILON:
            return low
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if refuted(middle):
            low = middle
        else:
            high = middle
        if high - low < 1e-6:
            break
    return low


def _level(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise InputError("a confidence must be between 0 and 1", fix="Give a number such as 0.95")
    return 1.0 - confidence


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or canaries < 1:
        raise InputError(
            f"{correct} right of {guesses} guesses about {canaries} canaries",
            fix="Right guesses are among the guesses, and those among the canaries",
        )
