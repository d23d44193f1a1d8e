"""What samples are held against: laws computed another way, and tests that return p-values.

The same functions judge the samplers of the package and the wrong ones of `wrong.py`, which they must reject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from cloister.crypto import Keystream, sha256

Draw = Callable[[int], NDArray[np.int64]]
ACCEPT, REJECT = 1e-4, 1e-9


def fixed_random(label: str) -> Callable[[int], bytes]:
    """A source of bytes that is the same in every run, and new in every call."""
    stream, position = Keystream(sha256(label.encode())), 0

    def take(length: int) -> bytes:
        nonlocal position
        position += length
        return stream.bytes(length, position - length)

    return take


def replay(label: str = "replay") -> bytes:
    return sha256(label.encode())


@dataclass(frozen=True)
class Law:
    """A symmetric distribution on the integers, in float64."""

    parameter: float
    kind: str = "gaussian"

    @property
    def deviation(self) -> float:
        return math.sqrt(self.variance)

    @property
    def exact(self) -> bool:
        """Whether all its probabilities are few enough to be listed."""
        return self.parameter <= (2.0**22 if self.kind == "gaussian" else 2.0**12)

    @cached_property
    def support(self) -> NDArray[np.int64]:
        reach = 12 * math.sqrt(self.parameter) if self.kind == "gaussian" else 45 * self.parameter
        return np.arange(-math.ceil(reach) - 3, math.ceil(reach) + 4)

    @cached_property
    def pmf(self) -> NDArray[np.float64]:
        x = self.support.astype(np.float64)
        mass = np.exp(
            -x * x / (2 * self.parameter) if self.kind == "gaussian" else -np.abs(x) / self.parameter
        )
        return mass / math.fsum(mass)

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Variance and fourth moment."""
        if self.exact:
            x = self.support.astype(np.float64)
            return float(self.pmf @ x**2), float(self.pmf @ x**4)
        if self.kind == "gaussian":
            return self.parameter, 3 * self.parameter**2
        return 2 * self.parameter**2, 24 * self.parameter**4

    @property
    def variance(self) -> float:
        return self.moments[0]

    def at_most(self, x: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(X <= x)."""
        if self.exact:
            total = np.concatenate(([0.0], np.cumsum(self.pmf)))
            return total[np.clip(x - self.support[0] + 1, 0, len(self.pmf))]
        if self.kind == "gaussian":
            return special.ndtr((x + 0.5) / math.sqrt(self.parameter))
        q = math.exp(-1 / self.parameter)
        low = np.exp(np.minimum(x, 0) / self.parameter) / (1 + q)
        high = 1 - np.exp(-(np.maximum(x, 0) + 1) / self.parameter) / (1 + q)
        return np.where(x < 0, low, high)


def shape(samples: NDArray[np.int64], law: Law, bins: int = 100) -> float:
    """Chi-square over about `bins` bins that expect as many samples each, as far as integers allow."""
    reach = np.arange(1, bins) / bins
    if law.exact:
        edges = law.support[np.searchsorted(np.cumsum(law.pmf), reach)]
    elif law.kind == "gaussian":
        edges = np.floor(special.ndtri(reach) * law.deviation)
    else:
        edges = np.floor(np.sign(reach - 0.5) * -np.log(1 - np.abs(2 * reach - 1)) * law.parameter)
    edges = np.unique(edges.astype(np.int64))
    cumulative = np.concatenate(([0.0], law.at_most(edges), [1.0]))
    expected = np.diff(cumulative) * len(samples)
    observed = np.bincount(np.searchsorted(edges, samples, side="left"), minlength=len(expected))
    return _chi_square(observed, expected)


def cells(samples: NDArray[np.int64], law: Law) -> float:
    """Chi-square over single integers, those that expect less than 20 put together."""
    index = np.clip(samples - law.support[0], 0, len(law.pmf) - 1)
    return _chi_square(np.bincount(index, minlength=len(law.pmf)), law.pmf * len(samples))


def mean(samples: NDArray[np.int64], law: Law) -> float:
    z = float(samples.mean()) / (law.deviation / math.sqrt(len(samples)))
    return float(2 * stats.norm.sf(abs(z)))


def spread(samples: NDArray[np.int64], law: Law) -> float:
    """The mean square against the variance."""
    second, fourth = law.moments
    square = np.square(samples.astype(np.float64))
    z = (square.mean() - second) / math.sqrt((fourth - second**2) / len(samples))
    return float(2 * stats.norm.sf(abs(z)))


def tail(samples: NDArray[np.int64], law: Law) -> float:
    """How many are beyond 3.5 deviations, and beyond the least the law has a chance of 30 in all for."""
    values = []
    far = law.deviation * 3.5
    while 2 * law.at_most(np.array([-math.ceil(far)]))[0] * len(samples) < 30:
        far *= 0.97
    for limit in (math.ceil(law.deviation * 3.5), math.ceil(far)):
        expected = 2 * float(law.at_most(np.array([-limit]))[0]) * len(samples)
        observed = int(np.count_nonzero(np.abs(samples) >= limit))
        below, above = stats.poisson.cdf(observed, expected), stats.poisson.sf(observed - 1, expected)
        values.append(min(1.0, 2 * float(min(below, above))))
    return min(values)


def residues(samples: NDArray[np.int64], law: Law, modulus: int) -> float:
    """Chi-square of the remainders; of a wide law they are uniform."""
    if law.exact:
        share = np.bincount(law.support % modulus, weights=law.pmf, minlength=modulus)
    else:
        share = np.full(modulus, 1 / modulus)
    return _chi_square(np.bincount(samples % modulus, minlength=modulus), share * len(samples))


def repetition(draw: Draw, count: int, law: Law) -> float:
    """Correlation of a call with the next, and of neighbours within a call."""
    first, second = draw(count).astype(np.float64), draw(count).astype(np.float64)
    values = []
    for a, b in ((first, second), (first[:-1], first[1:])):
        z = float(a @ b) / (law.variance * math.sqrt(len(a)))
        values.append(float(2 * stats.norm.sf(abs(z))))
    return min(values)


def judge(
    draw: Draw, law: Law, *, count: int = 400_000, moduli: Sequence[int] = (2, 3, 7, 16)
) -> dict[str, float]:
    """Every test's p-value."""
    samples = draw(count)
    assert samples.dtype == np.int64
    assert samples.shape == (count,)
    verdict = {
        "shape": shape(samples, law),
        "mean": mean(samples, law),
        "spread": spread(samples, law),
        "tail": tail(samples, law),
        "repetition": repetition(draw, count, law),
    }
    if law.exact and len(law.support) < 2000:
        verdict["cells"] = cells(samples, law)
    for modulus in moduli:
        verdict[f"residues {modulus}"] = residues(samples, law, modulus)
    return verdict


def _chi_square(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Return the p-value; neighbouring cells are joined until each expects 20."""
    group = np.zeros(len(expected), np.int64)
    number, filled = 0, 0.0
    for i, value in enumerate(expected.tolist()):
        group[i] = number
        filled += value
        if filled >= 20:
            number, filled = number + 1, 0.0
    if filled and number:
        group[group == number] = number - 1
    wanted = np.bincount(group, weights=expected)
    seen = np.bincount(group, weights=observed)
    if len(wanted) < 2:
        return 1.0
    return float(stats.chi2.sf(np.sum((seen - wanted) ** 2 / wanted), len(wanted) - 1))
