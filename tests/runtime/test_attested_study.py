"""Studies whose parties show each other evidence first, on real machines of a study and a double's evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.doubles import NOON, AppraiserDouble, AttesterDouble, attesting
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity, PublicIdentity, sha256
from cloister.errors import PolicyRefused
from cloister.runtime import Refused, Study
from cloister.runtime.appraisal import AGGREGATOR, WORKER, open_appraisal
from cloister.runtime.attestation import Attesting, key_digest
from cloister.runtime.events import EvidenceAccepted

ENCLAVE = {"required": True, "reattest_seconds": 3600}
NAMES = ("site0", "site1", "site2")


def everybody(own: Identity, /, **replaced: Attesting) -> dict[str, Attesting]:
    """Return what hub and sites show; a worker's key is one of its own."""
    found = {"hub": attesting(key_digest(own.public), AGGREGATOR)}
    found |= {name: attesting(sha256(b"worker of", name.encode()), WORKER) for name in NAMES}
    return found | replaced


def build(
    tmp_path: Path, *, enclave: dict[str, Any] | None = None, hub: Identity | None = None, **options: Any
) -> World:
    hub = hub or Identity.generate("hub")
    members = parties(tmp_path, (20, 20, 20))
    plan = plan_for(
        hub, members, enclave=ENCLAVE if enclave is None else enclave, study={"deadline_seconds": 300.0}
    )
    options.setdefault("attesting", everybody(hub))
    return World(plan, hub, members, **options)


def said(world: World, kind: type) -> list[Any]:
    return [event for event in world.events if isinstance(event, kind)]


