"""Renyi moments of a pair at one integer order: log E_Q[(P/Q)^order], the larger of both directions.

Divided by order - 1 it is the Renyi divergence. For a pair that a reflection exchanges, sampled by Poisson,
the sampled side against the other is the larger direction (docs/proofs/dominating-pairs.md), and the binomial
sum is exact. A mixture over several sites has an exact sum for one direction and an upper bound, off by about
1e-6 of itself, for the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

from cloister.privacy.accounting.mixture import MOST_TERMS, mixed_moment
from cloister.privacy.accounting.pairs import (
    CappedPair,
    FewPointsPair,
    FixedSizePair,
    GaussianPair,
    IntegerLaplacePair,
    LaplacePair,
    Pair,
)

__all__ = ["capped_probabilities", "log_moment"]


@lru_cache(maxsize=65536)
def log_moment(pair: Pair, order: int) -> float:
    """Return log E_Q[(P/Q)^order] of one run, or a bound on it, in nats; order >= 2. It may be inf."""
    return max(0.0, _log_moment(pair, order))


def _log_moment(pair: Pair, order: int) -> float:
    if isinstance(pair, GaussianPair):
        return _sampled(lambda j: j * (j - 1) / (2 * pair.noise**2), pair.rate, order)
    if isinstance(pair, LaplacePair):
        return _sampled(lambda j: _laplace(1 / pair.scale, j), pair.rate, order)
    if isinstance(pair, IntegerLaplacePair):
        return _sampled(lambda j: _integer_laplace(pair.scale, pair.shift, j), pair.rate, order)
    if isinstance(pair, FewPointsPair):
        return max(_points(pair.upper, pair.lower, order), _points(pair.lower, pair.upper, order))
    if isinstance(pair, CappedPair):
        return _capped(pair, order)
    if isinstance(pair, FixedSizePair):
        return _fixed_size(pair, order)
    if order * pair.sites > MOST_TERMS:  # in the sample of any site, and then with all sites' parts
        crude = GaussianPair(pair.noise / pair.sites, -math.expm1(pair.sites * math.log1p(-pair.rate)))
        return _log_moment(crude, order)
    return mixed_moment(pair, order)


def capped_probabilities(pair: CappedPair) -> tuple[float, float]:
    """Return P[the sample is cut | the unit is in it] and P[the unit stays | the sample is cut]."""
    from scipy.stats import binom

    cut = float(binom.sf(pair.cap - 1, pair.size - 1, pair.rate))
    if cut == 0.0:
        return 0.0, 0.0
    return cut, min(1.0, float(binom.sf(pair.cap, pair.size, pair.rate)) * pair.cap / cut / pair.size)


def _sampled(base: Callable[[int], float], rate: float, order: int) -> float:
    """E_Q[(1 - rate + rate L)^order] from log E_Q[L^j]; the 1 that a binomial sums to is taken out first."""
    if rate == 1.0:
        return base(order)
    out, into = math.log1p(-rate), math.log(rate)
    terms, ways = [], 0.0  # ways: log of binom(order, j)
    for j in range(1, order + 1):
        ways += math.log((order - j + 1) / j)
        if j > 1:
            terms.append(ways + (order - j) * out + j * into + _log_expm1(base(j)))
    return _log1p_exp(_log_sum(terms))


def _laplace(epsilon: float, order: int) -> float:
    """Mironov 2017, proposition 6."""
    return _log_sum(
        (
            math.log(order / (2 * order - 1)) + (order - 1) * epsilon,
            math.log((order - 1) / (2 * order - 1)) - order * epsilon,
        )
    )


def _integer_laplace(scale: float, shift: int, order: int) -> float:
    """Sum over the integers, in three parts: up to 0, between, from `shift` on."""
    normaliser = math.log1p(math.exp(-1 / scale))  # P(0) = (1 - a) / (1 + a), P(x <= 0) = 1 / (1 + a)
    below = -normaliser - order * shift / scale
    above = -normaliser - shift / scale + order * shift / scale
    # a^(x + order (shift - 2 x)) for x = 1 .. shift - 1: a geometric sum, taken from its largest term down
    steps, ratio = shift - 1, (2 * order - 1) / scale
    if steps == 0:
        return _log_sum((below, above))
    last = (-steps + order * (2 * steps - shift)) / scale
    inner = last + _log_one_minus_exp(-steps * ratio) - _log_one_minus_exp(-ratio)
    return _log_sum((below, above, _log_one_minus_exp(-1 / scale) - normaliser + inner))


def _points(upper: tuple[float, ...], lower: tuple[float, ...], order: int) -> float:
    return _log_sum(
        order * math.log(p) + (1 - order) * math.log(q) for p, q in zip(upper, lower, strict=True)
    )


def _capped(pair: CappedPair, order: int) -> float:
    """Whether the sample is cut without the unit is given away; where it is, whether the unit stays is too.

    Under zero-out a unit that stays in a cut sample moves the sum by its own part, whomever it displaced.
    """
    cut, stays = capped_probabilities(pair)
    uncut = log_moment(GaussianPair(pair.noise, pair.rate), order)
    if cut == 0.0:
        return uncut
    moved = order * (order - 1) / (2 * pair.noise**2)
    given_away = _log_sum((_log(1 - stays), _log(stays) + moved))
    return _log_sum((_log(1 - cut) + uncut, math.log(cut) + given_away))


def _fixed_size(pair: FixedSizePair, order: int) -> float:
    """Wang, Balle, Kasiviswanathan 2019, theorem 27."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant([order], dp_accounting.NeighboringRelation.REPLACE_ONE)
    # only the ratio of the two sizes enters
    size = 2**53
    accountant.compose(
        dp_accounting.SampledWithoutReplacementDpEvent(
            size, pair.rate * size, dp_accounting.GaussianDpEvent(pair.noise)
        )
    )
    return float(accountant.rdp[0]) * (order - 1)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _log_sum(logs: Iterable[float]) -> float:
    """Return log of the sum of exp of `logs`."""
    terms = list(logs)
    largest = max(terms)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


def _log1p_exp(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def _log_expm1(x: float) -> float:
    """Return log(e^x - 1) for x > 0; -inf where x has vanished."""
    if x <= 0:
        return -math.inf
    return x + math.log1p(-math.exp(-x)) if x > 1 else math.log(math.expm1(x))


def _log_one_minus_exp(x: float) -> float:
    """Return log(1 - e^x) for x < 0."""
    return math.log(-math.expm1(x))
