"""A network that loses, repeats, reorders, delays and alters; a site that is cut off; a slow one; a wrong clock."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.datagrams import Faults
from tests.faults.proxy import Proxy
from tests.faults.replay import replayed, undisturbed
from tests.faults.stage import Stage, figure, model_of, staged

pytestmark = pytest.mark.slow

_BAD = {
    "duplicated": Faults(duplicate=0.3),
    "delayed": Faults(delay=0.05),
    "reordered": Faults(reorder=0.3),
    "corrupted": Faults(corrupt=0.1),
    "lost": Faults(drop=0.1),
    "all of it": Faults(drop=0.05, duplicate=0.1, reorder=0.2, corrupt=0.05, delay=0.005),
}


@pytest.fixture
def stage(tmp_path: Any) -> Iterator[Stage]:
    with staged(tmp_path, 4) as opened:
        yield opened


def check(stage: Stage, number: int, sites: list[str], *, everybody: bool = False) -> dict[str, Any]:
    end = stage.outcome(number, 120.0)
    assert end["stopped"] is None, stage.story()
    for model in stage.models(number, sites):
        np.testing.assert_array_equal(model, model_of(end))
    stage.processes["hub"].join(20)
    seed = stage.defaults.seed
    np.testing.assert_array_equal(model_of(end), replayed(stage.homes, number, seed))
    if everybody:
        np.testing.assert_array_equal(model_of(end), undisturbed(stage.homes, number, seed))
    return end


def test_datagrams_that_are_lost_repeated_reordered_delayed_and_altered(stage: Stage) -> None:
    for number, (what, faults) in enumerate(_BAD.items()):
        rounds = 20
        stage.homes.add_study(
            number, training={"rounds": rounds}, study={"name": f"study-{number}", "deadline_seconds": 30.0}
        )
        for name in stage.sites:
            if name in stage.processes:
                stage.kill(name)
        stage.start("hub", *stage.sites, study=number, faults=faults)
        began = time.monotonic()
        check(stage, number, stage.sites, everybody=True)
        figure(f"{what}: {rounds} rounds in {time.monotonic() - began:.1f} s")


def test_a_site_that_is_cut_off_for_twenty_seconds(stage: Stage) -> None:
    host, port = stage.server.urls[0].removeprefix("tls://").split(":")
    with Proxy((host, int(port))) as proxy:
        stage.homes.add_study(0, training={"rounds": 260}, study={"name": "study-0", "spare_rounds": 60})
        *others, cut = stage.sites
        stage.start("hub", *others, pace=0.1)
        stage.start(cut, urls=(f"tls://127.0.0.1:{proxy.port}",), pace=0.1)
        stage.wait(lambda: stage.rounds() >= 5, what="for the first rounds")
        proxy.cut()
        done = stage.rounds()
        time.sleep(20.0)
        alone = stage.rounds() - done
        proxy.mend()
        mended = time.monotonic()
        stage.wait(
            lambda: [each for each in stage.said("hub", "round")[-2:] if cut in each["survivors"]],
            60.0,
            what="for the site that was cut off",
        )
        figure(
            f"a cut of 20 s: {alone} rounds without the site; it was back {time.monotonic() - mended:.1f} s after"
        )
        assert alone > 10
        end = check(stage, 0, stage.sites)
        assert any(cut not in survivors for _, _, _, survivors in end["rounds"])


def test_a_network_that_resets_connections(stage: Stage) -> None:
    host, port = stage.server.urls[0].removeprefix("tls://").split(":")
    with Proxy((host, int(port))) as proxy:
        stage.homes.add_study(0, training={"rounds": 60}, study={"name": "study-0", "spare_rounds": 60})
        *others, cut = stage.sites
        stage.start("hub", *others, pace=0.05)
        stage.start(cut, urls=(f"tls://127.0.0.1:{proxy.port}",), pace=0.05)
        for _ in range(8):
            done = stage.rounds()
            stage.wait(lambda done=done: stage.rounds() > done + 2 or stage.said("hub", "end"))
            proxy.reset()
        check(stage, 0, stage.sites)


def test_a_slow_site_is_waited_for_until_the_deadline_and_then_left_out(stage: Stage) -> None:
    """Slower than the others and within the deadline: in every round. Beyond it: left out, and not in the way."""
    stage.homes.add_study(0, training={"rounds": 6}, study={"name": "study-0", "deadline_seconds": 3.0})
    *others, slow = stage.sites
    stage.start("hub", *others)
    stage.start(slow, pace=1.0)
    check(stage, 0, stage.sites, everybody=True)
    stage.kill(slow)
    stage.homes.add_study(1, training={"rounds": 20}, study={"name": "study-1", "deadline_seconds": 1.5})
    stage.start(slow, pace=4.0)
    stage.start("hub", study=1)
    end = check(stage, 1, others)
    counted = [slow in survivors for _, _, _, survivors in end["rounds"]]
    assert not all(counted)
    took = [each["at"] for each in stage.said("hub", "round") if each["pid"] == stage.processes["hub"].pid]
    figure(
        f"a site slower than the deadline: in {sum(counted)} of 20 rounds, {took[-1] - took[0]:.1f} s for all"
    )


@pytest.mark.parametrize("days", [-1.0, 1.0])
def test_clocks_that_are_a_day_wrong(tmp_path: Path, days: float) -> None:
    """One site's clock, then the hub's; the studies are private, since ledgers write dates down."""
    with staged(tmp_path, 4, budgets=True) as stage:
        stage.homes.add_study(0, private=True)
        *others, wrong = stage.sites
        stage.start("hub", *others, lease=True)
        stage.start(wrong, skew=days * 86_400.0)
        check_and_end(stage, 0)
        dates = {name: logged(stage, name, 0) for name in (wrong, others[0])}
        assert abs((dates[wrong] - dates[others[0]]).total_seconds() - days * 86_400.0) < 600.0
        stage.homes.add_study(1, private=True)
        stage.start("hub", *others, study=1, lease=True, skew=-days * 86_400.0)
        stage.start(wrong)
        check_and_end(stage, 1)


def check_and_end(stage: Stage, number: int) -> None:
    """As `check`; sites are ended first, since the model is computed again with their ledgers."""
    end = stage.outcome(number, 120.0)
    assert end["stopped"] is None, stage.story()
    models = stage.models(number, stage.sites)
    stage.processes["hub"].join(20)
    stage.end()
    expected = undisturbed(stage.homes, number, stage.defaults.seed)
    for model in [*models, model_of(end)]:
        np.testing.assert_array_equal(model, expected)


def logged(stage: Stage, name: str, number: int) -> datetime:
    """Return the date of a site's first line about a study."""
    log = stage.homes.home(name) / "logs" / f"study-{number}.jsonl"
    return datetime.fromisoformat(json.loads(log.read_text().splitlines()[0])["time"])
