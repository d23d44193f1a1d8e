"""Rows that an audit trains on: an owner's become tokens and units as its site makes them for the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.governance.languageaudits import PRIVACY, language_plan
from tests.runtime.languageparties import base, schema, table

from cloister.errors import InputError, SchemaError
from cloister.governance.languagestage import opened
from cloister.governance.plantedrows import planted_rows
from cloister.learning.attacks.languagesecrets import Canary, Plant, Secret, make_plant

BY_PERSON = PRIVACY | {"unit": "person", "sites_per_unit": 1, "expected_units": 9, "noise_multiplier": 0.7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return base(tmp_path_factory.mktemp("planted"))


def test_rows_of_one_name_are_a_unit(folder: Path) -> None:
    plan = language_plan("causal-lm", folder, sites=3, privacy=BY_PERSON)
    own = schema("causal-lm", persons=True)
    counts = {site.name: 7 for site in plan.sites}
    rows = table("causal-lm", 7, 1, persons=True)
    order = [0, 3, 6, 1, 4, 2, 5]  # a person's rows do not lie together
    plant = make_plant(copies=(2,), each=3, coins=0, kinds=("pin",))
    with opened(plan, own, folder, "cpu") as stage:
        given = {plan.sites[1].name: rows.take(order)}
        _, (first, site, _), _ = planted_rows(plan, own, stage.learner, plant, counts, given)
    assert len(site.rows) == 9
    found = [tuple(np.flatnonzero(site.units == unit)) for unit in np.unique(site.units)]
    assert sorted(found) == [(0, 3, 5), (1, 4, 6), (2,), (7, 8)]  # and the planted secret's
    assert len(np.unique(first.units)) == len(first.rows) - 1  # rows that nobody wrote are units of their own


@pytest.mark.parametrize("unit", [False, True])
def test_a_row_that_the_study_forgives_is_forgiven(
    folder: Path, unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = BY_PERSON if unit else PRIVACY | {"noise_multiplier": 0.7}
    plan = language_plan("causal-lm", folder, sites=3, privacy=privacy)
    own, site = schema("causal-lm", persons=unit), plan.sites[0].name
    rows = table("causal-lm", 5, 1, persons=unit)
    answers = rows.column("answer").to_pylist()
    answers[3] = " \n"
    rows = rows.set_column(rows.column_names.index("answer"), "answer", pa.array(answers))
    plant = make_plant(copies=(1,), each=1, coins=0, kinds=("pin",))
    counts = {each.name: 5 for each in plan.sites}
    with opened(plan, own, folder, "cpu") as stage:
        examples, _, _ = planted_rows(plan, own, stage.learner, plant, counts, {site: rows})
        assert (examples.lengths[:5] > 0).tolist() == [True, True, True, False, True]
        # nor is one of a token that the base has no vector for
        ids = np.split(examples.ids, examples.starts[1:6])
        last = max(row.max() for row in ids[:3])
        monkeypatch.setattr(type(stage.learner), "vocabulary", last)
        examples, _, _ = planted_rows(plan, own, stage.learner, plant, counts, {site: rows})
        known = [len(row) > 0 and row.max() < last for row in ids[:5]]
        assert (examples.lengths[:5] > 0).tolist() == known != [True] * 5


def test_without_a_claim_it_is_refused_as_the_study_refuses_it(folder: Path) -> None:
    plan = language_plan("causal-lm", folder, sites=3)
    rows = pa.table({"question": ["a", "b"], "answer": ["c", ""]})
    plant = make_plant(copies=(1,), each=1, coins=0, kinds=("pin",))
    counts = {each.name: 5 for each in plan.sites}
    own, given = schema("causal-lm"), {plan.sites[0].name: rows}
    with opened(plan, own, folder, "cpu") as stage, pytest.raises(SchemaError, match="an empty answer"):
        planted_rows(plan, own, stage.learner, plant, counts, given)


def test_a_canary_that_cannot_be_asked_for_is_refused_before_training(folder: Path) -> None:
    """Also one that its coin left out of the rows."""
    plan = language_plan("causal-lm", folder, sites=3)
    long = Canary(Secret("pin", "Ab" * 90, "1234"), 0, True)
    own, counts = schema("causal-lm"), {each.name: 5 for each in plan.sites}
    with (
        opened(plan, own, folder, "cpu") as stage,
        pytest.raises(InputError, match="longer than the context"),
    ):
        planted_rows(plan, own, stage.learner, Plant((long,)), counts, None)
