"""Integers that hide a row: the grid they live on, and the noise that is added there.

In order of use: `IntegerGrid.fit` chooses how many units a clip is worth in a ring; `share_variance` says how
much noise each site adds; `DiscreteGaussian(variance)` adds it, from the operating system's randomness, into
the very vector that is masked next. `DiscreteLaplace` is for queries whose claim is pure epsilon.

Everything is an integer from the rounding on: no floating-point number is drawn, none is added to a secret,
and the ring's wrap-around is a function of the noisy integers, so it costs nothing. How far a sampler is from
its distribution is its `distance`, computed and not guessed; docs/proofs/sampler.md derives it.
"""

from cloister.privacy.mechanisms.gaussian import DiscreteGaussian
from cloister.privacy.mechanisms.grid import IntegerGrid
from cloister.privacy.mechanisms.laplace import DiscreteLaplace
from cloister.privacy.mechanisms.shares import MINIMUM_SHARE_VARIANCE, share_variance

__all__ = ["MINIMUM_SHARE_VARIANCE", "DiscreteGaussian", "DiscreteLaplace", "IntegerGrid", "share_variance"]
