from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runtime.observe.examples import EXAMPLES

from cloister.runtime.events import (
    Burnt,
    Connected,
    Ended,
    Event,
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
from cloister.runtime.observe import EventLog, LogReader, StudyView


def viewed(logs: Path, *events: Event, public: bool = False) -> StudyView:
    log = EventLog(logs, study="s", party="hub", public=public)
    for event in events:
        log(event)
    log.close()
    view = StudyView()
    with LogReader(logs, "s") as reader:
        view.take(reader.read())
    return view


def test_a_study_that_runs(tmp_path: Path) -> None:
    view = viewed(
        tmp_path,
        Started("hub", 10, ("a", "b", "c")),
        LeaseTaken(4),
        Connected("a"),
        Connected("b"),
        RosterAgreed(1, ("a", "b")),
        SetupDone(1, bytes(32)),
        Burnt(0, 0, "too few"),
        RoundDone(0, 1, ("a", "b"), 3.0, {"accuracy": 0.5}, epoch=1),
        RoundDone(1, 2, ("a",), 1.0, {"accuracy": 0.75}, epoch=1),
        Traffic({"a": 10}, {"a": 20, "b": 5}),
        Lost("b"),
        Stalled(2, ("b",)),
        Refused("eve", "late"),
        Spent("patients", 0.5, 2.0, 1e-6, 0.25),
        public=True,
    )
    told = view.to_json()
    assert (told["state"], told["rounds"], told["done"], told["epoch"]) == ("running", 10, 2, 1)
    assert told["seconds_left"] == 8 * 2.0
    assert told["lease"] == {"term": 4, "held": True}
    assert told["sites"] == {
        "a": {"present": True, "last_round": 1, "sent": 10, "received": 20},
        "b": {"present": False, "last_round": 0, "sent": 0, "received": 5},
        "c": {"present": None, "last_round": None, "sent": 0, "received": 0},
    }
    assert told["metrics"] == {"accuracy": 0.75}
    assert told["spent"]["patients"] == {"epsilon": 0.5, "limit": 2.0, "delta": 1e-6, "share": 0.25}
    assert (told["burnt"], told["refused"], told["missing"]) == (1, 1, ["b"])
    json.dumps(told)


def test_loss_is_there_only_where_rows_are_public(tmp_path: Path) -> None:
    assert viewed(tmp_path, RoundDone(0, 0, ("a",), 1.0, {"accuracy": 0.5})).metrics is None


def test_a_restart_keeps_what_was_and_bytes_add_up(tmp_path: Path) -> None:
    view = viewed(
        tmp_path,
        Started("hub", 10, ("a",)),
        Connected("a"),
        RoundDone(0, 0, ("a",), 1.0),
        Traffic({"a": 100}, {}),
        Started("hub", 10, ("a",)),
        Resumed(0, 1, 2),
        Traffic({"a": 30}, {}),
        Traffic({"a": 70}, {}),
    )
    assert (view.state, view.done) == ("running", 1)
    assert view.sites["a"].sent == 170
    assert view.sites["a"].present is False


def test_a_stand_by_that_took_over_holds_the_lease(tmp_path: Path) -> None:
    view = viewed(tmp_path, LeaseTaken(4), LeaseTaken(5), LeaseLost(4))
    assert (view.held, view.term) == (True, 5)
    assert viewed(tmp_path, LeaseLost(5)).held is False


@pytest.mark.parametrize(("event", "state"), [(Ended(3), "ended"), (Stopped("why"), "stopped")])
def test_ends(tmp_path: Path, event: Event, state: str) -> None:
    view = viewed(tmp_path, event)
    assert view.state == state
    assert view.seconds_left is None


def test_every_kind_of_event_is_understood_and_unknown_ones_are_left_alone(tmp_path: Path) -> None:
    view = viewed(tmp_path, *EXAMPLES.values(), public=True)
    with (tmp_path / "s.jsonl").open("a") as file:
        file.write('{"time":"2026-01-02T03:04:05Z","party":"hub","study":"s","event":"newer","field":1}\n')
        file.write(
            '{"time":"2026-01-02T03:04:05Z","party":"hub","study":"s","event":"refused","count":"x"}\n'
        )
        file.write("[]\nnull\n\xff\n\n")
    with LogReader(tmp_path, "s") as reader:
        lines = reader.read()
    assert len(lines) == len(EXAMPLES) + 1
    assert reader.unreadable == 4
    before = view.refused
    view.take(lines[-1:])
    assert view.refused == before
