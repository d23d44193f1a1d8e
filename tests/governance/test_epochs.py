"""A study of two epochs, between which the members changed: kept, released, verified and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.governance.releases import (
    World,
    failure,
    identity,
    make_epoch,
    make_manifest,
    make_study,
    make_world,
    payload_of,
)

from cloister.errors import IntegrityError, VerificationError
from cloister.governance import TrainedStudy, in_words, verify_release
from cloister.governance.folder import countersignature_path, manifest_path, read_release
from cloister.runtime import RoundDone, StudyResult, load_study, save_study
from cloister.runtime.studykey import deal_study_key
from cloister.secagg import Roster

# five sites; site0 leaves after round 3 of 5, site4 comes; epoch 1 was offered and never agreed on
ROSTERS = {0: (0, (0, 1, 2, 3)), 3: (2, (1, 2, 3, 4))}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, sites=5, rosters=ROSTERS, lost={1: {"site3"}})


def result_of(world: World) -> StudyResult:
    """The same study as a hub has it when it ends."""
    study, readers = world.study, [world.hub.public, *(site.public for site in world.sites[1:])]
    key, envelope = deal_study_key(world.sites[1], study.plan.digest, 2, readers)
    first, last = study.epochs
    return StudyResult(
        plan=study.plan,
        hub=study.hub,
        epochs=(replace(first, study_keys=b"sealed to others"), replace(last, study_keys=envelope)),
        rounds=tuple(
            RoundDone(entry.round, entry.attempt, entry.survivors, 0.1, epoch=entry.epoch)
            for entry in study.rounds
        ),
        final_metrics=None,
        model=study.parameters,
        study_key=key,
        privacy=None,
        debits={},
        clamped={},
        traffic={},
        transport="nats",
    )


def test_it_is_released_and_verifies(world: World) -> None:
    released = world.release()
    names = {manifest_path(f"site{n}") for n in range(5)}
    names |= {countersignature_path(0, f"site{n}") for n in range(4)}
    names |= {countersignature_path(2, f"site{n}") for n in range(1, 5)}
    assert {name for name in released.files if "/" in name} == names
    assert read_release(released.folder) == released.files
    verdict = verify_release(released.folder, world.anchors)
    assert verdict.ok
    assert verdict.steps[5].detail == "5 trusted sites countersigned plan and roster of 2 epochs"
    facts = released.certificate.statement.predicate
    assert [each.name for each in facts.participants] == [f"site{n}" for n in range(5)]
    first, last = facts.aggregation.epochs
    assert (first.number, first.members) == (0, ("site0", "site1", "site2", "site3"))
    assert (last.number, last.members) == (2, ("site1", "site2", "site3", "site4"))
    assert last.roster == Roster(world.study.epochs[1].members).digest.hex()
    assert {first.setup, last.setup} == {epoch.setup_digest.hex() for epoch in world.study.epochs}
    runs = [(run.first, run.count, run.dropped) for _, run in facts.aggregation.runs()]
    assert runs == [(1, 1, ()), (2, 1, ("site3",)), (3, 1, ()), (4, 2, ())]


def test_a_member_of_the_first_epoch_alone_must_be_trusted_and_may_cosign(world: World) -> None:
    released = world.release(cosigners=[world.cosigners[0], world.cosigners[4]])
    assert released.cosignatures == 2
    others = replace(
        world.anchors, identities=tuple(a for a in world.anchors.identities if a.name != "site0")
    )
    assert failure(verify_release(released.folder, others)) == (6, "roster")


def test_epochs_of_other_sizes_have_their_own_thresholds(tmp_path: Path) -> None:
    rosters = {0: (0, (0, 1, 2)), 2: (1, tuple(range(7)))}
    world = make_world(
        tmp_path, sites=7, rosters=rosters, study={"minimum_sites": 3}, aggregation={"colluders": 1}
    )
    first, last = world.release().certificate.statement.predicate.aggregation.epochs
    assert (first.parties, first.threshold) == (3, 3)
    assert last.parties == 7
    assert last.threshold > first.threshold


def test_the_sentences_say_who_took_part_when(world: World) -> None:
    statement = world.release().certificate.statement
    english, chinese = " ".join(in_words(statement)), " ".join(in_words(statement, "zh"))
    assert "5 sites took part with 500 rows" in english
    assert (
        "set up 2 times, each time over the sites that countersigned it: rounds 1 to 3 by site0, site1, site2, "
        "site3; rounds 4 to 5 by site1, site2, site3, site4." in english
    )
    assert "at most 1 of 4 sites" in english
    assert "第 4 至 5 轮：site1、site2、site3、site4" in chinese
    one = make_world(world.root / "one").release().certificate.statement
    assert "set up" not in " ".join(in_words(one))


def test_it_is_kept_and_read_back(world: World) -> None:
    result = result_of(world)
    save_study(world.root / "studies", result, world.hub)
    for reader in (world.hub, world.sites[4]):
        state = load_study(world.root / "studies", "heart", keeper=world.hub.public, reader=reader)
        assert state.members == result.members == world.study.epochs[1].members
        assert state.record.transport == "nats"
        assert state.epochs[1] == result.last
        assert state.epochs[0] == replace(result.epochs[0], study_keys=b"")
        np.testing.assert_array_equal(state.model, result.model)
        read, kept = TrainedStudy.of_state(state), TrainedStudy.of_result(result)
        assert read.rounds == kept.rounds == world.study.rounds
        assert read.members == kept.members
        world.study = read
    assert verify_release(world.release().folder, world.anchors).ok


def test_a_record_of_the_first_version_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.runtime import store

    monkeypatch.setattr(store, "record_of", lambda result: {"plan": "x", "epoch": 0})
    save_study(world.root / "studies", result_of(world), world.hub)
    with pytest.raises(IntegrityError, match="does not parse"):
        load_study(world.root / "studies", "heart", keeper=world.hub.public, reader=world.hub)


def test_an_epoch_without_a_round_is_in_the_record_and_not_in_the_release(world: World) -> None:
    study = world.study
    idle = make_epoch(study.plan, 5, world.sites[1:])
    result = result_of(world)
    _, envelope = deal_study_key(world.sites[1], study.plan.digest, 5, [world.hub.public])
    result = replace(result, epochs=(*result.epochs, replace(idle, study_keys=envelope)))
    assert result.members == idle.members
    assert [epoch.number for epoch in TrainedStudy.of_result(result).epochs] == [0, 2]


def with_rounds(change: Callable[[list[Any]], None]) -> Callable[[World], dict[str, Any]]:
    def changed(world: World) -> dict[str, Any]:
        rounds = list(world.study.rounds)
        change(rounds)
        return {"rounds": tuple(rounds)}

    return changed


def move(place: int, **fields: Any) -> Callable[[World], dict[str, Any]]:
    import msgspec

    def change(rounds: list[Any]) -> None:
        rounds[place] = msgspec.structs.replace(rounds[place], **fields)

    return with_rounds(change)


def in_epoch(place: int, **fields: Any) -> Callable[[World], dict[str, Any]]:
    def changed(world: World) -> dict[str, Any]:
        epochs = list(world.study.epochs)
        epochs[place] = replace(epochs[place], **fields)
        return {"epochs": tuple(epochs)}

    return changed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_rounds(lambda rounds: rounds.pop(2)), "round 3 is missing"),
        (with_rounds(lambda rounds: rounds.insert(2, rounds[2])), "round 4 is missing, double"),
        (with_rounds(lambda rounds: rounds.reverse()), "round 1 is missing"),
        (move(4, epoch=0), "round 5 is of epoch 0"),
        (move(4, epoch=1), "round 5 is of epoch 1"),
        (move(4, survivors=("site0", "site1", "site2")), "round 5 has a survivor who is not a member"),
        (move(4, survivors=("site1", "site1", "site2")), "one twice"),
        (in_epoch(1, number=0), "do not ascend"),
        (lambda world: {"epochs": world.study.epochs[::-1]}, "do not ascend"),
        (lambda world: {"epochs": ()}, "no epoch"),
        (in_epoch(1, countersignatures={}), "site1's manifest, rows or countersignature"),
        (in_epoch(1, rows={f"site{n}": 7 for n in range(1, 5)}), "site1 has other keys or rows"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_released(
    world: World, change: Callable[[World], dict[str, Any]], reason: str
) -> None:
    with pytest.raises(VerificationError, match=reason):
        replace(world.study, **change(world))


def test_a_site_brings_one_manifest_to_all_its_epochs(world: World) -> None:
    last = world.study.epochs[1]
    manifests = {**last.manifests, "site2": make_manifest(world.sites[2], name="other")}
    with pytest.raises(VerificationError, match="site2 has other keys or rows in epoch 2"):
        replace(world.study, epochs=(world.study.epochs[0], replace(last, manifests=manifests)))


def test_rounds_that_are_too_few_are_not_released(world: World) -> None:
    world.study = replace(world.study, rounds=world.study.rounds[:4])
    with pytest.raises(VerificationError, match="not as many as the rounds trained"):
        world.release()


def test_sites_below_the_plans_minimum_in_one_epoch_are_not_released(tmp_path: Path) -> None:
    rosters = {0: (0, (0, 1, 2, 3)), 3: (1, (1, 2, 3))}
    world = make_world(tmp_path, rosters=rosters, study={"minimum_sites": 4}, aggregation={"colluders": 1})
    with pytest.raises(VerificationError, match=r"step 6, roster: fewer sites .* in epoch 1"):
        world.release()


def test_one_epoch_is_as_it_was(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (epoch,) = payload_of(dict(world.release().files))["predicate"]["aggregation"]["epochs"]
    assert epoch["number"] == 0
    study = make_study(world.study.plan, world.hub, world.sites)
    assert study.members == study.epochs[0].members
    assert identity("site0").public in study.members
