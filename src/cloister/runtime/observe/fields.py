"""What of an event may be kept: one mapping for each kind, and nothing passes without one.

Invariants:
- every field that leaves is named here; what else an object carries is not looked at;
- text is one printable line of bounded length, without anything that looks like a path, a key or a digest:
  reasons quote errors, and some of them come from peers;
- measures of the model are dropped unless the caller says that the plan declares its rows public.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, assert_never

from cloister.runtime.events import (
    Burnt,
    Connected,
    Ended,
    EpochEnded,
    Event,
    EvidenceAccepted,
    LeaseLost,
    LeaseTaken,
    Lost,
    Refused,
    Resumed,
    RosterAgreed,
    RoundDone,
    SetupDone,
    Spent,
    Stalled,
    Started,
    Stopped,
    Traffic,
)
from cloister.text import printable

__all__ = ["event_fields", "event_name", "one_line"]

MAX_TEXT: Final = 400
MAX_NAME: Final = 63
_NAMES: Final = 10_000
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}\Z", re.ASCII)
_WHERE: Final = re.compile(r"\((?:~|\.{0,2})/[^)]*\)")
_PATH: Final = re.compile(r"[^\s'\"(),;:]*/[^\s'\"(),;:]*")
_FILE: Final = re.compile(
    r"[^\s'\"(),;:]+\.(?:csv|tsv|txt|json|jsonl|toml|parquet|arrow|feather|xlsx?|pem)\b", re.I
)
_LONG: Final = re.compile(r"[A-Za-z0-9+=_-]{32,}")
_CAPITAL: Final = re.compile(r"(?<!^)(?=[A-Z])")


def event_name(event: Event) -> str:
    """Return what a kind of event is called in files: `round_done` for `RoundDone`."""
    return _CAPITAL.sub("_", type(event).__name__).lower()


def one_line(text: object, limit: int = MAX_TEXT) -> str:
    """Return text as one printable line of at most `limit` characters, without paths and long tokens."""
    line = printable(str(text)[: 16 * limit])
    line = _WHERE.sub("([path])", " ".join(line.split()))
    line = _LONG.sub("[...]", _FILE.sub("[path]", _PATH.sub("[path]", line)))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def event_fields(event: Event, *, public: bool = False) -> dict[str, Any]:
    """Return what may be kept of an event: JSON types only.

    Args:
        event: any of `cloister.runtime.events`.
        public: the plan declares its rows public, so that measures of the model may be told.
    """
    match event:
        case Started():
            return {
                "role": _name(event.role),
                "rounds": int(event.rounds),
                "members": _names(event.members),
            }
        case Connected() | Lost():
            return {"peer": _name(event.peer)}
        case EvidenceAccepted():
            return {
                "peer": _name(event.peer),
                "kind": _name(event.kind),
                "protection": one_line(event.protection, MAX_NAME),
            }
        case RosterAgreed():
            return {"epoch": int(event.epoch), "members": _names(event.members)}
        case SetupDone():
            return {"epoch": int(event.epoch), "setup_digest": bytes(event.setup_digest[:8]).hex()}
        case RoundDone():
            return _round_done(event, public)
        case Refused():
            return {"peer": _name(event.peer), "reason": one_line(event.reason)}
        case Stalled():
            return {"round": int(event.round), "missing": _names(event.missing)}
        case Burnt():
            return {
                "round": int(event.round),
                "attempt": int(event.attempt),
                "reason": one_line(event.reason),
            }
        case EpochEnded():
            return {"epoch": int(event.epoch), "reason": one_line(event.reason)}
        case Resumed():
            return {"epoch": int(event.epoch), "round": int(event.round), "attempt": int(event.attempt)}
        case LeaseTaken() | LeaseLost():
            return {"term": int(event.term)}
        case Traffic():
            return {"sent": _counts(event.sent), "received": _counts(event.received)}
        case Spent():
            return {
                "population": _name(event.population),
                "epsilon": _number(event.epsilon),
                "limit": _number(event.limit),
                "delta": _number(event.delta),
                "share": _number(event.share),
            }
        case Stopped():
            return {"reason": one_line(event.reason)}
        case Ended():
            return {"rounds": int(event.rounds)}
        case _:
            assert_never(event)


def _round_done(event: RoundDone, public: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "epoch": int(event.epoch),
        "round": int(event.round),
        "attempt": int(event.attempt),
        "survivors": _names(event.survivors),
        "seconds": _number(event.seconds),
    }
    if public and event.metrics is not None:
        fields["metrics"] = _measures(event.metrics)
        if event.site_metrics is not None:
            each = event.site_metrics.items()
            fields["site_metrics"] = {_name(site): _measures(measured) for site, measured in each}
    return fields


def _name(name: str) -> str:
    return name if _NAME.match(name) else one_line(name, MAX_NAME)


def _names(names: Iterable[str]) -> list[str]:
    return [_name(name) for name in list(names)[:_NAMES]]


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {_name(peer): int(count) for peer, count in list(counts.items())[:_NAMES]}


def _number(value: float) -> float | None:
    """Return a finite number to six digits; JSON knows no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _measures(measures: Mapping[str, float]) -> dict[str, float | None]:
    return {_name(name): _number(value) for name, value in measures.items()}
