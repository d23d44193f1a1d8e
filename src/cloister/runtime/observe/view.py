"""What a log says about a study, line by line: the state that `cloister study watch` shows."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from cloister.runtime.observe.reader import Line

__all__ = ["SiteView", "StudyView"]

_RECENT: Final = 20
_MOST: Final = 10_000


@dataclass
class SiteView:
    """What is known of a peer or a member.

    Attributes:
        present: a session with it is open; None where this log does not say.
        last_round: the last round that its update is in, 0-based; None for none.
        sent, received: bytes, seen from the party whose log this is.
    """

    present: bool | None = None
    last_round: int | None = None
    sent: int = 0
    received: int = 0


@dataclass
class StudyView:
    """A study as one party's log tells it.

    Attributes:
        state: waiting for the first round, running, ended, or stopped early.
        rounds: how many are planned; 0 where the log does not say.
        done: how many are finished.
        sites: by name, in the order in which they were named.
        seconds: how long the last rounds took.
        metrics: of the model the last round started from; None unless the rows are public.
        spent: by population, what its ledger says.
        held: whether this process is the hub, by its lease; None where there is no lease.
    """

    study: str = ""
    party: str = ""
    role: str = ""
    state: Literal["waiting", "running", "ended", "stopped"] = "waiting"
    reason: str = ""
    rounds: int = 0
    done: int = 0
    epoch: int = 0
    burnt: int = 0
    refused: int = 0
    lines_lost: int = 0
    term: int = 0
    held: bool | None = None
    last: datetime | None = None
    missing: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    metrics: dict[str, float | None] | None = None
    sites: dict[str, SiteView] = field(default_factory=dict)
    spent: dict[str, Line] = field(default_factory=dict)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _carried: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def seconds_left(self) -> float | None:
        """About how long the remaining rounds take, at the pace of the last ones; None where unknown."""
        if self.state != "running" or not self.seconds or not self.rounds:
            return None
        return statistics.median(self.seconds) * max(self.rounds - self.done, 0)

    def take(self, lines: Iterable[Line]) -> None:
        """Bring the view up to date."""
        for line in lines:
            self.study, self.party, self.last = line.study, line.party, line.time
            self._take(line)

    def _take(self, line: Line) -> None:
        match line.event:
            case "started":
                self._started(line)
            case "connected" | "lost":
                self._site(line.peer).present = line.event == "connected"
            case "roster_agreed":
                self.epoch, self.members = line.epoch, line.members
                for name in line.members:
                    self._site(name)
            case "setup_done":
                self.epoch, self.state = line.epoch, "running"
            case "round_done":
                self._round_done(line)
            case "refused":
                self.refused += 1
            case "refused_more":
                self.refused += line.count
            case "lines_lost":
                self.lines_lost += line.count
            case "stalled":
                self.missing = line.missing
            case "burnt":
                self.burnt += 1
            case "epoch_ended":
                self.reason = line.reason
            case "resumed":
                self.state, self.epoch, self.done = "running", line.epoch, line.round
            case "lease_taken":
                self.term, self.held = line.term, True
            case "lease_lost" if line.term >= self.term:  # a stand-by may have taken a newer one before
                self.held = False
            case "traffic":
                self._traffic(line)
            case "spent" if line.population in self.spent or len(self.spent) < _MOST:
                self.spent[line.population] = line
            case "stopped":
                self.state, self.reason = "stopped", line.reason
            case "ended":
                self.state, self.done, self.reason = "ended", line.rounds, ""
            case _:
                pass  # of a newer version

    def to_json(self) -> dict[str, Any]:
        """Return the view in JSON types."""
        return {
            "study": self.study,
            "party": self.party,
            "role": self.role,
            "state": self.state,
            "reason": self.reason or None,
            "rounds": self.rounds,
            "done": self.done,
            "epoch": self.epoch,
            "members": list(self.members),
            "survivors": list(self.survivors),
            "missing": list(self.missing),
            "seconds": self.seconds[-1] if self.seconds else None,
            "seconds_left": self.seconds_left,
            "burnt": self.burnt,
            "refused": self.refused,
            "lines_lost": self.lines_lost,
            "lease": None if self.held is None else {"term": self.term, "held": self.held},
            "sites": {
                name: {
                    "present": site.present,
                    "last_round": site.last_round,
                    "sent": site.sent,
                    "received": site.received,
                }
                for name, site in self.sites.items()
            },
            "metrics": self.metrics,
            "spent": {
                name: {"epsilon": line.epsilon, "limit": line.limit, "delta": line.delta, "share": line.share}
                for name, line in self.spent.items()
            },
            "last": None if self.last is None else self.last.isoformat(),
        }

    def _site(self, name: str) -> SiteView:
        if name not in self.sites and len(self.sites) >= _MOST:
            return SiteView()
        return self.sites.setdefault(name, SiteView())

    def _started(self, line: Line) -> None:
        self.role, self.rounds, self.reason = line.role, line.rounds, ""
        self.state = "running" if self.done else "waiting"
        self.held, self.missing = None, ()
        self._carried.clear()
        for site in self.sites.values():
            site.present = False if site.present is not None else None
        for name in line.members if line.role == "hub" else ():
            self._site(name)

    def _round_done(self, line: Line) -> None:
        self.state, self.reason, self.missing = "running", "", ()
        self.done, self.epoch, self.survivors = line.round + 1, line.epoch, line.survivors
        if line.seconds is not None:
            self.seconds.append(line.seconds)
        self.metrics = line.metrics
        for name in line.survivors:
            self._site(name).last_round = line.round

    def _traffic(self, line: Line) -> None:
        for name, total in line.sent.items():
            self._site(name).sent += self._growth(name, "sent", total)
        for name, total in line.received.items():
            self._site(name).received += self._growth(name, "received", total)

    def _growth(self, name: str, direction: str, total: int) -> int:
        """Return what was added to a total that begins anew with each process."""
        before = self._carried[name, direction]
        self._carried[name, direction] = total
        return total - before if total >= before else total
