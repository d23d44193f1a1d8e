"""What private releases cost: events in, epsilon out.

In order of use:

1. describe what will be done, or was done, as `Event`s: a mechanism, a sampler, a relation, a count;
2. `epsilon(events, delta)` for one plan fixed beforehand; `delta_charged` says how much of delta the integers
   took; `calibrate_noise` and `rounds_within` turn the question round;
3. `renyi(events, order)` gives the `Cost` that a ledger's filter adds up over studies and queries that are
   chosen one after the other;
4. `write_events` and `read_events` carry events into certificates and back.

Importing it is cheap: dp_accounting and scipy are loaded by the first call that computes something.
"""

from cloister.privacy.accounting.accountant import delta_charged, epsilon, renyi
from cloister.privacy.accounting.calibration import calibrate_noise, rounds_within
from cloister.privacy.accounting.cost import MOST_EPSILON, MOST_ORDER, Cost
from cloister.privacy.accounting.events import Event, Relation, read_events, write_events
from cloister.privacy.accounting.mechanisms import (
    MIN_SHARE_VARIANCE,
    Gaussian,
    IntegerGaussian,
    IntegerLaplace,
    Laplace,
    Mechanism,
    MixedGaussian,
    PureDP,
    RandomisedResponse,
)
from cloister.privacy.accounting.samplers import Everyone, FixedSize, Poisson, Sampler

__all__ = [
    "MIN_SHARE_VARIANCE",
    "MOST_EPSILON",
    "MOST_ORDER",
    "Cost",
    "Event",
    "Everyone",
    "FixedSize",
    "Gaussian",
    "IntegerGaussian",
    "IntegerLaplace",
    "Laplace",
    "Mechanism",
    "MixedGaussian",
    "Poisson",
    "PureDP",
    "RandomisedResponse",
    "Relation",
    "Sampler",
    "calibrate_noise",
    "delta_charged",
    "epsilon",
    "read_events",
    "renyi",
    "rounds_within",
    "write_events",
]
