"""What a study reports while it runs: names, numbers and reasons, never data. Progress bars, logs, metrics
and the report read these.

A new event also gets its line in `cloister.runtime.observe.fields`, which says what of it may be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cloister.enclave.claims import Protection

__all__ = [
    "Burnt",
    "Connected",
    "Ended",
    "EpochEnded",
    "Event",
    "EvidenceAccepted",
    "LeaseLost",
    "LeaseTaken",
    "Lost",
    "OnEvent",
    "Refused",
    "Resumed",
    "RosterAgreed",
    "RoundDone",
    "SetupDone",
    "Spent",
    "Stalled",
    "Started",
    "Stopped",
    "Traffic",
]


@dataclass(frozen=True)
class Started:
    """A hub's or a site's process began its part, or took it up again after a restart.

    Attributes:
        role: whose part.
        rounds: how many the plan asks for.
        members: the sites that the plan names.
    """

    role: Literal["hub", "site"]
    rounds: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Connected:
    """A session with a peer is open."""

    peer: str


@dataclass(frozen=True)
class Lost:
    """Nothing was heard from a peer for too long; it may come back."""

    peer: str


@dataclass(frozen=True)
class EvidenceAccepted:
    """A peer's evidence meets this owner's enclave policy.

    Attributes:
        peer: whose.
        kind: of the evidence.
        protection: what vouches for it.
    """

    peer: str
    kind: str
    protection: Protection


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
        epoch: the epoch it ran in.
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
class EpochEnded:
    """An epoch is over before the study is; another may follow with another roster."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Resumed:
    """A restarted party goes on where it was: this attempt at this round is the next one."""

    epoch: int
    round: int
    attempt: int


@dataclass(frozen=True)
class LeaseTaken:
    """This process is now the study's only hub; `term` is higher than that of every hub before it."""

    term: int


@dataclass(frozen=True)
class LeaseLost:
    """This process is the study's hub no longer."""

    term: int


@dataclass(frozen=True)
class Traffic:
    """Bytes by peer since this process began, headers and repetitions included.

    Attributes:
        sent: bytes by receiver.
        received: bytes by sender, refused ones included.
    """

    sent: dict[str, int]
    received: dict[str, int]


@dataclass(frozen=True)
class Spent:
    """What a site's ledger has booked for a population, this study included.

    Attributes:
        population: whose rows, as the ledger's owner named them.
        epsilon: spent so far.
        limit: epsilon of the declared budget.
        delta: the delta at which both are said.
        share: spent share of the budget, 0 to 1; the epsilon of small sums is far too high, this is not.
    """

    population: str
    epsilon: float
    limit: float
    delta: float
    share: float


@dataclass(frozen=True)
class Stopped:
    """The study ended before its last round."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """The study finished all its rounds."""

    rounds: int


Event = (
    Started
    | Connected
    | Lost
    | EvidenceAccepted
    | RosterAgreed
    | SetupDone
    | RoundDone
    | Refused
    | Stalled
    | Burnt
    | EpochEnded
    | Resumed
    | LeaseTaken
    | LeaseLost
    | Traffic
    | Spent
    | Stopped
    | Ended
)
OnEvent = Callable[[Event], None]
