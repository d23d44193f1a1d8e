"""What a study reports while it runs: names, numbers and reasons, never data. Progress bars, logs and the
report read these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Burnt",
    "Event",
    "OnEvent",
    "Refused",
    "RosterAgreed",
    "RoundDone",
    "SetupDone",
    "Stalled",
    "Stopped",
]


@dataclass(frozen=True)
class RosterAgreed:
    """Every member countersigned."""

    epoch: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class SetupDone:
    """Every member holds the epoch's secrets; rounds may begin."""

    epoch: int
    setup_digest: bytes


@dataclass(frozen=True)
class RoundDone:
    """A round's sum is known.

    Attributes:
        round: 0-based.
        attempt: which attempt of the epoch it took.
        survivors: whose updates are in the sum.
        seconds: from start to sum.
        metrics: evaluation of the model this round started from, where the plan declares rows public; else
            None.
        site_metrics: the same by site.
    """

    round: int
    attempt: int
    survivors: tuple[str, ...]
    seconds: float
    metrics: dict[str, float] | None = None
    site_metrics: dict[str, dict[str, float]] | None = None
    epoch: int = 0


@dataclass(frozen=True)
class Refused:
    """A message was refused and had no effect."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Stalled:
    """Too few sites answered by the deadline; the hub waits on."""

    round: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Burnt:
    """An attempt cannot finish; a fresh one follows if the plan has one left."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class Stopped:
    """The study ended before its last round."""

    reason: str


Event = RosterAgreed | SetupDone | RoundDone | Refused | Stalled | Burnt | Stopped
OnEvent = Callable[[Event], None]
