"""One event of every kind."""

from __future__ import annotations

import typing
from typing import Any

from cloister.runtime import events

KINDS = typing.get_args(events.Event)
EXAMPLES: dict[type, Any] = {
    events.Started: events.Started("hub", 30, ("a", "b", "c")),
    events.Connected: events.Connected("a"),
    events.Lost: events.Lost("a"),
    events.EvidenceAccepted: events.EvidenceAccepted("a", "snp", "hardware"),
    events.RosterAgreed: events.RosterAgreed(0, ("a", "b", "c")),
    events.SetupDone: events.SetupDone(0, bytes(range(32))),
    events.RoundDone: events.RoundDone(
        2, 3, ("a", "b"), 1.25, {"accuracy": 0.5}, {"a": {"accuracy": 0.25}}, epoch=1
    ),
    events.Refused: events.Refused("a", "came out of turn"),
    events.Stalled: events.Stalled(2, ("c",)),
    events.Burnt: events.Burnt(2, 3, "too few answered"),
    events.EpochEnded: events.EpochEnded(1, "a site left"),
    events.Resumed: events.Resumed(1, 2, 4),
    events.LeaseTaken: events.LeaseTaken(7),
    events.LeaseLost: events.LeaseLost(7),
    events.Traffic: events.Traffic({"a": 10}, {"a": 20}),
    events.Spent: events.Spent("patients", 0.5, 2.0, 1e-6, 0.125),
    events.Stopped: events.Stopped("too few sites"),
    events.Ended: events.Ended(30),
}
