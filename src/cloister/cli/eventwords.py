"""What happens in a study, in a line for people; the log has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.text import printable

if TYPE_CHECKING:
    from cloister.runtime.events import Event

__all__ = ["in_words"]


def in_words(event: Event, *, rounds: bool = False) -> str | None:
    """Return the line for an event, None where people need none.

    Args:
        event: what happened.
        rounds: whether every finished round gets a line.
    """
    line = _in_words(event, rounds=rounds)
    return None if line is None else printable(line, "?")


def _in_words(event: Event, *, rounds: bool) -> str | None:
    from cloister.runtime import events as e

    match event:
        case e.Connected():
            return f"{event.peer} is connected."
        case e.Lost():
            return f"{event.peer} is gone."
        case e.EvidenceAccepted():
            return f"Evidence of {event.peer} is accepted ({event.kind}): {event.protection}."
        case e.RosterAgreed():
            return f"Plan and roster are countersigned by {', '.join(event.members)}."
        case e.SetupDone():
            return "The secure sum is set up."
        case e.EpochEnded():
            return f"A new epoch begins: {event.reason}."
        case e.Resumed():
            return f"Going on in round {event.round + 1}."
        case e.RoundDone() if rounds:
            return f"Round {event.round + 1}: {len(event.survivors)} sites, {event.seconds:.2f} s."
        case e.Stalled():
            return f"Round {event.round + 1} waits for {', '.join(event.missing)}."
        case e.Burnt():
            return f"Round {event.round + 1} begins again: {event.reason}."
        case e.Refused():
            return f"Refused a message of {event.peer}: {event.reason}"
        case e.LeaseTaken():
            return "This process acts for the study."
        case e.LeaseLost():
            return "Another process acts for the study now; this one stands by."
        case e.Stopped():
            return f"Stopped: {event.reason.rstrip('.')}."
        case _:
            return None
