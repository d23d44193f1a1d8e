"""Two hubs for one study: the lease says which acts, and one that wakes up late does no harm."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.faults.replay import replayed, undisturbed
from tests.faults.stage import Stage, figure, model_of, staged

pytestmark = pytest.mark.slow
ROUNDS = 60


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("hubs"), 4) as opened:
        opened.start(*opened.sites, pace=0.1)
        yield opened


def hubs_said(stage: Stage, event: str, number: int) -> list[dict[str, Any]]:
    """Return what the hub's processes, of either name, have said of a study."""
    pids = {each["pid"] for each in stage.said("hub", "up", plan=number)}
    return [each for each in stage.said("hub", event) if each["pid"] in pids]


def begin(stage: Stage, number: int, *names: str) -> None:
    """Start a study whose first hub holds the lease and has finished rounds, and then the others."""
    stage.homes.add_study(
        number, training={"rounds": ROUNDS}, study={"spare_rounds": 60, "name": f"study-{number}"}
    )
    first, *others = names
    stage.start(first, study=number, lease=True)
    stage.wait(lambda: len(hubs_said(stage, "round", number)) >= 3, what="for the first rounds")
    for name in others:
        stage.start(name, study=number, lease=True)
        pid = stage.processes[name].pid
        stage.wait(lambda pid=pid: [e for e in stage.said("hub", "up") if e["pid"] == pid])


def check(stage: Stage, number: int) -> None:
    end = stage.outcome(number, 120.0)
    assert end["stopped"] is None, stage.story()
    for model in stage.models(number, stage.sites):
        np.testing.assert_array_equal(model, model_of(end))
    for name in ("hub", "hub-2"):
        if name in stage.processes:
            stage.kill(name)
    expected = replayed(stage.homes, number, stage.defaults.seed)
    np.testing.assert_array_equal(model_of(end), expected)
    if all(len(survivors) == len(stage.sites) for _, _, _, survivors in end["rounds"]):
        np.testing.assert_array_equal(expected, undisturbed(stage.homes, number, stage.defaults.seed))


def acted(stage: Stage, number: int, name: str) -> list[dict[str, Any]]:
    """Return the rounds that one of the processes finished."""
    pid = stage.processes[name].pid
    return [each for each in hubs_said(stage, "round", number) if each["pid"] == pid]


def test_a_second_hub_stands_by_and_takes_over(stage: Stage) -> None:
    begin(stage, 1, "hub", "hub-2")
    done = len(hubs_said(stage, "round", 1))
    stage.wait(lambda: len(hubs_said(stage, "round", 1)) >= done + 10, what="for more rounds")
    assert not acted(stage, 1, "hub-2"), "the second acted while the first held the lease"
    stage.kill("hub")
    killed = time.monotonic()
    stage.wait(lambda: acted(stage, 1, "hub-2"), 30.0, what="for the second hub")
    took = time.monotonic() - killed
    check(stage, 1)
    figure(f"the second hub's first sum came {took:.1f} s after the first was killed")


def test_a_hub_that_wakes_up_late_does_no_harm(stage: Stage) -> None:
    begin(stage, 2, "hub", "hub-2")
    stage.kill("hub", signal.SIGSTOP)
    stopped = time.monotonic()
    # the sleeper holds the journal's lock as a process that hangs does: the second waits for it or is refused
    stage.wait(
        lambda: acted(stage, 2, "hub-2") or stage.said("hub", "failed") or time.monotonic() > stopped + 15.0,
        30.0,
    )
    before = len(acted(stage, 2, "hub-2"))
    stage.kill("hub", signal.SIGCONT)
    stage.wait(
        lambda: len(hubs_said(stage, "round", 2)) >= ROUNDS or stage.said("hub", "end", study="study-2"), 90.0
    )
    check(stage, 2)
    figure(f"while the first slept the second had finished {before} rounds")


def test_an_older_hub_that_is_killed_leaves_a_lease_that_ends(stage: Stage) -> None:
    begin(stage, 3, "hub")
    for _ in range(3):
        stage.kill("hub")
        done = len(hubs_said(stage, "round", 3))
        stage.start("hub", study=3, lease=True)
        stage.wait(lambda done=done: len(hubs_said(stage, "round", 3)) > done, 30.0, what="for the lease")
    check(stage, 3)
