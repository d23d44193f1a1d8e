"""Who took part: samplers with their own sizes, frozen."""

from __future__ import annotations

from cloister.errors import InputError
from cloister.privacy.accounting.ranges import Data, check_between, check_whole

__all__ = ["Everyone", "FixedSize", "Poisson", "Sampler"]


class Poisson(Data, frozen=True, tag_field="kind", tag="poisson"):
    """Each unit is in the sample with probability at most `rate`, independently of all others.

    Args:
        rate: in (0, 1].
        size: units in the population, where that is known and public.
        cap: a sample of more than `cap` units is cut to a random `cap` of them; needs `size`.
    """

    rate: float
    size: int | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        check_between(self.rate, 0.0, 1.0, "the sampling rate")
        if self.size is not None:
            check_whole(self.size, 1, 2**53, "the size of the population")
        if self.cap is not None:
            if self.size is None:
                raise InputError(
                    "a capped sample whose population has no size: what the cap costs cannot be computed",
                    where="sampler",
                    fix="Give the size, or sample without a cap",
                )
            check_whole(self.cap, 1, 2**53, "the cap on a sample")


class Everyone(Data, frozen=True, tag_field="kind", tag="everyone"):
    """Every unit takes part: nothing is sampled, nothing is amplified."""


class FixedSize(Data, frozen=True, tag_field="kind", tag="fixed-size"):
    """Exactly `batch` of `size` units, drawn uniformly without replacement, anew for each count.

    Args:
        size: units in the population.
        batch: units in a sample, 1 to `size`.
    """

    size: int
    batch: int

    def __post_init__(self) -> None:
        check_whole(self.size, 1, 2**53, "the size of the population")
        check_whole(self.batch, 1, self.size, "the batch of a fixed-size sample")


Sampler = Poisson | Everyone | FixedSize
