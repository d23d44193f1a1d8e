"""Exposure: how much easier a model makes it to guess a planted secret (Carlini et al. 2019, section 4).

    exposure = log2 |space| - log2 rank

rank is the planted secret's place when all secrets of its space are ordered by the model's loss, ties counted
against it being remembered. It is computed

    exact     where all others were scored;
    sampled   from others that were drawn: the share that is at least as likely has an interval (Clopper and
              Pearson), and so has exposure, which cannot be seen to be larger than the sample allows;
    fitted    beside it: a skew-normal law of the drawn losses says how small the share below the planted one
              is (section 4.3 of the paper). A law is an assumption: its Kolmogorov-Smirnov p-value stands
              beside it, and nothing is concluded from it.

A secret was drawn uniformly. If a model does not depend on it, its rank among all, or among drawn ones, is
uniform too, whatever the model prefers: (1 + others at least as likely) / (1 + others) is a p-value that
assumes nothing. `chance_p_value` puts those of several secrets together. At chance exposure is above e bits
with probability 2^-e, and 1.44 bits on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.privacy.auditing import rate_interval

__all__ = ["CHANCE_BITS", "Exposure", "chance_p_value", "exposure_of"]

CHANCE_BITS = 1.0 / math.log(2.0)
"""Mean exposure of secrets that were never planted."""

_GRID = 1 / 64  # of -ln p, where laws of ranks are added up
_FINE = 64  # values of a rank from which on its p-value counts as continuous


class Exposure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How exposed one planted secret is; all in bits but `p_value`.

    Attributes:
        kind: of secret.
        copies: how often it was planted.
        space: the largest that exposure may be.
        bits: exposure; from a sample, an estimate that the sample's size limits.
        low, high: an interval of it at the stated confidence; `bits` twice where it is exact.
        fitted: by the skew-normal law; None where all others were scored, or no law fits at all.
        fit_p_value: of that law's fit.
        p_value: chance of so high a rank if the model does not know the secret.
        others: secrets that it was ranked among.
    """

    kind: str
    copies: int
    space: float
    bits: float
    low: float
    high: float
    fitted: float | None
    fit_p_value: float | None
    p_value: float
    others: int


def exposure_of(
    kind: str, copies: int, space: int, planted: float, others: Array, *, confidence: float = 0.95
) -> Exposure:
    """Return the exposure of one secret.

    Args:
        kind: of it.
        copies: how often it was planted.
        space: secrets that there are, itself counted.
        planted: the model's loss of it, in nats.
        others: float64[n], losses of all others, or of as many drawn ones.
        confidence: of the interval.

    Raises:
        InputError: there are no others, or a loss is not finite.
    """
    count = len(others)
    if not count or not (np.isfinite(others).all() and math.isfinite(planted)):
        raise InputError(
            "an exposure needs finite losses of a secret and of others",
            where="audit",
            fix="A model that gives none diverged in training",
        )
    ahead = int((others <= planted).sum())
    p_value, whole = (1 + ahead) / (1 + count), math.log2(space)
    if count >= space - 1:
        exact = whole - math.log2(1 + ahead)
        return Exposure(kind, copies, whole, exact, exact, exact, None, None, p_value, count)
    least, most = rate_interval(ahead, count, confidence=confidence)
    fitted, fit = _skew_normal(planted, others)

    def bits(share: float) -> float:
        return whole - math.log2(1.0 + share * (space - 1))

    return Exposure(
        kind,
        copies,
        whole,
        min(whole, -math.log2(p_value)),
        bits(most),
        bits(least),
        None if fitted is None else min(whole, fitted),
        fit,
        p_value,
        count,
    )


