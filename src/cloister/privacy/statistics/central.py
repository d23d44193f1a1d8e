"""The noise of a single owner: OpenDP's measurements on vectors of integers, and what they say they cost.

OpenDP samples discrete Laplace and discrete Gaussian noise exactly, from the operating system's randomness
(Canonne, Kamath, Steinke 2020), and its privacy map states what a release of given sensitivity costs. Nothing
here draws noise of its own, and nothing is a float before noise is on it.

OpenDP is the extra `stats`; only these functions need it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["gaussian", "laplace", "laplace_scale", "require_opendp"]


def require_opendp() -> ModuleType:
    """Return OpenDP. Raises InputError, telling how to install it, where it is missing."""
    try:
        import opendp.prelude as dp
    except ImportError:
        raise InputError(
            "private statistics need OpenDP, which is not installed", fix="Run pip install cloister[stats]"
        ) from None
    dp.enable_features("contrib")
    return dp


def laplace_scale(sensitivity: float, epsilon: float) -> tuple[float, float]:
    """Return the least scale whose cost, as OpenDP states it, is at most `epsilon`; and that cost.

    Args:
        sensitivity: L1, in whole units.
        epsilon: of the release.
    """
    scale = sensitivity / epsilon
    while (cost := float(_laplace(scale).map(int(sensitivity)))) > epsilon:
        scale = math.nextafter(scale, math.inf)
    return scale, cost


def laplace(values: NDArray[np.int64], scale: float) -> NDArray[np.int64]:
    """Return int64[d]: `values` with discrete Laplace noise of this scale on each."""
    return np.asarray(_laplace(scale)(values.tolist()), dtype=np.int64)


def gaussian(values: NDArray[np.int64], sigma: float) -> NDArray[np.int64]:
    """Return int64[d]: `values` with discrete Gaussian noise N_Z(0, sigma**2) on each."""
    return np.asarray(_gaussian(sigma)(values.tolist()), dtype=np.int64)


def _laplace(scale: float) -> Any:
    dp = require_opendp()
    return dp.m.make_laplace(dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64"), scale=scale)


def _gaussian(sigma: float) -> Any:
    dp = require_opendp()
    return dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=sigma)
