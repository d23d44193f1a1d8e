"""Processes over a network end with the same model as one process over none, bit for bit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.faults.homes import Homes, seeded
from tests.faults.stage import model_of, staged

from cloister.runtime import Study


def in_one_process(homes: Homes, number: int, seed: int) -> bytes:
    """Return the model of the study as `Study` runs it."""
    with ExitStack() as ledgers:
        study = Study(homes.plan(number), homes.identity("hub"), homes.parties(number, ledgers))
        for site in study.sites.values():
            seeded(site, seed)
        return study.run().model.tobytes()


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_processes_compute_what_one_process_computes(tmp_path: Path, hub_view: str) -> None:
    with staged(tmp_path, 3) as stage:
        stage.homes.add_study(0, aggregation={"hub_view": hub_view}, training={"rounds": 5})
        stage.start("hub", *stage.sites)
        end = stage.outcome(0)
        assert end["stopped"] is None
        models = stage.models(0, stage.sites)
        stage.end()
        expected = np.frombuffer(in_one_process(stage.homes, 0, stage.defaults.seed))
    for model in [*models, *([model_of(end)] if hub_view == "sum" else [])]:
        np.testing.assert_array_equal(model, expected)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    homes = Homes.prepare(tmp_path, 3)
    homes.add_study(0)
    assert in_one_process(homes, 0, 7) != in_one_process(homes, 0, 8)
