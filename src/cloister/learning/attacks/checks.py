"""Structural checks: is the mechanism the one that was accounted for? Measured on its integers, by name.

A bound from guesses says how much leaks; these say which part is not as claimed, often long before guesses
could. Each feeds the mechanism synthetic rows alone and compares what comes out with the `Claim`:

    contribution   one row's part of a sum is at most the sensitivity, however long its gradient
    sample sizes   rows in a step are Binomial(n, rate), each step anew: not all rows, not a fixed number
    noise shares   every counted site's noise has at least its variance, and the shape of a Gaussian
    summed noise   what the adversary sees of no rows has at least the counted variance, fresh in each step
    divisor        the server's step is the plan's: a constant divisor, learning rates, penalty

Where a check is statistical it fails by chance with probability below 1e-6. More noise than claimed passes:
it breaks no claim. A check that fails names a defect of the mechanism, not of the rows; none of the owner's
rows are used.
"""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import numpy as np

from cloister.learning.attacks.canaries import Canaries
from cloister.learning.attacks.mechanism import Mechanism, Rows, Run
from cloister.learning.heads import Array

__all__ = ["CHECKS", "Check", "structural_checks"]

CHECKS = ("contribution", "sample sizes", "noise shares", "summed noise", "divisor")

_LEVEL = 2e-7
_DRAWS = 6000  # integers of noise that a variance is measured on
_STEPS = 300  # steps whose sample sizes are counted
_MOST_TRIES = 4000


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One check.

    Attributes:
        name: of `CHECKS`.
        holds: whether the mechanism is as claimed.
        claimed: the figure that the claim gives.
        measured: the figure that was measured; on the same scale.
        detail: what was compared, one sentence part.
    """

    name: str
    holds: bool
    claimed: float
    measured: float
    detail: str


def structural_checks(
    mechanism: Mechanism, start: Array, canaries: Canaries, *, steps: int = _STEPS
) -> tuple[Check, ...]:
    """Return all checks, in the order of `CHECKS`.

    Args:
        mechanism: what is audited.
        start: float64[d].
        canaries: rows of long gradients, from `make_canaries`; or numbers of rows, X int64[m].
        steps: whose sample sizes are counted, 20 or more; fewer find less.
    """
    return (
        _contribution(mechanism, start, canaries),
        _sample_sizes(mechanism, start, canaries, steps),
        _noise_shares(mechanism, start, canaries),
        _summed_noise(mechanism, start, canaries),
        _divisor(mechanism, start, canaries),
    )


def _at_first(mechanism: Mechanism, start: Array, rows: Rows) -> Run:
    """Return a run whose first site has `rows` and whose others have none."""
    empty = (rows[0][:0], rows[1][:0])
    return mechanism.begin(start, [rows, *[empty] * (mechanism.claim.shares - 1)])


def _one(rows: Rows, at: int, stretch: float | None = None) -> Rows:
    X = rows[0][at : at + 1]
    return X if stretch is None else X * stretch, rows[1][at : at + 1]


def _contribution(mechanism: Mechanism, start: Array, canaries: Canaries) -> Check:
    claim = mechanism.claim
    tries = min(_MOST_TRIES, math.ceil(16.0 / claim.rate))
    probes = [_one(canaries.rows, at) for at in range(min(3, len(canaries)))]
    if canaries.X.dtype.kind == "f":
        probes += [_one(canaries.rows, 0, stretch) for stretch in (1e-3, 1e4)]
    longest = 0.0
    for probe in probes:
        run = _at_first(mechanism, start, probe)
        for _ in range(tries):
            length = float(np.linalg.norm(run.site_sum(0).astype(np.float64)))
            longest = max(longest, length)
            if length:
                break
    # sensitivity covers rounding: sqrt(d) units beyond the clip
    units = claim.grid.clip_units
    return Check(
        "contribution",
        longest <= claim.sensitivity,
        claim.sensitivity / units,
        longest / units,
        "longest contribution of one row to a sum, in clips",
    )


def _sample_sizes(mechanism: Mechanism, start: Array, canaries: Canaries, steps: int) -> Check:
    from scipy.stats import binom, chi2

    claim = mechanism.claim
    rows = int(min(20_000, max(32, math.ceil(20.0 / claim.rate))))
    X, y = _one(canaries.rows, 0)
    alone = _length_of_one(mechanism, start, (X, y))
    run = _at_first(mechanism, start, (np.repeat(X, rows, axis=0), np.repeat(y, rows)))
    counts = np.array([np.linalg.norm(run.site_sum(0).astype(np.float64)) for _ in range(steps)]) / alone
    mean, expected = float(counts.mean()), rows * claim.rate
    total = round(float(counts.sum()))
    trials = rows * steps
    law = binom(trials, claim.rate)
    likely = min(law.cdf(total), law.sf(total - 1)) >= _LEVEL / 2
    if claim.rate < 1.0:
        spread = float(np.square(counts - expected).sum() / (expected * (1.0 - claim.rate)))
        # the square of a binomial has a little more spread than that of a Gaussian: leave it room
        low, high = chi2.ppf(_LEVEL / 2, steps), chi2.ppf(1 - _LEVEL / 2, steps)
        likely = bool(likely) and 0.9 * low <= spread <= 1.3 * high
    return Check(
        "sample sizes",
        bool(likely),
        expected,
        mean,
        f"mean of {steps} samples of {rows} rows, and their spread",
    )


def _length_of_one(mechanism: Mechanism, start: Array, rows: Rows) -> float:
    """Return the length of one row's contribution, as the mechanism makes it."""
    run = _at_first(mechanism, start, rows)
    for _ in range(min(_MOST_TRIES, math.ceil(16.0 / mechanism.claim.rate))):
        length = float(np.linalg.norm(run.site_sum(0).astype(np.float64)))
        if length:
            return length
    return float(mechanism.claim.grid.clip_units)


