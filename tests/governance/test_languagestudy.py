"""The study that an audit runs: whose rows are clipped together, and its steps without their noise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.governance.languageaudits import PRIVACY, language_plan
from tests.runtime.languageparties import base, schema

from cloister.governance.languagestage import opened
from cloister.governance.languagestudy import LanguageStudy, SiteRows, _dealt
from cloister.governance.plantedrows import planted_rows
from cloister.learning.attacks.languagesecrets import make_plant

UNITS = [[0, 0, 1, 2], [0, 1, 1, 1, 2], [2, 0, 0], [7, 7], [0]]


def site_rows() -> list[SiteRows]:
    """Sites that number their units from nought, or anyhow; rows are numbered through."""
    ends = np.cumsum([len(units) for units in UNITS])
    return [
        SiteRows(np.arange(end - len(units), end), np.array(units))
        for end, units in zip(ends, UNITS, strict=True)
    ]


def clipped_together(sites: list[SiteRows]) -> Counter[tuple[int, ...]]:
    """The row sets that are clipped as one."""
    return Counter(
        tuple(sorted(site.rows[site.units == unit].tolist()))
        for site in sites
        for unit in np.unique(site.units)
    )


@pytest.mark.parametrize("shares", [1, 2, 3, 4, 5])
def test_units_of_sites_that_are_dealt_to_others_stay_apart(shares: int) -> None:
    sites = site_rows()
    dealt = _dealt(sites, shares)
    assert len(dealt) == shares
    assert clipped_together(dealt) == clipped_together(sites)


def test_local_steps_run_without_their_noise(tmp_path: Path) -> None:
    """Two steps and a small model: noise is drawn ahead."""
    pytest.importorskip("transformers")
    folder = base(tmp_path)
    privacy = PRIVACY | {"mode": "local", "noise_multiplier": 0.7}
    training = {"rounds": 1, "batch": 4, "algorithm": "fedavg", "local_steps": 2, "learning_rate": 0.1}
    training["server_learning_rate"] = 1.0
    plan = language_plan("causal-lm", folder, sites=3, privacy=privacy, training=training)
    own, counts = schema("causal-lm"), {site.name: 6 for site in plan.sites}
    with opened(plan, own, folder, "cpu") as stage:
        terms = stage.terms(counts)
        plant = make_plant(copies=(1,), each=1, coins=0, kinds=("pin",))
        examples, sites, _ = planted_rows(plan, own, stage.learner, plant, counts, None)
        study = LanguageStudy(plan, stage.learner, stage.facts, terms, examples, sites, noise=False)
        assert np.isfinite(study.run()).all()
