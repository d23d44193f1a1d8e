"""Noise on the square lattice with P(z) proportional to exp(-rate |z|), |z| the Euclidean length.

It is the planar Laplace of geo-indistinguishability (Andres et al., CCS 2013, section 4.1), defined on the
lattice from the start, so that nothing continuous is drawn and then rounded: the correction of their section
4.2, for the finite precision of a radius and an angle, does not arise. For lattice points c, c' the chances
of any z differ by the factor exp(rate (|z - c'| - |z - c|)) <= exp(rate |c - c'|), the normalising constant
being the same everywhere.

Drawn by rejection:
1. both coordinates from the discrete Laplace of scale sqrt(2) / rate;
2. kept with probability exp(-t), t = rate |z| - (|z1| + |z2|) / scale >= 0, as four tests of exp(-t / 4),
   each a 64-bit word against a threshold. 73 to 99 of 100 draws are kept, whatever was to be hidden.

Arithmetic costs a factor of exp(+-6e-13) in a ratio at most, which is less than 1e-9 of the rate for lattice
points that differ at all; so noise is drawn at rate (1 - 1e-9), and the claim is rate. The tables of the
coordinates cost six times their distance. docs/proofs/local-privacy.md derives both.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.privacy.mechanisms import DiscreteLaplace
from cloister.types import RandomBytes

__all__ = ["MAX_RATE", "MIN_RATE", "coordinate_variance", "masses", "planar_distance", "planar_noise"]

MIN_RATE: Final = 1e-3
MAX_RATE: Final = 8.0
_MARGIN: Final = 1e-9
_TESTS: Final = 4
_EXACT_RATE: Final = 0.05
"""Above, moments are summed over the lattice; below, the integral is within 1e-5 of them."""


def _drawn(rate: float) -> tuple[float, float]:
    """Return the rate that is drawn, and the scale of the coordinates."""
    drawn = rate * (1.0 - _MARGIN)
    return drawn, math.sqrt(2.0) / drawn * (1.0 + 1e-15)


def planar_distance(rate: float) -> float:
    """Return a bound on the total variation distance of a draw from what is claimed."""
    return 6.0 * DiscreteLaplace(_drawn(rate)[1]).distance


def planar_noise(
    rate: float, count: int, random: StreamRandom, *, insecure_test_random: RandomBytes | None = None
) -> NDArray[np.int64]:
    """Return int64[count, 2].

    Args:
        rate: epsilon for one step of the lattice; 0.001 to 8.
        count: how many points.
        random: decides what is kept.
        insecure_test_random: replaces the operating system's randomness of the coordinates.
    """
    drawn, scale = _drawn(rate)
    laplace = DiscreteLaplace(scale)
    kept = np.empty((0, 2), np.int64)
    while len(kept) < count:
        wanted = int((count - len(kept)) * 1.35) + 16
        z = laplace.sample(2 * wanted, insecure_test_random=insecure_test_random).reshape(wanted, 2)
        length = np.hypot(z[:, 0], z[:, 1])
        t = np.maximum(drawn * length - np.abs(z).sum(axis=1) / scale, 0.0)
        limit = np.ldexp(np.exp(t / -_TESTS), 64)
        threshold = np.minimum(limit, 2.0**64 - 2048.0).astype(np.uint64)
        words = random.words(_TESTS * wanted).reshape(wanted, _TESTS)
        kept = np.concatenate((kept, z[(words < threshold[:, None]).all(axis=1)]))
    return kept[:count]


@functools.lru_cache(maxsize=8)
def masses(rate: float, reach: int) -> NDArray[np.float64]:
    """Return float64[2 reach + 1, 2 reach + 1]: P(z) for |z1|, |z2| <= reach; [reach, reach] is z = 0.

    The mass beyond is counted in nothing; it is below 4 exp(-rate reach / 2) for reach >= 20 / rate.
    """
    side = np.arange(-reach, reach + 1, dtype=np.float64)
    weights: NDArray[np.float64] = np.exp(-rate * np.hypot(side[:, None], side[None, :]))
    weights /= weights.sum()
    weights.flags.writeable = False
    return weights


def coordinate_variance(rate: float) -> float:
    """Return the variance of one coordinate of the noise, in steps squared."""
    if rate < _EXACT_RATE:
        return 3.0 / rate**2  # E r**2 / 2 with r of density rate**2 r exp(-rate r)
    reach = math.ceil(45.0 / rate)
    squares = np.arange(-reach, reach + 1, dtype=np.float64) ** 2
    return float(masses(rate, reach).sum(axis=1) @ squares)
