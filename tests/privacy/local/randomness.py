"""Injected randomness for tests, and what a test may conclude from samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RandomBytes = Callable[[int], bytes]


def stream(seed: int) -> RandomBytes:
    """Bytes that are the same for the same seed, and new at each call."""
    calls = iter(range(10**9))

    def draw(count: int) -> bytes:
        return hashlib.shake_256(f"{seed}/{next(calls)}".encode()).digest(count)

    return draw


def epsilon_shown(
    here: NDArray[np.generic], there: NDArray[np.generic], *, alpha: float = 1e-6, delta: float = 0.0
) -> float:
    """A lower bound on epsilon, right with probability 1 - alpha, from outputs for two inputs.

    The first halves choose the threshold that tells the two apart best; the second halves are counted, with
    exact binomial confidence bounds (Clopper, Pearson 1934).
    """
    half = len(here) // 2
    best, events = 0.0, [(1, 0.0), (-1, 0.0)]
    for sign in (1, -1):
        a, b = np.sort(sign * here[:half]), np.sort(sign * there[:half])
        for t in np.unique(a[:: max(1, half // 200)]):
            yes, no = float(half - np.searchsorted(a, t)), float(half - np.searchsorted(b, t))
            score = np.log(max(yes - 5 * np.sqrt(yes), 1e-9) / (no + 5 * np.sqrt(no) + 10))
            if score > best:
                best, events = score, [(sign, float(t))]
    bounds = []
    for sign, t in events:
        yes = int(np.count_nonzero(sign * here[half:] >= t)), int(np.count_nonzero(sign * there[half:] >= t))
        n = len(here) - half
        low = stats.beta.ppf(alpha / 2, yes[0], n - yes[0] + 1) if yes[0] else 0.0
        high = stats.beta.ppf(1 - alpha / 2, yes[1] + 1, n - yes[1]) if yes[1] < n else 1.0
        bounds.append(np.log(max(low - delta, 1e-300) / high))
    return float(max(bounds))
