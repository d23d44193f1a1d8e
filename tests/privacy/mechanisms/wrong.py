"""Samplers as one might write them, each with one mistake. Seeded: they are wrong in every run alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from tests.privacy.mechanisms.goodness import Draw


def rounded_continuous(variance: float) -> Draw:
    """round(N(0, variance)): its variance is 1/12 too large, and its doubles leak besides."""
    rng = np.random.default_rng(1)
    return lambda count: np.rint(rng.normal(0.0, math.sqrt(variance), count)).astype(np.int64)


def scaled(draw: Draw, factor: float) -> Draw:
    """A standard deviation that is off by a factor."""
    rng = np.random.default_rng(2)

    def scaled_draw(count: int) -> NDArray[np.int64]:
        x = draw(count) * factor
        return np.floor(x + rng.random(count)).astype(np.int64)

    return scaled_draw


def shifted(draw: Draw) -> Draw:
    """Off by one: the table's first outcome is not where it is thought to be."""
    return lambda count: draw(count) + 1


def truncated(draw: Draw, limit: float) -> Draw:
    """No tail: what is beyond the limit is drawn again."""

    def cut(count: int) -> NDArray[np.int64]:
        x = draw(count)
        while (beyond := np.abs(x) > limit).any():
            x[beyond] = draw(int(np.count_nonzero(beyond)))
        return x

    return cut


def biased_residue(draw: Draw) -> Draw:
    """One odd number in twenty becomes even."""
    rng = np.random.default_rng(3)

    def biased(count: int) -> NDArray[np.int64]:
        x = draw(count)
        return x - np.where(rng.random(count) < 0.05, x % 2, 0) * np.where(rng.random(count) < 0.5, 1, -1)

    return biased


def repeated(draw: Draw) -> Draw:
    """The same stream in every call."""
    kept: dict[int, NDArray[np.int64]] = {}
    return lambda count: kept.setdefault(count, draw(count)).copy()


def short_period(draw: Draw, period: int = 1) -> Draw:
    """A stream whose every value comes twice."""
    return lambda count: np.repeat(draw(-(-count // 2)), 2)[:count]
