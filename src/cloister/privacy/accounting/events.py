"""What was done to the rows, as frozen data: mechanism, sampler, relation, how often.

Invariants:

- an event says everything that its cost depends on, and nothing else does: accountants interpret events, they
  take no options that change what is proved;
- the sampler and the relation are part of the event, with the sampler's own sizes; a pair that no theorem
  covers is refused when the event is made, with the reason;
- the meaning of version 1 never changes: kinds and fields are neither removed nor reread, what is new gets a
  new kind or a new version, and what is unknown is refused (tests/vectors/events.json);
- equal events have equal bytes: JSON in canonical form (RFC 8785).

Sensitivity is always the most that the summed vector changes when one unit changes as the event's *relation*
says: by vanishing ("zero-out": its contribution becomes zero, row counts stay public), or by becoming another
unit ("replace-one", which is twice the clip for clipped sums). It is in L2 norm for Gaussians, in L1 norm for
Laplace.

An event claims nothing about whether the code did what it says; that is what tests and audits are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from cloister.crypto.canonical import canonical_bytes
from cloister.errors import InputError
from cloister.privacy.accounting.mechanisms import (
    Gaussian,
    IntegerGaussian,
    IntegerLaplace,
    Laplace,
    Mechanism,
    MixedGaussian,
)
from cloister.privacy.accounting.ranges import Data, check_whole
from cloister.privacy.accounting.samplers import FixedSize, Poisson, Sampler

__all__ = ["Event", "Relation", "read_events", "write_events"]

_MOST_EVENTS = 10_000
_MOST_COUNT = 2**40

Relation = Literal["zero-out", "replace-one"]
"""How neighbours differ: in one unit whose contribution is replaced by nothing, or by another unit's."""

_POISSON = (Gaussian, IntegerGaussian, MixedGaussian, Laplace, IntegerLaplace)
_CAPPED = (Gaussian, IntegerGaussian)
_FIXED_SIZE = (Gaussian, IntegerGaussian)


class Event(Data, frozen=True):
    """`count` runs of one mechanism, each on a fresh sample, each allowed to depend on the results before it.

    Args:
        mechanism: what was added to what.
        sampler: who took part.
        relation: how neighbours differ.
        count: runs, at least 1.
        version: of the meaning of these fields.

    Raises:
        InputError: a number is out of range, or no theorem here covers this mechanism with this sampler under
            this relation.
    """

    mechanism: Mechanism
    sampler: Sampler
    relation: Relation
    count: int
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        check_whole(self.count, 1, _MOST_COUNT, "the count of an event")
        refused = _mismatch(self.mechanism, self.sampler, self.relation)
        if refused is not None:
            raise InputError(refused[0], where="event", fix=refused[1])


def write_events(events: Sequence[Event]) -> bytes:
    """Return the canonical JSON of `events`: a list, in their order."""
    return canonical_bytes(list(events))


def read_events(data: bytes) -> tuple[Event, ...]:
    """Return the events written in `data` by `write_events`.

    Raises:
        InputError: it is not such a list, has an unknown field, kind or version, a number out of range, or a
            mismatch of mechanism, sampler and relation.
    """
    try:
        events = msgspec.json.decode(data, type=tuple[Event, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            "not a list of events of version 1",
            where="events",
            fix="Read them with the version that wrote them",
        ) from error
    if len(events) > _MOST_EVENTS:
        raise InputError(
            f"more than {_MOST_EVENTS} events", where="events", fix="Count equal events together"
        )
    return events


def _mismatch(mechanism: Mechanism, sampler: Sampler, relation: Relation) -> tuple[str, str] | None:
    """Why no theorem covers this, and what to do; None where one does."""
    if isinstance(sampler, FixedSize):
        if relation == "zero-out":
            return (
                "a fixed-size batch is not a Poisson sample: under zero-out nothing is proved for it here",
                "Sample by Poisson, or account for it under replace-one, with twice the clip as sensitivity",
            )
        if not isinstance(mechanism, _FIXED_SIZE):
            return (
                "sampling without replacement is proved for Gaussian noise alone",
                "Let everyone take part",
            )
    if isinstance(sampler, Poisson):
        if relation == "replace-one":
            return (
                "amplification by Poisson sampling is proved under zero-out, not under replace-one",
                "State zero-out, with the clip as sensitivity",
            )
        if not isinstance(mechanism, _POISSON):
            return ("this mechanism has no sampled form here", "Let everyone take part")
        if sampler.cap is not None and not isinstance(mechanism, _CAPPED):
            return (
                "a capped sample is proved for Gaussian noise and one site a unit alone",
                "Sample without a cap",
            )
    return None