def _noise_shares(mechanism: Mechanism, start: Array, canaries: Canaries) -> Check:
    claim = mechanism.claim
    run = _at_first(mechanism, start, (canaries.X[:0], canaries.y[:0]))
    draws = math.ceil(_DRAWS / (mechanism.size + claim.with_bit))
    shares = [
        np.concatenate([run.site_noise(site) for _ in range(draws)]).astype(np.float64)
        for site in range(claim.shares)
    ]
    least = min(float(np.square(noise).mean()) for noise in shares)
    enough = least >= claim.share_variance * _least_ratio(shares[0].size)
    apart = all(_unrelated(one, other) for one, other in pairwise(shares))
    return Check(
        "noise shares",
        enough and apart and all(_bell_shaped(noise) for noise in shares),
        math.sqrt(claim.share_variance) / claim.sensitivity,
        math.sqrt(least) / claim.sensitivity,
        "least deviation of one site's noise, in sensitivities; its shape; that sites differ",
    )


def _bell_shaped(noise: Array) -> bool:
    """Return whether integers look like a rounded Gaussian (the inequality of Dvoretzky et al.)."""
    from scipy.special import ndtr

    deviation = math.sqrt(float(np.square(noise).mean()))
    if not deviation:
        return False
    # to the middle between integers: there the distribution function of a rounded Gaussian is the Gaussian's
    values, counts = np.unique(noise, return_counts=True)
    distance = float(np.abs(np.cumsum(counts) / noise.size - ndtr((values + 0.5) / deviation)).max())
    return distance <= math.sqrt(math.log(2.0 / _LEVEL) / (2.0 * noise.size)) + 0.01


def _unrelated(one: Array, other: Array) -> bool:
    if not one.any() or not other.any():
        return True  # its variance says that already
    return abs(float(np.corrcoef(one, other)[0, 1])) <= 5.5 / math.sqrt(one.size)


def _summed_noise(mechanism: Mechanism, start: Array, canaries: Canaries) -> Check:
    claim = mechanism.claim
    coordinates = mechanism.size + claim.with_bit
    needed = math.ceil(_DRAWS / coordinates)
    seen: list[Array] = []
    while len(seen) < needed:
        run = _at_first(mechanism, start, (canaries.X[:0], canaries.y[:0]))
        seen += [run.look().astype(np.float64) for _ in range(min(claim.steps, needed - len(seen)))]
    noise = np.array(seen)
    variance = float(np.square(noise).mean())
    enough = variance >= claim.variance * _least_ratio(noise.size)
    return Check(
        "summed noise",
        bool(enough and _fresh(noise)),
        math.sqrt(claim.variance) / claim.sensitivity,
        math.sqrt(variance) / claim.sensitivity,
        "deviation of what is seen where no site has rows, in sensitivities; that steps differ",
    )


def _fresh(noise: Array) -> bool:
    """Return whether one step's noise does not tell the next one's."""
    return len(noise) < 2 or _unrelated(noise[:-1].reshape(-1), noise[1:].reshape(-1))


def _divisor(mechanism: Mechanism, start: Array, canaries: Canaries) -> Check:
    claim = mechanism.claim
    run = _at_first(mechanism, start, (canaries.X[:0], canaries.y[:0]))
    coordinates = mechanism.size + claim.with_bit
    pattern = ((np.arange(coordinates) % 7 - 3) * max(1, claim.grid.clip_units // 2)).astype(np.int64)
    before, clip = run.params.copy(), run.clip
    run.move(pattern)
    step = _planned_step(mechanism, before, pattern[: mechanism.size].astype(np.float64), clip)
    planned, moved = float(np.linalg.norm(step)), float(np.linalg.norm(run.params - before))
    right = np.allclose(run.params - before, step, rtol=1e-6, atol=1e-9 * planned)
    return Check("divisor", bool(right), planned, moved, "length of the server's step on a known sum")


def _planned_step(mechanism: Mechanism, params: Array, integers: Array, clip: float) -> Array:
    """Return the first step that the plan's formulas make of a sum, written out again from their papers."""
    claim, training = mechanism.claim, mechanism.claim.training
    mean = integers * clip / claim.grid.clip_units / claim.divisor
    if claim.by_record:
        mean = -training.learning_rate * (mean + training.l2 * np.where(mechanism.penalised, params, 0.0))
    if claim.local:
        return mean
    if training.algorithm == "fedadam":  # Reddi et al. 2021, algorithm 2: b1 0.9, b2 0.99, v starts at tau^2
        tau = 1e-3
        mean = 0.1 * mean / (np.sqrt(0.99 * tau**2 + 0.01 * mean**2) + tau)
    step: Array = training.server_rate * mean
    return step


def _least_ratio(values: int) -> float:
    """Return how small a variance of so many values may turn out, relative to its own, at the level."""
    from scipy.stats import chi2

    return float(chi2.ppf(_LEVEL, values) / values)
