"""`cloister study watch`: how a study goes, from the event log of a hub or a site in this home.

It reads, and asks nobody: a study runs on whether it is watched or not. What is shown comes from the log and
is plain text, never Rich markup.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit
from cloister.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloister.runtime.observe import Line, LogReader, StudyView

__all__ = ["watch"]

_POLL: Final = 0.5
_STATES: Final = {
    "waiting": "waits for its first round",
    "running": "runs",
    "ended": "has ended",
    "stopped": "stopped early",
}


def watch(
    name: Annotated[str, typer.Argument(help="The study's name, as its plan says it.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands now, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch a study that a hub or a site runs in this home, until it ends: rounds, sites, bytes, budget.

    With --json one object a change, a line each; with --once too, a single one. Exit code 1 says that the
    study stopped before its last round.
    """
    from cloister.runtime.observe import LogReader, StudyView

    view = StudyView()
    with LogReader(common.home() / "logs", name) as reader:
        lines = reader.read()
        view.take(lines)
        if once:
            emit(view.to_json(), as_json=as_json, text=in_words(view, datetime.now(UTC)))
            return
        if as_json:
            _follow(reader, view, lambda new: print(json.dumps(view.to_json()), flush=True))
        elif sys.stdout is not None and sys.stdout.isatty():
            _live(reader, view)
        else:
            print(in_words(view, datetime.now(UTC)), flush=True)
            _follow(reader, view, _say, first=False)
    if view.state == "stopped":
        raise typer.Exit(1)


def _follow(
    reader: LogReader, view: StudyView, show: Callable[[list[Line]], None], *, first: bool = True
) -> None:
    """Show what comes until the study is over."""
    if first:
        show([])
    while view.state not in ("ended", "stopped"):
        time.sleep(_POLL)
        if lines := reader.read():
            view.take(lines)
            show(lines)


def _live(reader: LogReader, view: StudyView) -> None:
    from rich.live import Live

    live = Live(_table(view, datetime.now(UTC)), auto_refresh=False)
    try:  # and not `with`: Ctrl-C within its first drawing would leave the cursor hidden
        live.start(refresh=True)
        while view.state not in ("ended", "stopped"):
            time.sleep(_POLL)
            view.take(reader.read())
            live.update(_table(view, datetime.now(UTC)), refresh=True)
    finally:
        live.stop()


# --- in words ---------------------------------------------------------------------------------------------


def in_words(view: StudyView, now: datetime) -> str:
    """Return how a study stands, as lines for people.

    Args:
        view: what the log says.
        now: the time, with its zone.
    """
    from cloister.report.words import bytes_in_words

    lines = [*_head(view, now)]
    for name, site in view.sites.items():
        parts = [_presence(site.present)]
        if site.last_round is not None:
            parts.append(f"last in round {site.last_round + 1}")
        if site.sent or site.received:
            parts.append(f"sent {bytes_in_words(site.sent)}, received {bytes_in_words(site.received)}")
        lines.append(f"  {printable(name)}: {', '.join(part for part in parts if part) or 'a member'}")
    return "\n".join([*lines, *_foot(view)])


def _head(view: StudyView, now: datetime) -> list[str]:
    from cloister.report.words import seconds_in_words

    planned = f" of {view.rounds}" if view.rounds else ""
    pace = f", the last in {seconds_in_words(view.seconds[-1])}" if view.seconds else ""
    left = "" if view.seconds_left is None else f", about {seconds_in_words(view.seconds_left)} left"
    lines = [
        f"{printable(view.study)} {_STATES[view.state]}, seen from {printable(view.party)}.",
        f"{view.done}{planned} rounds{pace}{left}.",
    ]
    if view.reason:
        lines.append(f"Reason: {printable(view.reason)}")
    if view.missing:
        lines.append(f"Waits for {', '.join(printable(name) for name in view.missing)}.")
    if view.last is not None and view.state in ("waiting", "running"):
        age = max((now - view.last).total_seconds(), 0.0)
        lines.append(f"Last event {seconds_in_words(age)} ago.")
    return lines


