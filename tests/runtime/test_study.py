from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.parties import PURPOSE, parties, plan_for, schema

from cloister.crypto import Identity
from cloister.errors import InputError, IntegrityError, PlanError, PolicyRefused, ProtocolError
from cloister.learning import ClientRows, federated_in_clear, initial_model, plan_model
from cloister.runtime import RosterAgreed, RoundDone, SetupDone, Study, load_study, save_study
from cloister.runtime.events import Connected, Ended


@pytest.fixture
def hub() -> Identity:
    return Identity.generate("hub")


@pytest.mark.parametrize("hub_view", ["sum", "none"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_the_model_is_that_of_the_same_federation_in_the_clear(
    tmp_path: Path, hub: Identity, hub_view: str, bits: int, algorithm: str
) -> None:
    members = parties(tmp_path, [40, 25, 30])
    # one batch of all rows a step: the order of rows does not matter, so both runs train alike
    plan = plan_for(
        hub,
        members,
        training={"batch": 40, "algorithm": algorithm},
        aggregation={"hub_view": hub_view, "bits": bits, "value_range": 2.0},
    )
    result = Study(plan, hub, members).run()
    features, model = plan_model(plan, schema())
    rows = ClientRows.stack(
        [features.transform(member.vault.open("train", purpose=PURPOSE).table()) for member in members]
    )
    clear = federated_in_clear(model, initial_model(plan, schema()), rows, plan.training)
    # rounding of three updates to the ring's unit, each round
    unit = 2.0 / (2 ** (bits - 1) / 4)
    np.testing.assert_allclose(result.model, clear, atol=100 * unit if algorithm == "fedadam" else 9 * unit)


def test_events_tell_the_story_in_order(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    seen: list[object] = []
    result = Study(plan_for(hub, members), hub, members).run(seen.append)
    assert [type(event) for event in seen if not isinstance(event, Connected)] == [
        RosterAgreed,
        SetupDone,
        RoundDone,
        RoundDone,
        RoundDone,
        Ended,
    ]
    assert [done.round for done in result.rounds] == [0, 1, 2]
    assert all(done.metrics and 0 <= done.metrics["accuracy"] <= 1 for done in result.rounds)
    assert result.final_metrics is not None
    assert result.final_metrics[0]["accuracy"] > 0.8
    assert set(result.final_metrics[1]) == {"site0", "site1", "site2"}


def test_no_metric_leaves_a_site_whose_rows_are_not_public(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    study = Study(
        plan_for(hub, members, data={"public_rows": False}, aggregation={"value_range": 1e-3}), hub, members
    )
    result = study.run()
    assert all(site.clamped for site in study.sites.values())
    assert result.clamped == {}
    assert result.final_metrics is None
    assert all(done.metrics is None and done.site_metrics is None for done in result.rounds)


def test_the_hub_holds_no_model_where_it_may_not(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    study = Study(plan_for(hub, members, aggregation={"hub_view": "none"}), hub, members)
    result = study.run()
    assert study.hub.model is None
    assert study.hub.study_key is None
    assert {site.study_key for site in study.sites.values()} == {result.study_key}


def test_a_study_is_written_and_read_back(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    result = Study(plan_for(hub, members), hub, members).run()
    studies = tmp_path / "studies"
    save_study(studies, result, hub)
    for reader in (hub, members[2].identity):
        state = load_study(studies, "test", keeper=hub.public, reader=reader)
        np.testing.assert_array_equal(state.model, result.model)
        assert state.plan == result.plan
        assert state.members == result.members
    with pytest.raises(InputError, match="exists"):
        save_study(studies, result, hub)


def test_the_model_is_not_on_disk_in_the_clear(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    result = Study(plan_for(hub, members), hub, members).run()
    folder = save_study(tmp_path / "studies", result, hub)
    on_disk = b"".join(path.read_bytes() for path in folder.iterdir())
    assert result.study_key not in on_disk
    for value in result.model:
        assert value.tobytes() not in on_disk


@pytest.mark.parametrize("name", ["record.dsse.json", "study-keys.dsse.json", "model.checkpoint"])
def test_an_altered_file_is_refused(tmp_path: Path, hub: Identity, name: str) -> None:
    members = parties(tmp_path, [20, 20, 20])
    folder = save_study(tmp_path / "studies", Study(plan_for(hub, members), hub, members).run(), hub)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises((IntegrityError, ProtocolError)):
        load_study(tmp_path / "studies", "test", keeper=hub.public, reader=hub)


def test_a_stranger_does_not_open_it(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    save_study(tmp_path / "studies", Study(plan_for(hub, members), hub, members).run(), hub)
    with pytest.raises(ProtocolError, match="study key"):
        load_study(tmp_path / "studies", "test", keeper=hub.public, reader=Identity.generate("stranger"))
    with pytest.raises(InputError, match="no study"):
        load_study(tmp_path / "studies", "other", keeper=hub.public, reader=hub)


def test_with_hub_view_none_the_hub_does_not_open_it(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    plan = plan_for(hub, members, aggregation={"hub_view": "none"})
    save_study(tmp_path / "studies", Study(plan, hub, members).run(), hub)
    with pytest.raises(ProtocolError, match="study key"):
        load_study(tmp_path / "studies", "test", keeper=hub.public, reader=hub)


def test_a_plan_of_another_hub_or_schema_is_refused(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [20, 20, 20])
    plan = plan_for(hub, members)
    with pytest.raises(PolicyRefused, match="hub is not the one"):
        Study(plan, Identity.generate("hub"), members)
    with pytest.raises(PlanError, match="schema"):
        Study(plan_for(hub, members, data={"label": "y", "schema": "0" * 64}), hub, members)