def chance_p_value(found: Sequence[Exposure]) -> float:
    """Return the chance of ranks so high together if a model knows none of the secrets.

    Fisher's sum of -ln p. Where ranks have few values their own law is added up, each -ln p rounded upwards.

    Raises:
        InputError: there is none.
    """
    from scipy.stats import gamma

    if not found:
        raise InputError("no secret was ranked", where="audit", fix="Plant at least one")
    total = -math.fsum(math.log(each.p_value) for each in found)
    if min(each.others for each in found) + 1 >= _FINE:
        return float(gamma.sf(total, len(found)))
    return _exact_tail(total, [each.others + 1 for each in found])


def _exact_tail(total: float, values: Sequence[int]) -> float:
    """Return P[sum of -ln(rank / n) >= total] for ranks uniform on 1..n, rounded upwards."""
    laws = [_law(n) for n in values]
    length = sum(len(law) - 1 for law in laws) + 1
    size = 1 << max(1, (length - 1).bit_length())
    product = np.ones(size // 2 + 1, dtype=np.complex128)
    for law in laws:
        product *= np.fft.rfft(law, size)
    summed = np.clip(np.fft.irfft(product, size)[:length], 0.0, None)
    first = max(0, math.ceil(total / _GRID - 1e-9))
    return min(1.0, float(summed[first:].sum()) + 1e-12)


def _law(n: int) -> Array:
    """Return the probabilities of -ln(rank / n) on the grid, each value rounded upwards."""
    places = np.ceil(-np.log(np.arange(1, n + 1) / n) / _GRID - 1e-9).astype(np.int64)
    law: Array = np.bincount(places).astype(np.float64) / n
    return law


def _skew_normal(planted: float, others: Array) -> tuple[float | None, float | None]:
    """Return -log2 of the share below `planted` by a fitted law, and the fit's p-value; None without one."""
    from scipy.stats import kstest, skewnorm

    if len(others) < 30 or float(np.ptp(others)) <= 1e-9 * max(1.0, float(np.abs(others).max())):
        return None, None
    mean, deviation = others.mean(), others.std()
    third = float(((others - mean) ** 3).mean() / deviation**3)
    shape, place, scale = _moments(float(mean), float(deviation), third)
    start = (shape, place, scale)
    try:
        with np.errstate(all="ignore"):
            fitted = skewnorm.fit(others, start[0], loc=start[1], scale=start[2])
    except (ValueError, FloatingPointError, RuntimeError):
        fitted = start
    if not np.isfinite(fitted).all() or fitted[2] <= 0.0:
        fitted = start
    bits = -_log_share((planted - fitted[1]) / fitted[2], fitted[0]) / math.log(2.0)
    return max(0.0, bits), float(kstest(others, skewnorm(*fitted).cdf).pvalue)


def _moments(mean: float, deviation: float, third: float) -> tuple[float, float, float]:
    """Return shape, place and scale of the skew-normal law of these moments (Azzalini 1985)."""
    skew = min(0.99, abs(third))
    power = (2.0 * skew / (4.0 - math.pi)) ** (2.0 / 3.0)
    delta = math.copysign(min(0.999, math.sqrt(math.pi / 2.0 * power / (1.0 + power))), third)
    scale = deviation / math.sqrt(1.0 - 2.0 * delta**2 / math.pi)
    return delta / math.sqrt(1.0 - delta**2), mean - scale * delta * math.sqrt(2.0 / math.pi), scale


def _log_share(x: float, shape: float) -> float:
    """Return ln of the skew-normal distribution function, far into its tail: by a sum of its density."""
    from scipy.special import log_ndtr, logsumexp

    # the density falls at least like a Gaussian's, so that 40 widths below x nothing is left
    width = 1.0 / max(1.0, abs(x) * (1.0 + shape**2 * (shape > 0.0)))
    steps = np.concatenate([np.linspace(0.0, 60.0 * width, 4001), np.linspace(60.0 * width, 45.0, 4001)[1:]])
    at = x - steps
    density = math.log(2.0) - 0.5 * at**2 - 0.5 * math.log(2.0 * math.pi) + log_ndtr(shape * at)
    weights = np.gradient(steps)
    return min(0.0, float(logsumexp(density, b=weights)))
