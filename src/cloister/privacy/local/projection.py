"""Where positions live: a declared region, in metres, or in degrees of latitude and longitude (WGS 84).

Degrees are turned into metres by one factor north and one east, fixed for the region, so that what is drawn
in the plane can be turned back. The factors are chosen such that **a distance in the plane is never longer
than on the ellipsoid**, for any two points of the region: epsilon for each metre of the plane is then at
most epsilon for each real metre.

- North: the meridian's radius M(lat) grows with |lat|; its least value in the region is taken.
- East: N(lat) cos(lat) falls with |lat|. It is taken at the highest latitude that a geodesic between two
  points of the region reaches, which may lie beyond the region: with reduced latitudes b, tan b = (1 - f)
  tan lat, a geodesic between points up to b_m that are w apart in longitude stays below tan b = tan b_m /
  cos(w' / 2), w' = w / (1 - f) (Clairaut; on the auxiliary sphere longitudes grow by at most 1 / (1 - f)).
Along the geodesic the plane's length element is then never the longer one, and the straight line in the
plane is shorter still.

The price: some places get more noise than they need, by `stretch` at most. Regions with a stretch above 1.25
are refused: divide them.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError

__all__ = ["MAX_STRETCH", "Rectangle", "Region"]

MAX_STRETCH: Final = 1.25
_AXIS: Final = 6_378_137.0
_FLATTENING: Final = 1.0 / 298.257223563
_ECCENTRICITY_2: Final = _FLATTENING * (2.0 - _FLATTENING)
_MAX_LATITUDE: Final = 85.0
_MAX_WIDTH: Final = 60.0
_MAX_METRES: Final = 1e7
_DEGREE: Final = math.pi / 180.0


class Rectangle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="metres"):
    """A region whose positions are metres already, such as a plant's or a map's own.

    Attributes:
        x: lowest and highest first coordinate.
        y: lowest and highest second coordinate.
    """

    x: tuple[float, float]
    y: tuple[float, float]

    def __post_init__(self) -> None:
        for low, high in (self.x, self.y):
            if not (math.isfinite(low) and math.isfinite(high) and 0 < high - low <= _MAX_METRES):
                raise InputError(
                    f"a region needs two finite bounds for each coordinate, at most {_MAX_METRES:g} m apart",
                    fix="Declare the bounds, the lower one first",
                )

    @property
    def size(self) -> tuple[float, float]:
        """Metres along the first and the second coordinate."""
        return self.x[1] - self.x[0], self.y[1] - self.y[0]

    def to_plane(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[n, 2], metres from the region's lowest corner; positions outside stay outside."""
        return np.subtract(positions, (self.x[0], self.y[0]))

    def from_plane(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[n, 2], the positions of points of the plane."""
        return np.add(plane, (self.x[0], self.y[0]))

    def holds(self, margin: float) -> bool:
        """Whether points up to `margin` metres outside are positions."""
        return math.isfinite(margin)


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="degrees"):
    """A region in degrees; positions are (latitude, longitude).

    Attributes:
        latitude: lowest and highest, within 85 degrees of the equator.
        longitude: lowest and highest, at most 60 degrees apart; a region across 180 degrees is two.
    """

    latitude: tuple[float, float]
    longitude: tuple[float, float]

    def __post_init__(self) -> None:
        south, north = self.latitude
        west, east = self.longitude
        if not (
            -_MAX_LATITUDE <= south < north <= _MAX_LATITUDE
            and -180.0 <= west < east <= 180.0
            and east - west <= _MAX_WIDTH
        ):
            raise InputError(
                f"a region in degrees lies within {_MAX_LATITUDE:g} degrees of latitude and is at most "
                f"{_MAX_WIDTH:g} degrees wide",
                fix="Declare latitude and longitude, the lower bound first, of a smaller region",
            )
        if self.stretch > MAX_STRETCH:
            raise InputError(
                f"the region is too large for one map: noise would be {self.stretch:.2f} times too wide",
                fix="Divide it into regions of less height or width",
            )

    @property
    def metres_per_degree(self) -> tuple[float, float]:
        """Of latitude and of longitude, as the plane counts them: never more than on the ellipsoid."""
        nearest, farthest = self._latitudes()
        width = (self.longitude[1] - self.longitude[0]) * _DEGREE / (1.0 - _FLATTENING)
        top = math.atan(math.tan(farthest) / math.cos(width / 2.0))  # the factors 1 - f cancel
        return _meridian(nearest) * _DEGREE * (1.0 - 1e-12), _parallel(top) * _DEGREE * (1.0 - 1e-12)

    @property
    def stretch(self) -> float:
        """How much longer a distance may be on the ellipsoid than in the plane, as a factor."""
        nearest, farthest = self._latitudes()
        north, east = self.metres_per_degree
        return max(_meridian(farthest) * _DEGREE / north, _parallel(nearest) * _DEGREE / east)

    @property
    def size(self) -> tuple[float, float]:
        """Metres from south to north and from west to east, as the plane counts them."""
        north, east = self.metres_per_degree
        return (self.latitude[1] - self.latitude[0]) * north, (self.longitude[1] - self.longitude[0]) * east

    def to_plane(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[n, 2], metres north and east of the region's corner, for (latitude, longitude)."""
        return np.multiply(positions - self._corner(), self.metres_per_degree)

    def from_plane(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[n, 2], (latitude, longitude) of points of the plane."""
        return np.divide(plane, self.metres_per_degree) + self._corner()

    def holds(self, margin: float) -> bool:
        """Whether points up to `margin` metres outside are positions on the Earth."""
        north, east = self.metres_per_degree
        up, across = margin / north, margin / east
        return (
            self.latitude[0] - up >= -90.0
            and self.latitude[1] + up <= 90.0
            and self.longitude[0] - across >= -180.0
            and self.longitude[1] + across <= 180.0
        )

    def _corner(self) -> NDArray[np.float64]:
        return np.array([self.latitude[0], self.longitude[0]])

    def _latitudes(self) -> tuple[float, float]:
        """Return the least and the greatest distance from the equator, in radians."""
        south, north = self.latitude
        nearest = 0.0 if south <= 0.0 <= north else min(abs(south), abs(north))
        return nearest * _DEGREE, max(abs(south), abs(north)) * _DEGREE


def _meridian(latitude: float) -> float:
    """Return the radius of curvature north, in metres, at a latitude in radians."""
    squared = 1.0 - _ECCENTRICITY_2 * math.sin(latitude) ** 2
    return _AXIS * (1.0 - _ECCENTRICITY_2) / (squared * math.sqrt(squared))


def _parallel(latitude: float) -> float:
    """Return the radius of the circle of latitude, in metres."""
    return _AXIS * math.cos(latitude) / math.sqrt(1.0 - _ECCENTRICITY_2 * math.sin(latitude) ** 2)
