"""Rows, updates and models that must stay are sought everywhere else: network, broker, hub, logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.canary import Canary, Hit, search_bytes, search_command_line, search_files
from tests.faults.capture import Capture, refused
from tests.faults.replay import journalled, replayed
from tests.faults.stage import Stage, figure, model_of, staged
from tests.faults.test_strangers import recorded
from tests.runtime.parties import table

from cloister.learning import client_update

pytestmark = pytest.mark.slow

UPDATES = {"site0": 0.0123456789, "site1": -0.0234567891, "site2": 0.0345678912, "site3": 0.0456789123}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path, 4) as opened:
        yield opened


def rows_planted(stage: Stage) -> list[Canary]:
    """Return a piece of a column and a row of every site."""
    planted = []
    for seed, name in enumerate(stage.sites):
        rows = table(stage.homes.vault(stage.homes.identity(name)).manifest("train").rows, seed)
        a, b = (rows.column(column).to_numpy() for column in ("a", "b"))
        planted += [
            Canary.numbers(f"column of {name}", a[:3]),
            Canary.numbers(f"row of {name}", (a[0], b[0])),
        ]
    return planted


def updates_planted(stage: Stage, number: int) -> list[Canary]:
    """Return every site's update as it was trained, weighted, and encoded."""
    terms, planted = journalled(stage.homes, number).epochs[-1].terms, []
    for name, added in UPDATES.items():
        plain = np.full(3, added)
        update = client_update(plain, np.zeros(3), terms.weights[name])
        encoded = terms.encoding.encode(update).tobytes()
        planted += [
            Canary.numbers(f"update of {name}", plain),
            Canary.numbers(f"weighted update of {name}", update),
            Canary.secret(f"encoded update of {name}", encoded),
        ]
    return planted


def model_planted(model: Any) -> list[Canary]:
    return [Canary.numbers("model", model), Canary.secret("model", model.tobytes())]


def play(stage: Stage, hub_view: str) -> tuple[dict[str, Any], Any, list[bytes]]:
    """Run a study; return how it ended, the model, and all that went over the network's line."""
    stage.homes.add_study(0, aggregation={"hub_view": hub_view}, training={"rounds": 8})
    capture = Capture(stage.server.ports) if refused() is None else None
    with capture or nullcontext():
        stage.start("hub", *stage.sites, updates=UPDATES, record=True)
        end = stage.outcome(0)
        assert end["stopped"] is None
        model = stage.models(0, stage.sites)[0]
        for process in stage.processes.values():
            if process.is_alive():
                assert not search_command_line(model_planted(model), process.pid)
        stage.end()
    streams = [] if capture is None else list(capture.streams().values())
    if capture is not None:
        assert sum(map(len, streams)) > 10_000
    return end, model, streams


def found(stage: Stage, canaries: list[Canary], streams: list[bytes]) -> list[Hit]:
    """Search all that is not the sites' own: the line, the broker, what it carried, the hub; and every log."""
    root, hits = stage.homes.root, []
    for number, stream in enumerate(streams):
        hits += search_bytes(canaries, stream, f"stream {number}")
    for name in ["hub", *stage.sites]:
        for number, datagram in enumerate(recorded(root, name)):
            hits += search_bytes(canaries, datagram, f"datagram {number} to {name}")
        logs = stage.homes.home(name) / "logs"
        hits += search_files(canaries, logs, root / "said" / f"{name}.errors")
    return hits + search_files(
        canaries, root / "server", stage.homes.home("hub"), root / "plans", root / "public"
    )


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_rows_and_updates_stay_and_the_model_where_the_hub_may_not_see_it(
    stage: Stage, hub_view: str
) -> None:
    end, model, streams = play(stage, hub_view)
    expected = replayed(stage.homes, 0, stage.defaults.seed, UPDATES) if hub_view == "sum" else model
    np.testing.assert_array_equal(model, expected)
    canaries = [*rows_planted(stage), *updates_planted(stage, 0), *model_planted(model)]
    assert not found(stage, canaries, streams)
    # the search sees what is there: the sites report their model to the test
    assert {hit.canary for hit in search_files(canaries, stage.homes.root / "said")} == {"model"}
    seen = sum(map(len, streams))
    figure(f"hub_view {hub_view}: {len(canaries)} canaries, {seen} bytes of traffic, none found")
    if hub_view == "sum":
        np.testing.assert_array_equal(model_of(end), model)
    else:
        assert end["model"] is None
