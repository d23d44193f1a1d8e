"""What many noisy values say together: unbiased estimates of sums over the true values, with error bars.

An estimate is of the people who answered, not of a larger population they may stand for: its error bar holds
the noise alone. (For a population add the spread of the sample, as for any survey.)

Everything here looks at released values and public mechanisms only, so it costs nothing and may be done by
anybody. Unbiased estimates may be negative, or above the number of people; cutting them off would make them
biased.

Counts use one formula. Let w_j(y) be a score of output y whose mean, whatever the true value x, is 1 if x
counts for j and 0 otherwise. Then the sum of the scores is unbiased for the count, and the sum of their
squares less the estimate is unbiased for its variance, since each score's variance is E w**2 - E[w]**2 and
E[w] is 0 or 1.

- Randomised response: w_j(y) = (1{y = j} - q) / (p - q).
- Discrete Laplace with q = exp(-1 / scale): its generating function is (1 - q)**2 / ((1 - q z)(1 - q / z)),
  so a function f of the true grid point has the score ((1 + q**2) f(y) - q f(y - 1) - q f(y + 1)) / (1 -
  q)**2. For the indicator of an interval it is large at both ends, about scale**2: of use on a coarse grid;
  where bars are wanted from the start, randomised response over the bars is far better.
- Planar noise cut off at the region: the lattice's transition matrix is inverted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.local.bounded import BoundedGaussian, BoundedLaplace
from cloister.privacy.local.response import Response

__all__ = ["Estimate", "estimate_bars", "estimate_counts", "estimate_mean", "normal_factor", "scored"]

_NORMAL_FROM: Final = 400  # people; the sum of so many Laplace variables is normal as far as 95 % goes
_CELLS: Final = 1 << 16


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An unbiased estimate and how far it may be off.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
        confidence: how often such an interval holds the true value.
        deviation: standard deviation of the estimate.
    """

    value: float
    low: float
    high: float
    confidence: float
    deviation: float


def estimate_counts(
    response: Response, answers: NDArray[np.int64], *, confidence: float = 0.95
) -> tuple[Estimate, ...]:
    """Return for each category how many people it is true of.

    The interval is Wilson's for the two binomials (answers of those it is true of, and of the others), with a
    continuity correction; each bar has its own, they do not hold all at once.

    Args:
        response: how the answers were made.
        answers: int64[n], numbers of categories.
        confidence: of each interval.

    Raises:
        InputError: an answer is no category, there is none, or the confidence is not within 0.5 to 1.
    """
    z = normal_factor(confidence)
    count = len(answers)
    if not count or not 0 <= int(answers.min()) <= int(answers.max()) < len(response.categories):
        raise InputError(
            "answers must be numbers of categories, at least one", fix="Check that the file is whole"
        )
    p, q = response.chances
    said = np.bincount(answers, minlength=len(response.categories))
    return tuple(_binomials(int(yes), count, p, q, z, confidence) for yes in said)


def _binomials(yes: int, count: int, p: float, q: float, z: float, confidence: float) -> Estimate:
    """Return the estimate of m from yes ~ Bin(m, p) + Bin(count - m, q)."""
    gain = p - q
    value = (yes - count * q) / gain
    likely = min(max(value, 0.0), float(count))
    variance = likely * p * (1 - p) + (count - likely) * q * (1 - q)
    ends = []
    for side in (-1.0, 1.0):  # solve (gain m - d)**2 = z**2 (count q (1 - q) + m slope) for m
        d = yes + side * 0.5 - count * q
        slope = z * z * (p * (1 - p) - q * (1 - q))
        middle = d / gain + slope / (2 * gain * gain)
        square = middle**2 - (d * d - z * z * count * q * (1 - q)) / (gain * gain)
        ends.append(middle + side * math.sqrt(max(square, 0.0)))
    return Estimate(value, min(ends[0], value), max(ends[1], value), confidence, math.sqrt(variance) / gain)