def test_a_study_runs_once_everybody_has_shown_evidence(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run()
    assert world.hub.finished
    accepted = said(world, EvidenceAccepted)
    assert sorted((event.peer, event.kind, event.protection) for event in accepted) == [
        (name, "snp", "hardware") for name in NAMES
    ]
    assert [event for end in world.ends.values() for event in end.events()] == [
        EvidenceAccepted("hub", "snp", "hardware")
    ] * 3
    for name, kept in world.hub.appraisals.items():
        assert kept.worker.party == name
        assert kept.worker.by == "hub"
        assert kept.worker.at == "2026-07-01T12:00:00Z"
        assert kept.worker.claims["freshness"] is True
        assert kept.worker.claims["revocation_checked"] is None
        told = open_appraisal(kept.aggregator.encode(), world._public[name])
        assert (told.party, told.by, told.hardware) == ("hub", name, True)
        assert told.plan == world.plan.digest.hex()


@pytest.mark.parametrize("hardware", [True, False])
def test_a_study_in_one_process_attests_too(tmp_path: Path, hardware: bool) -> None:
    hub, members = Identity.generate("hub"), parties(tmp_path, (20, 20, 20))
    plan = plan_for(hub, members, enclave=ENCLAVE)
    asked: list[tuple[str, str]] = []
    judge = AppraiserDouble(software=True)

    def own(purpose: str, identity: PublicIdentity) -> Attesting:
        asked.append((purpose, identity.name))
        return attesting(key_digest(identity), purpose, hardware=hardware, appraiser=judge)

    result = Study(plan, hub, members, attesting=own).run()
    assert sorted(asked) == [(AGGREGATOR, "hub"), *((WORKER, name) for name in NAMES)]
    assert {kept.worker.hardware for kept in result.appraisals.values()} == {hardware}
    assert result.protection == ("hardware" if hardware else "not hardware-protected")
    assert replace(result, appraisals={}).protection == "not hardware-protected"
    with pytest.raises(PolicyRefused, match="asks for evidence"):
        Study(plan, hub, members)


def test_without_required_nobody_asks_for_evidence(tmp_path: Path) -> None:
    world = build(tmp_path, enclave={"required": False}, attesting={})
    world.start()
    world.run()
    assert world.hub.finished
    assert not world.hub.appraisals


@pytest.mark.parametrize("missing", ["hub", "site1"])
def test_who_can_show_nothing_does_not_begin(tmp_path: Path, missing: str) -> None:
    hub = Identity.generate("hub")
    shown = everybody(hub)
    del shown[missing]
    with pytest.raises(PolicyRefused, match="asks for evidence"):
        build(tmp_path, hub=hub, attesting=shown)


def test_a_site_says_nothing_to_a_hub_whose_evidence_it_refuses(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    bad = attesting(key_digest(hub.public), AGGREGATOR, hardware=False)
    world = build(tmp_path, hub=hub, attesting=everybody(hub, hub=bad), refusing_leave=True)
    heard: list[str] = []
    handle = world.hub.handle
    world.hub.handle = lambda peer, message, now: (  # type: ignore[method-assign]
        heard.append(type(message).__name__) or handle(peer, message, now)  # type: ignore[func-returns-value]
    )
    world.start()
    world.run(until=lambda: len(world.refusals) == 3 and not world._queue)
    assert all("not hardware-protected" in reason for reason in world.refusals.values())
    assert set(heard) == {"Leave"}
    assert {event.reason for event in said(world, Refused)} == {"takes no part: evidence refused"}
    assert not world.hub.joined


def test_a_hub_hears_no_site_whose_evidence_it_refuses(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    bad = attesting(sha256(b"worker"), WORKER, machine="changed")
    judge = AppraiserDouble(machines=["honest"])
    shown = everybody(hub, site1=bad, hub=attesting(key_digest(hub.public), AGGREGATOR, appraiser=judge))
    world = build(tmp_path, hub=hub, attesting=shown)
    world.start()
    world.run(until=lambda: world.sites["site1"].stopped is not None)
    assert world.sites["site1"].stopped == "evidence refused"  # and not why
    (refused,) = said(world, Refused)
    assert refused.peer == "site1"
    assert "none of the accepted images" in refused.reason
    assert set(world.hub.joined) == {"site0", "site2"}
    assert set(world.hub.appraisals) == {"site0", "site2"}


def test_software_evidence_is_accepted_only_where_the_owner_says_so_and_is_named(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    lenient = AppraiserDouble(software=True)
    shown = {"hub": attesting(key_digest(hub.public), AGGREGATOR, hardware=False, appraiser=lenient)}
    shown |= {name: attesting(bytes(32), WORKER, hardware=False, appraiser=lenient) for name in NAMES}
    world = build(tmp_path, hub=hub, attesting=shown)
    world.start()
    world.run()
    assert world.hub.finished
    assert {event.protection for event in said(world, EvidenceAccepted)} == {"not hardware-protected"}
    assert {kept.worker.hardware for kept in world.hub.appraisals.values()} == {False}


def test_evidence_is_asked_for_again_before_it_lapses(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    makers = {name: AttesterDouble() for name in ("hub", *NAMES)}
    shown = {"hub": attesting(key_digest(hub.public), AGGREGATOR, attester=makers["hub"])}
    shown |= {name: attesting(sha256(name.encode()), WORKER, attester=makers[name]) for name in NAMES}
    world = build(tmp_path, hub=hub, attesting=shown)
    world.start()
    world.run(until=lambda: len(world.hub.joined) == 3)
    assert {name: len(maker.made) for name, maker in makers.items()} == {"hub": 3} | dict.fromkeys(NAMES, 1)
    for hours in range(1, 4):
        world.pass_time(2700 if hours == 1 else 2800)
        while world._queue:
            world.carry()
        assert {len(makers[name].made) for name in NAMES} == {hours + 1}
        assert len(makers["hub"].made) == 3 * (hours + 1)
    world.run()
    assert world.hub.finished
    digests = [evidence.digest for maker in makers.values() for evidence in maker.made]
    assert len(set(digests)) == len(digests)  # every one for a nonce of its own


def test_whose_evidence_is_refused_later_is_out_as_on_revocation(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    maker = AttesterDouble()
    shown = everybody(hub, site1=attesting(sha256(b"1"), WORKER, attester=maker))
    world = build(tmp_path, hub=hub, attesting=shown)
    world.start()
    world.run(until=lambda: len(world.hub.joined) == 3)
    maker.hardware = False
    world.pass_time(2700)
    world.run(until=lambda: not world._queue)
    assert "site1" in world.hub._excluded
    assert world.sites["site1"].stopped == "evidence refused"
    world.arrive("site1")  # it may come again: nothing of it is heard
    while world._queue:
        world.carry()
    assert "site1" in world.hub._excluded
    assert world.sites["site1"].stopped == "evidence refused"


@pytest.mark.parametrize("silent", ["hub", "site1"])
def test_evidence_that_lapses_ends_taking_part(tmp_path: Path, silent: str) -> None:
    hub = Identity.generate("hub")
    world = build(tmp_path, hub=hub, refusing_leave=True)
    world.start()
    world.run(until=lambda: len(world.hub.joined) == 3)
    if silent == "hub":
        world.hub_end.questions = lambda: iter(())  # type: ignore[method-assign]
    else:
        world.ends["site1"].question = lambda: None  # type: ignore[method-assign]
    world.pass_time(2700)
    while world._queue:
        world.carry()
    assert not world.refusals
    world.pass_time(901)
    while world._queue:
        world.carry()
    if silent == "hub":
        assert set(world.refusals) == set(NAMES)
        assert all("lapsed" in reason for reason in world.refusals.values())
    else:
        assert "site1" in world.hub._excluded
        assert any("lapsed" in event.reason for event in said(world, Refused))


def test_a_new_session_asks_for_new_evidence(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: len(world.hub.joined) == 3)
    before = world.hub.appraisals["site1"].worker.evidence
    world.arrive("site1")
    world.run()
    assert world.hub.finished
    assert world.hub.appraisals["site1"].worker.evidence != before


def test_the_time_of_appraisal_is_the_partys_own_clock(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    judge = AppraiserDouble()
    shown = everybody(hub, hub=attesting(key_digest(hub.public), AGGREGATOR, appraiser=judge))
    world = build(tmp_path, hub=hub, attesting=shown)
    world.start()
    world.run(until=lambda: len(world.hub.joined) == 3)
    assert {at for _, at in judge.seen} == {NOON}
