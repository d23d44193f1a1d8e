"""What was added to what: mechanisms, frozen. Their sensitivity is the event's, under its relation.

Sensitivity is the most that the summed vector changes when one unit changes as the event's relation says, in
L2 norm for Gaussians, in L1 norm for Laplace.
"""

from __future__ import annotations

from cloister.errors import InputError
from cloister.privacy.accounting.ranges import Data, check_between, check_positive, check_whole

__all__ = [
    "MIN_SHARE_VARIANCE",
    "Gaussian",
    "IntegerGaussian",
    "IntegerLaplace",
    "Laplace",
    "Mechanism",
    "MixedGaussian",
    "PureDP",
    "RandomisedResponse",
]

MIN_SHARE_VARIANCE = 8.0
"""Least variance of one share of integer noise, in grid units squared.

Twice the s^2 = 4 that the proof takes out for rounding, so that convolving shares costs no more than rounding
does (docs/proofs/integer-gaussian.md).
"""

_SLACK = 1e-9  # a share's variance is variance / shares, which a caller got by multiplying


class Gaussian(Data, frozen=True, tag_field="kind", tag="gaussian"):
    """A sum plus N(0, sigma^2) on each coordinate, in real numbers.

    Args:
        sigma: the noise's standard deviation.
        sensitivity: L2, in the unit of `sigma`.
    """

    sigma: float
    sensitivity: float

    def __post_init__(self) -> None:
        check_positive(self.sigma, "sigma")
        check_positive(self.sensitivity, "the sensitivity")


class IntegerGaussian(Data, frozen=True, tag_field="kind", tag="integer-gaussian"):
    """A vector of integers plus independent discrete Gaussians, possibly wrapped around in a ring.

    Each coordinate gets the sum of `shares` independent draws of N_Z(0, variance / shares), where N_Z(0, v)
    has P(x) ~ exp(-x^2 / (2 v)) on the integers. Noise beyond the shares counted here changes nothing.

    Args:
        variance: of the counted shares together, in grid units squared; at least 8 a share.
        sensitivity: L2, in grid units, rounding to the grid included.
        coordinates: of one vector.
        shares: how many are counted: those the adversary neither drew nor can see.
        distance: bound on the total variation distance of one draw of one share from N_Z(0, variance /
            shares).
    """

    variance: float
    sensitivity: float
    coordinates: int
    shares: int
    distance: float

    def __post_init__(self) -> None:
        _integer_gaussian(self)


class MixedGaussian(Data, frozen=True, tag_field="kind", tag="mixed-gaussian"):
    """`IntegerGaussian` where one unit may occur at up to `sites` sites, each of which samples on its own.

    With Poisson sampling the unit moves the sum by at most j times `sensitivity`, where j of its sites
    sampled it: j is Binomial(sites, rate), or less.

    Args:
        variance: of the counted shares together, in grid units squared; at least 8 a share.
        sensitivity: L2, in grid units, of the unit's part at *one* site.
        coordinates: of one vector.
        shares: how many are counted.
        distance: bound on the total variation distance of one draw of one share.
        sites: at most so many hold the unit; 1 to 100.
    """

    variance: float
    sensitivity: float
    coordinates: int
    shares: int
    distance: float
    sites: int

    def __post_init__(self) -> None:
        _integer_gaussian(self)
        check_whole(self.sites, 1, 100, "the sites that may hold one unit")


class Laplace(Data, frozen=True, tag_field="kind", tag="laplace"):
    """A sum plus Laplace noise of density exp(-|x| / scale) / (2 scale) on each coordinate, in real numbers.

    Args:
        scale: of the noise.
        sensitivity: L1, in the unit of `scale`.
    """

    scale: float
    sensitivity: float

    def __post_init__(self) -> None:
        check_positive(self.scale, "the scale")
        check_positive(self.sensitivity, "the sensitivity")


class IntegerLaplace(Data, frozen=True, tag_field="kind", tag="integer-laplace"):
    """A vector of integers plus independent discrete Laplace noise, P(x) ~ exp(-|x| / scale) on the integers.

    Args:
        scale: of the noise, in grid units. Where several parties add noise, of one share that the adversary
            neither drew nor can see.
        sensitivity: L1, in grid units; integer vectors move by whole units, so it is rounded down.
        coordinates: of one vector.
        distance: bound on the total variation distance of one draw.
    """

    scale: float
    sensitivity: float
    coordinates: int
    distance: float

    def __post_init__(self) -> None:
        check_positive(self.scale, "the scale")
        check_between(self.sensitivity, 1.0, 2.0**53, "the sensitivity in grid units", include_low=True)
        check_whole(self.coordinates, 1, 2**40, "the number of coordinates")
        check_between(self.distance, 0.0, 1.0, "a sampler's distance", include_low=True)


class PureDP(Data, frozen=True, tag_field="kind", tag="pure"):
    """Anything that is proved (epsilon, 0)-private under the event's relation.

    Args:
        epsilon: of one release.
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_between(self.epsilon, 0.0, 100.0, "the epsilon of a pure mechanism")


class RandomisedResponse(Data, frozen=True, tag_field="kind", tag="randomised-response"):
    """One of `categories` answers, the true one most often.

    The true answer is given with probability at most e^epsilon / (e^epsilon + categories - 1), otherwise one
    of the others, uniformly. Under "zero-out" a unit that is nothing answers uniformly.

    Args:
        epsilon: of one answer, between any two true answers.
        categories: at least 2.
    """

    epsilon: float
    categories: int

    def __post_init__(self) -> None:
        check_between(self.epsilon, 0.0, 100.0, "the epsilon of an answer")
        check_whole(self.categories, 2, 2**40, "the number of categories")


Mechanism = (
    Gaussian | IntegerGaussian | MixedGaussian | Laplace | IntegerLaplace | PureDP | RandomisedResponse
)


def _integer_gaussian(mechanism: IntegerGaussian | MixedGaussian) -> None:
    check_positive(mechanism.variance, "the variance")
    check_positive(mechanism.sensitivity, "the sensitivity")
    check_whole(mechanism.coordinates, 1, 2**40, "the number of coordinates")
    check_whole(mechanism.shares, 1, 2**20, "the number of noise shares")
    check_between(mechanism.distance, 0.0, 1.0, "a sampler's distance", include_low=True)
    if mechanism.variance / mechanism.shares < MIN_SHARE_VARIANCE * (1 - _SLACK):
        raise InputError(
            f"a share of integer noise has a variance below {MIN_SHARE_VARIANCE:g} grid units squared",
            where="mechanism",
            fix="Take a finer grid (more clip_units), more noise, or fewer shares",
        )
