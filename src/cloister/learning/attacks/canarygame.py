"""The canary game: each canary is in or out, the mechanism runs, and an adversary guesses from what it sees.

For each run, in this order: every canary is put in with probability 1/2; the mechanism makes all its steps;
at each step the adversary, who knows model, clip, other rows and the canaries, but not the coins, the samples
or the counted noise, adds to each canary's score the log-likelihood ratio

    log sum over j of Binomial(k, q; j) exp((j z - j^2 |p|^2 / 2) / v)

with p what the canary would add to the sum, z the part of the noisy sum along p beyond what the others are
expected to add, v the noise's variance and that of the others along p, k the sites a unit may be at. That is
the best test of one canary against Gaussian noise. It is the white-box score: it uses what the hub sees. The
black-box score uses the final model alone: how far it moved the way the canary pulls.

Canaries are last in a site's rows, so that leaving one out moves no other row into another microbatch.

The coins come from the operating system, not from the mechanism's randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.attacks.canaries import Canaries
from cloister.learning.attacks.mechanism import Claim, Integers, Mechanism, Rows
from cloister.learning.heads import Array

__all__ = ["Game", "play"]

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, eq=False)
class Game:
    """What was in, and what the adversary thinks.

    Attributes:
        included: bool[runs, m], the coins.
        white: float64[runs, m], log-likelihood ratios from the noisy sums; above 0 says in.
        black: float64[runs, m], scores from the final model; larger says in, on no scale.
    """

    included: NDArray[np.bool_]
    white: Array
    black: Array

    @property
    def canaries(self) -> int:
        """Coins in all runs together."""
        return self.included.size

    def shares(self) -> Array:
        """Return the share of canaries that are guessed right in each run by `white`, float64[runs].

        In is guessed above a threshold: the one that would have been best in the runs before, whose coins are
        known by then; in the first run its own median. So a wrong claim does not make the guesses worse, and
        no run's guesses know its coins.
        """
        right = np.empty(len(self.white))
        for run, (scores, included) in enumerate(zip(self.white, self.included, strict=True)):
            bar = _best_bar(self.white[:run], self.included[:run]) if run else float(np.median(scores))
            right[run] = ((scores > bar) == included).mean()
        return right

    def surest(self, scores: Array, guesses: int) -> int:
        """Return how many are right when the `guesses` surest are guessed, half as in and half as out.

        Args:
            scores: `white` or `black`.
            guesses: even, at most `canaries`.
        """
        order = np.argsort(scores, axis=None, kind="stable")
        included = self.included.reshape(-1)[order]
        side = guesses // 2
        return int((~included[:side]).sum() + included[self.canaries - side :].sum())


def play(
    mechanism: Mechanism,
    start: Array,
    canaries: Canaries,
    background: Sequence[Rows],
    *,
    runs: int,
    progress: Progress | None = None,
    insecure_test_random: StreamRandom | None = None,
) -> Game:
    """Play the game.

    Args:
        mechanism: what is audited.
        start: float64[d], the model before the first step.
        canaries: m rows.
        background: rows that are always in, one part for each counted site; known to the adversary.
        runs: how often; independent of each other.
        progress: told after each run.
        insecure_test_random: the coins of a test.

    Raises:
        InputError: parts do not fit the claim, or there is no run.
    """
    claim = mechanism.claim
    if len(background) != claim.shares or runs < 1:
        raise InputError("a game needs at least one run, and a part for each counted site", fix="Give them")
    random = insecure_test_random or StreamRandom.system()
    included = random.integers(2, (runs, len(canaries))).astype(np.bool_)
    white, black = np.zeros(included.shape), np.zeros(included.shape)
    known = _known(background)
    for run in range(runs):
        white[run], black[run] = _play_once(mechanism, start, canaries, background, known, included[run])
        if progress is not None:
            progress(run + 1, runs)
    return Game(included, white, black)


def _play_once(
    mechanism: Mechanism,
    start: Array,
    canaries: Canaries,
    background: Sequence[Rows],
    known: Rows,
    included: NDArray[np.bool_],
) -> tuple[Array, Array]:
    claim = mechanism.claim
    run = mechanism.begin(start, _with_canaries(background, canaries, included, claim.sites_per_unit))
    total = np.zeros(len(canaries))
    first = mechanism.signals(start, canaries.rows, run.clip)
    for _ in range(claim.steps):
        params, clip = run.params, run.clip
        signals = mechanism.signals(params, canaries.rows, clip)
        others = mechanism.signals(params, known, clip)
        total += _log_ratios(run.look(), signals, others, claim)
    moved = run.finish() - start
    pull = first[:, : mechanism.size]
    black: Array = -(pull @ moved) / np.maximum(np.linalg.norm(pull, axis=1), 1e-300)
    # an update of a unit is where it wants the model to go; a gradient is the other way
    return total, black if claim.by_record else -black


def _best_bar(scores: Array, included: NDArray[np.bool_]) -> float:
    """Return the middle of the gap in `scores` that parts in from out best."""
    order = np.argsort(scores, axis=None)
    ranked, coins = scores.reshape(-1)[order], included.reshape(-1)[order]
    # right answers with the k lowest guessed out and the rest in
    right = np.concatenate([[0], np.cumsum(~coins)]) + np.concatenate([np.cumsum(coins[::-1])[::-1], [0]])
    k = int(np.median(np.flatnonzero(right == right.max())))
    edges = np.concatenate([[ranked[0] - 1.0], ranked, [ranked[-1] + 1.0]])
    return float((edges[k] + edges[k + 1]) / 2.0)


def _known(background: Sequence[Rows]) -> Rows:
    return np.concatenate([X for X, _ in background]), np.concatenate([y for _, y in background])


def _with_canaries(
    background: Sequence[Rows], canaries: Canaries, included: NDArray[np.bool_], copies: int
) -> list[Rows]:
    """Return the sites' rows, canaries last: number i at sites i, i + 1, ..., as many as a unit may be at."""
    sites = len(background)
    parts = []
    for site, (X, y) in enumerate(background):
        here = [
            i for i in np.flatnonzero(included) if any((i + copy) % sites == site for copy in range(copies))
        ]
        parts.append((np.concatenate([X, canaries.X[here]]), np.concatenate([y, canaries.y[here]])))
    return parts


def _log_ratios(seen: Integers, signals: Array, others: Array, claim: Claim) -> Array:
    """Return each canary's log-likelihood ratio of one step, float64[m]; see the module's docstring."""
    q, k = claim.rate, claim.sites_per_unit
    squares = np.vecdot(signals, signals)
    lengths = np.maximum(squares, 1e-300)
    overlap = signals @ signals.T  # [m, m]
    expected = q * others.sum(axis=0) + 0.5 * q * k * signals.sum(axis=0)
    along = signals @ (seen - expected) + 0.5 * q * k * squares  # its own expected part is put back
    spread = q * (1.0 - q) * np.square(signals @ others.T).sum(axis=1)
    each = 0.5 * k * q * (1.0 - q) + 0.25 * (k * q) ** 2  # variance of another canary's number of copies
    spread += each * (np.square(overlap).sum(axis=1) - squares**2)
    variance = claim.variance + spread / lengths
    copies = np.arange(k + 1)
    chances = np.array([math.comb(k, j) * q**j * (1.0 - q) ** (k - j) for j in copies])
    with np.errstate(divide="ignore"):
        terms = np.log(chances) + (
            (along[:, None] * copies - 0.5 * copies**2 * squares[:, None]) / variance[:, None]
        )
    ratios: Array = np.logaddexp.reduce(terms, axis=1)
    return ratios
