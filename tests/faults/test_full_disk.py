"""A hub or a site whose disk is full stops with a reason; with room again the study goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.faults.replay import replayed, undisturbed
from tests.faults.stage import Stage, model_of, staged

pytestmark = pytest.mark.slow


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path, 4) as opened:
        yield opened


def test_the_hub_goes_on_when_there_is_room_again(stage: Stage) -> None:
    stage.homes.add_study(0, training={"rounds": 60}, study={"name": "study-0", "spare_rounds": 60})
    stage.start(*stage.sites)
    for room in (12_000, 24_000):
        stage.start("hub", room=room)
        stage.processes["hub"].join(60)
        assert stage.processes["hub"].exitcode == 1, stage.story()
        said = (stage.homes.root / "said" / "hub.errors").read_text()
        assert "StorageError: " in said
        assert "File too large" in said
        assert not stage.said("hub", "end")
    del stage.processes["hub"]
    stage.start("hub")
    end = stage.outcome(0)
    assert end["stopped"] is None
    for model in stage.models(0, stage.sites):
        np.testing.assert_array_equal(model, model_of(end))
    stage.processes["hub"].join(20)
    expected = replayed(stage.homes, 0, stage.defaults.seed)
    np.testing.assert_array_equal(model_of(end), expected)
    if all(len(survivors) == 4 for _, _, _, survivors in end["rounds"]):
        np.testing.assert_array_equal(expected, undisturbed(stage.homes, 0, stage.defaults.seed))