def estimate_mean(
    mechanism: BoundedLaplace | BoundedGaussian, released: NDArray[Any], *, confidence: float = 0.95
) -> Estimate:
    """Return the mean of the true values (moved into their bounds), in their unit.

    Args:
        mechanism: how they were released.
        released: float64[n], as released, not cut off.
        confidence: of the interval.

    Raises:
        InputError: a value is no point of the grid, there is none, or the confidence is out of range.
    """
    z = normal_factor(confidence)
    numbers = mechanism.grid.read(released)
    if not len(numbers):
        raise InputError("there is no released value", fix="Give at least one")
    count, step = len(numbers), mechanism.grid.step
    value = mechanism.grid.low + step * float(numbers.mean())
    deviation = math.sqrt((mechanism.variance + step**2 / 4.0) / count)  # 1/4 bounds the variance of rounding
    if isinstance(mechanism, BoundedGaussian) or count >= _NORMAL_FROM:
        half = z * deviation
    else:
        noise = _laplace_quantile(mechanism.scale, count, confidence) * step / count
        half = math.hypot(noise, z * step / 2.0 / math.sqrt(count))
    return Estimate(value, value - half, value + half, confidence, deviation)


@functools.lru_cache(maxsize=256)
def _laplace_quantile(scale: float, count: int, confidence: float) -> float:
    """Return h: the sum of `count` discrete Laplace variables is within +-h that often, or more often.

    From the characteristic function ((1 - q)**2 / (1 - 2 q cos t + q**2))**count, by one Fourier transform.
    """
    zoom = max(1.0, scale * math.sqrt(2 * count) / (_CELLS / 64))
    q = math.exp(-zoom / scale)
    t = 2.0 * math.pi * np.arange(_CELLS) / _CELLS
    transform = ((1 - q) ** 2 / (1 - 2 * q * np.cos(t) + q * q)) ** count
    mass = np.fft.fft(transform).real / _CELLS
    within = np.cumsum(np.concatenate((mass[:1], 2 * mass[1 : _CELLS // 2])))
    return float(np.searchsorted(within, confidence - 1e-12)) * zoom


def estimate_bars(
    laplace: BoundedLaplace, released: NDArray[Any], edges: Sequence[float], *, confidence: float = 0.95
) -> tuple[Estimate, ...]:
    """Return how many true values lie in each bar [edge, next edge), the last one closed.

    Args:
        laplace: how the values were released. Gaussian noise has no such estimate: undoing it is ill-posed.
        released: float64[n], as released.
        edges: rising; the first is the grid's lower bound, the last its upper.
        confidence: of each interval.

    Raises:
        InputError: the edges do not fit, a value is no point of the grid, or there is none.
    """
    normal_factor(confidence)
    grid = laplace.grid
    ends = (grid.low, grid.high)
    rising = len(edges) > 1 and list(edges) == sorted(set(edges))
    if not rising or (edges[0], edges[-1]) != ends:
        raise InputError("the bars' edges must rise from the lower bound to the upper", fix="Correct them")
    numbers = grid.read(released)
    if not len(numbers):
        raise InputError("there is no released value", fix="Give at least one")
    starts = np.array([math.ceil((edge - grid.low) / grid.step - 1e-9) for edge in edges[1:-1]])
    bars = len(edges) - 1
    q = math.exp(-1.0 / laplace.scale)
    scores = np.zeros((len(numbers), bars))
    weights = ((-1, -q), (0, 1 + q * q), (1, -q))
    for shift, weight in weights:  # which bar y - 1, y and y + 1 are in; the outer bars go on for ever
        bar = np.searchsorted(starts, numbers + shift, side="right")
        scores[np.arange(len(numbers)), bar] += weight / (1 - q) ** 2
    return scored(scores, confidence=confidence)


def scored(scores: NDArray[np.float64], *, confidence: float) -> tuple[Estimate, ...]:
    """Return one estimate of a count for each column of float64[n, k], by the formula above."""
    z = normal_factor(confidence)
    estimates = []
    for column in scores.T:
        value = float(column.sum())
        deviation = math.sqrt(max(float(column @ column) - min(max(value, 0.0), float(len(column))), 0.0))
        estimates.append(Estimate(value, value - z * deviation, value + z * deviation, confidence, deviation))
    return tuple(estimates)


def normal_factor(confidence: float) -> float:
    """Return how many standard deviations a two-sided normal interval spans to each side."""
    if not 0.5 <= confidence < 1.0:
        raise InputError("a confidence must be 0.5 or more and below 1", fix="Choose one, say 0.95")
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)
