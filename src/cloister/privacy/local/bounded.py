"""Noise on one bounded number: discrete Laplace (epsilon alone) and discrete Gaussian (epsilon and delta).

1. The value is moved into its declared bounds and to a whole number of its grid (`ValueGrid`): 0 .. steps.
2. A whole number of noise is added, from `cloister.privacy.mechanisms`. It is unbounded, and so is the
   released value: cutting it off at the bounds would shift every mean. `shown` does so for a single reader.

Laplace, scale steps / epsilon: the chances of an output y from two numbers k, k' differ by the factor
exp((|y - k'| - |y - k|) / scale) <= exp(epsilon).

Gaussian: N_Z(v) is randomised rounding of the continuous N(0, v - 4), up to 2 exp(-8 pi^2)
(docs/proofs/local-privacy.md), and the continuous Gaussian's delta at epsilon is closed (Balle, Wang 2018,
theorem 8): Phi(r/2 - epsilon/r) - exp(epsilon) Phi(-r/2 - epsilon/r), r = steps / sqrt(v - 4). `calibrate`
takes the least v for which that, with the remainder and the tables' distance times 1 + exp(epsilon), stays
within delta.

Not covered: a value's grid, bounds and mechanism are public and must not be chosen by looking at the value.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.accounting import MIN_SHARE_VARIANCE, Event, Everyone, IntegerGaussian, IntegerLaplace
from cloister.privacy.local.mechanism import Charge, check_epsilon, private_random
from cloister.privacy.local.valuegrid import ValueGrid
from cloister.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace
from cloister.types import RandomBytes

__all__ = ["SMOOTHING", "BoundedGaussian", "BoundedLaplace"]

SMOOTHING: Final = 4.0
"""Variance taken out of the discrete Gaussian to compare it with a continuous one."""

_LEAST_SCALE: Final = 0.25
_REMAINDER: Final = 3.0 * math.exp(-2.0 * math.pi**2 * SMOOTHING)
_MAX_VARIANCE: Final = 2.0**56


class BoundedLaplace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="laplace"):
    """Discrete Laplace noise on a declared grid.

    Attributes:
        grid: the quantity's declared points.
        epsilon: between any two values of the grid.
    """

    grid: ValueGrid
    epsilon: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.grid.steps < _LEAST_SCALE * self.epsilon:
            raise InputError("the grid is too coarse for this epsilon", fix="Choose a shorter step")

    @property
    def scale(self) -> float:
        """Of the noise, in steps of the grid: at least steps / epsilon."""
        return math.nextafter(self.grid.steps / self.epsilon, math.inf)

    @property
    def cost(self) -> Charge:
        """What each value costs; delta is what the noise's tables add."""
        return Charge(self.epsilon, (1.0 + math.exp(self.epsilon)) * DiscreteLaplace(self.scale).distance)

    @property
    def event(self) -> Event:
        """One release, for the accountant: any value against any other."""
        noise = DiscreteLaplace(self.scale)
        mechanism = IntegerLaplace(self.scale, float(self.grid.steps), 1, noise.distance)
        return Event(mechanism, Everyone(), "replace-one", 1)

    @property
    def variance(self) -> float:
        """Of one released value about the true one, in the quantity's unit, squared; rounding not counted."""
        decay = math.exp(-1.0 / self.scale)
        return 2.0 * decay / math.expm1(-1.0 / self.scale) ** 2 * self.grid.step**2

    def accept(self, values: Any) -> NDArray[np.float64]:
        """Return float64[n]. Raises InputError for NaN."""
        return self.grid.accept(values)

    def perturb(
        self, values: NDArray[Any], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[np.float64]:
        """Return float64[n], a noisy value for each of n values. Raises InputError for NaN."""
        noise = DiscreteLaplace(self.scale)
        return _perturb(self.grid, values, noise, insecure_test_random)

    def shown(self, released: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return released values moved into the bounds, for the eye; means of them are shifted."""
        return np.clip(released, self.grid.low, self.grid.high)


class BoundedGaussian(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="gaussian"):
    """Discrete Gaussian noise on a declared grid: lighter tails than Laplace, and a delta.

    Attributes:
        grid: the quantity's declared points.
        epsilon: between any two values of the grid.
        delta: the slack; 1e-12 to 1e-3.
    """

    grid: ValueGrid
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if not 1e-12 <= self.delta <= 1e-3:
            raise InputError("a local delta must be 1e-12 to 1e-3", fix="Choose one, say 1e-6")

    @property
    def noise_variance(self) -> float:
        """Of the noise, in steps of the grid, squared."""
        return _calibrate(self.grid.steps, self.epsilon, self.delta)

    @property
    def cost(self) -> Charge:
        """What each value costs; delta holds all of its slack."""
        return Charge(self.epsilon, self.delta)

    @property
    def event(self) -> Event:
        """One release, for the accountant: any value against any other."""
        noise = DiscreteGaussian(self.noise_variance)
        mechanism = IntegerGaussian(noise.variance, float(self.grid.steps), 1, 1, noise.distance)
        return Event(mechanism, Everyone(), "replace-one", 1)

    @property
    def variance(self) -> float:
        """Of one released value about the true one, in the quantity's unit, squared; rounding not counted."""
        return self.noise_variance * self.grid.step**2

    def accept(self, values: Any) -> NDArray[np.float64]:
        """Return float64[n]. Raises InputError for NaN."""
        return self.grid.accept(values)

    def perturb(
        self, values: NDArray[Any], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[np.float64]:
        """Return float64[n], a noisy value for each of n values. Raises InputError for NaN."""
        noise = DiscreteGaussian(self.noise_variance)
        return _perturb(self.grid, values, noise, insecure_test_random)

    def shown(self, released: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return released values moved into the bounds, for the eye; means of them are shifted."""
        return np.clip(released, self.grid.low, self.grid.high)


def _perturb(
    grid: ValueGrid,
    values: NDArray[Any],
    noise: DiscreteLaplace | DiscreteGaussian,
    insecure_test_random: RandomBytes | None,
) -> NDArray[np.float64]:
    numbers = grid.numbers(values, private_random(insecure_test_random))
    return grid.values(numbers + noise.sample(len(numbers), insecure_test_random=insecure_test_random))


@functools.lru_cache(maxsize=64)
def _calibrate(steps: int, epsilon: float, delta: float) -> float:
    """Return the least variance (within 1e-9) of N_Z that is (epsilon, delta) for a difference of `steps`.

    Raises InputError where the noise's tables alone take too much of delta.
    """
    allowed = delta * (1.0 - 1e-3)  # the rest is for tables and remainder, and checked below
    low, high = 0.0, 1.0
    while _gaussian_delta(steps / math.sqrt(high), epsilon) > allowed:
        low, high = high, 4.0 * high
        if high > _MAX_VARIANCE:
            raise InputError(
                "so small an epsilon needs more noise than there is", fix="Choose a coarser grid"
            )
    while high - low > 1e-9 * high:
        middle = (low + high) / 2.0
        if _gaussian_delta(steps / math.sqrt(middle), epsilon) > allowed:
            low = middle
        else:
            high = middle
    variance = max(high + SMOOTHING, MIN_SHARE_VARIANCE)
    slack = (1.0 + math.exp(epsilon)) * (DiscreteGaussian(variance).distance + _REMAINDER)
    if allowed + slack > delta:
        raise InputError("delta is below what the noise's tables need at this epsilon", fix="Raise delta")
    return variance


def _gaussian_delta(ratio: float, epsilon: float) -> float:
    """Return delta of the continuous Gaussian at epsilon; `ratio` is sensitivity / sigma."""
    far = _phi(-ratio / 2.0 - epsilon / ratio)
    return _phi(ratio / 2.0 - epsilon / ratio) - math.exp(epsilon) * far


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2.0)) / 2.0
