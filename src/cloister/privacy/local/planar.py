"""Positions: planar Laplace noise, for geo-indistinguishability (Andres et al., CCS 2013).

The guarantee has a unit: for two positions d metres apart the chances of any released position differ by a
factor of at most exp(epsilon d), epsilon for each metre. What is near is hidden, what is far is not: with
epsilon = ln 4 / 200 m an observer's odds between two places 200 m apart change by a factor of 4 at most;
between two towns by any factor. It adds over releases: a track of 100 positions costs 100 times as much.

1. A position is moved into the declared region and to a place in its plane (`projection`).
2. It goes to the nearest point of the declared lattice, `step` metres wide.
3. A lattice vector of noise is added (`planarnoise`), at the rate epsilon * step.
4. Where `truncated`, the result is moved to the nearest lattice point of the region (their section 4.3).
   Steps 4 and 5 look at the noisy point alone, so that they cost nothing.
5. The lattice point is turned back into a position.

Between positions on the lattice the claim is epsilon d, exactly. Between any two it is epsilon (d + sqrt(2)
step), since step 2 moves each by up to step / sqrt(2): two positions on both sides of a border between cells
are a whole step apart afterwards. With the default step, 0.01 / epsilon at most, that adds 0.0142 at most. A
coarse step hides which place in a cell, wholly, and its price is this term.

Not hidden: that there was a release, its time, and who made it.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.local.mechanism import Charge, private_random
from cloister.privacy.local.planarnoise import MAX_RATE, MIN_RATE, planar_distance, planar_noise
from cloister.privacy.local.projection import Rectangle, Region
from cloister.types import RandomBytes

__all__ = ["PlanarLaplace"]

_REACH: Final = 60.0
"""Noise longer than this many times 1 / epsilon has a chance below 1e-24."""

_MAX_SIDE: Final = 2**40


class PlanarLaplace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="planar"):
    """Planar Laplace noise on the lattice of a declared region.

    Attributes:
        region: where positions are; `Region` (degrees) or `Rectangle` (metres).
        epsilon: for each metre.
        step: of the lattice, in metres.
        truncated: whether released positions are moved into the region, which shifts their mean.
    """

    region: Rectangle | Region
    epsilon: float
    step: float
    truncated: bool = True

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.epsilon) and self.epsilon > 0 and math.isfinite(self.step) and self.step > 0
        ):
            raise InputError(
                "epsilon for each metre and the lattice's step must be positive", fix="Correct them"
            )
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise InputError(
                f"epsilon times the lattice's step must be {MIN_RATE:g} to {MAX_RATE:g}",
                fix=f"Choose a step of {MIN_RATE / self.epsilon:.3g} to {MAX_RATE / self.epsilon:.3g} metres",
            )
        if max(self.region.size) / self.step > _MAX_SIDE or min(self.region.size) < self.step:
            raise InputError(
                "the lattice's step does not fit the region", fix="Choose a step shorter than the region"
            )
        if not self.truncated and not self.region.holds(_REACH / self.epsilon):
            raise InputError(
                "positions that are not truncated would leave the Earth's map", fix="Truncate them"
            )

    @classmethod
    def of(
        cls, region: Rectangle | Region, epsilon: float, *, step: float | None = None, truncated: bool = True
    ) -> PlanarLaplace:
        """Return the mechanism; a step of None is the longest of 1, 2, 5, 10, ... up to 0.01 / epsilon."""
        if step is None:
            if not (math.isfinite(epsilon) and epsilon > 0):
                raise InputError("epsilon for each metre must be positive", fix="Choose one, say 0.01")
            longest = 0.01 / epsilon
            power = 10.0 ** math.floor(math.log10(longest))
            step = max(size for size in (power, 2 * power, 5 * power) if size <= longest * (1 + 1e-9))
        return cls(region, float(epsilon), float(step), truncated)

    @property
    def rate(self) -> float:
        """Epsilon for one step of the lattice."""
        return self.epsilon * self.step

    @property
    def sides(self) -> tuple[int, int]:
        """Highest number of a lattice point along each coordinate; the lowest is 0."""
        first, second = self.region.size
        return math.floor(first / self.step), math.floor(second / self.step)

    @property
    def cost(self) -> Charge:
        """What each position costs: epsilon for each metre.

        delta is the distance of the noise's tables: for positions d metres apart the slack is this times
        1 + exp(epsilon d).
        """
        return Charge(delta=planar_distance(self.rate), per_metre=self.epsilon)

    def accept(self, values: Any) -> NDArray[np.float64]:
        """Return float64[n, 2]. Raises InputError where these are not pairs of finite numbers."""
        given = np.asarray(values, np.float64)
        if given.ndim != 2 or given.shape[1] != 2 or not np.isfinite(given).all():
            raise InputError(
                "positions must be pairs of finite numbers", fix="Leave out rows without a position"
            )
        return given

    def perturb(
        self, values: NDArray[Any], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[np.float64]:
        """Return float64[n, 2], a noisy position for each of n positions.

        Args:
            values: float64[n, 2]: (latitude, longitude) in a `Region`, metres in a `Rectangle`.
            insecure_test_random: for tests.

        Raises:
            InputError: a position is not a pair of finite numbers.
        """
        points = self.points(values)
        noise = planar_noise(
            self.rate,
            len(points),
            private_random(insecure_test_random),
            insecure_test_random=insecure_test_random,
        )
        moved: NDArray[np.int64] = points + noise
        if self.truncated:
            moved = np.clip(moved, 0, self.sides)
        return self.region.from_plane(moved.astype(np.float64) * self.step)

    def points(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """Return int64[n, 2]: the lattice points of true positions, moved into the region."""
        given = self.accept(positions)
        rounded = np.rint(np.clip(self.region.to_plane(given) / self.step, -1.0, _MAX_SIDE + 1.0))
        return np.clip(rounded.astype(np.int64), 0, self.sides)

    def read(self, released: NDArray[Any]) -> NDArray[np.int64]:
        """Return int64[n, 2]: the lattice points of released positions.

        Raises InputError where one is no point of the lattice.
        """
        scaled = self.region.to_plane(self.accept(released)) / self.step
        points = np.rint(scaled)
        outside = self.truncated and bool(np.any((points < 0) | (points > np.array(self.sides))))
        if outside or np.any(np.abs(scaled - points) > 0.01) or np.any(np.abs(points) > 2 * _MAX_SIDE):
            raise InputError(
                "a released position is no point of its lattice",
                fix="Give the file and the mechanism it was made with",
            )
        return points.astype(np.int64)