def _foot(view: StudyView) -> list[str]:
    lines = []
    if view.metrics is not None:
        measured = ", ".join(f"{printable(key)} {_figure(value)}" for key, value in view.metrics.items())
        lines.append(f"Model before the last round: {measured}.")
    for name, line in view.spent.items():
        share = "" if line.share is None else f" ({line.share:.1%} of the budget)"
        lines.append(
            f"Budget of {printable(name)}: epsilon {_figure(line.epsilon)} of {_figure(line.limit)} "
            f"at delta {_figure(line.delta)}{share}."
        )
    if view.held is not None:
        lines.append(f"Lease: term {view.term}, {'held' if view.held else 'lost'}.")
    lines += [
        f"{what}: {count}."
        for count, what in (
            (view.burnt, "Burnt attempts"),
            (view.refused, "Refused messages"),
            (view.lines_lost, "Lines that the log had no room for"),
        )
        if count
    ]
    return lines


def _presence(present: bool | None) -> str:
    return "" if present is None else "connected" if present else "away"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


# --- one line an event ------------------------------------------------------------------------------------


def _say(lines: Iterable[Line]) -> None:
    for line in lines:
        if sentence := _sentence(line):
            print(f"{line.time:%H:%M:%S} {printable(sentence)}", flush=True)


def _sentence(line: Line) -> str:
    """Return what a line says; empty where it only moves figures."""
    match line.event:
        case "started":
            return f"The {line.role} {line.party} started."
        case "connected":
            return f"{line.peer} is connected."
        case "lost":
            return f"{line.peer} is away."
        case "evidence_accepted":
            return f"Evidence of {line.peer} accepted ({line.kind}): {line.protection}."
        case "roster_agreed":
            return f"Epoch {line.epoch}: {', '.join(line.members)} agreed to plan and roster."
        case "setup_done":
            return f"Epoch {line.epoch}: the secure sum is set up."
        case "round_done":
            return _round(line)
        case "refused":
            return f"Refused a message of {line.peer}: {line.reason}"
        case "refused_more":
            return f"Refused {line.count} more messages."
        case "stalled":
            return f"Round {line.round + 1} waits for {', '.join(line.missing)}."
        case "burnt":
            return f"Round {line.round + 1} begins again: {line.reason}"
        case "epoch_ended":
            return f"Epoch {line.epoch} ended: {line.reason}"
        case "resumed":
            return f"Goes on with round {line.round + 1}."
        case "lease_taken":
            return f"Holds the lease, term {line.term}."
        case "lease_lost":
            return f"Lost the lease of term {line.term}."
        case "stopped":
            return f"Stopped: {line.reason}"
        case "ended":
            return f"Ended after {line.rounds} rounds."
        case _:
            return ""


def _round(line: Line) -> str:
    from cloister.report.words import seconds_in_words

    took = "" if line.seconds is None else f" in {seconds_in_words(line.seconds)}"
    measured = ", ".join(f"{key} {_figure(value)}" for key, value in (line.metrics or {}).items())
    return (
        f"Round {line.round + 1} done{took}, with {len(line.survivors)} sites{measured and ': '}{measured}."
    )


# --- live -------------------------------------------------------------------------------------------------


def _table(view: StudyView, now: datetime) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from cloister.report.words import bytes_in_words

    table = Table("party", "", "last round", "sent to it", "received", box=None, padding=(0, 2, 0, 0))
    for name, site in view.sites.items():
        last = "" if site.last_round is None else str(site.last_round + 1)
        table.add_row(
            Text(printable(name)),
            Text(_presence(site.present), style="red" if site.present is False else "green"),
            last,
            bytes_in_words(site.sent),
            bytes_in_words(site.received),
        )
    parts: list[RenderableType] = [Text("\n".join(_head(view, now)))]
    if view.rounds:
        bar = Table.grid()
        bar.add_row(ProgressBar(view.rounds, min(view.done, view.rounds), width=60))
        parts.append(bar)
    if view.sites:
        parts.append(table)
    parts += [Text(line) for line in _foot(view)]
    return Group(*parts)
