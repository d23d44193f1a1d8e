"""Services that show each other evidence before a study: a double's, and that of real software TPMs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.enclave.attester.machine import needs_swtpm
from tests.enclave.doubles import AppraiserDouble, attesting
from tests.governance.releases import CREATED
from tests.runtime.parties import parties, plan_for
from tests.runtime.service.parts import Net, all_of, memory

from cloister.crypto import Identity, sha256
from cloister.enclave.appraise import appraiser
from cloister.enclave.attester.attest import software_attester
from cloister.enclave.policy import EnclavePolicy
from cloister.governance import TrainedStudy, in_words, release
from cloister.log import Cosigner, Log
from cloister.runtime import Hub, MemoryNetwork, Refused, load_study, save_study
from cloister.runtime.appraisal import AGGREGATOR, WORKER
from cloister.runtime.attestation import Attesting, attesting_by, key_digest
from cloister.runtime.events import EvidenceAccepted

NAMES = ("site0", "site1", "site2")
LENIENT = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)


def net(tmp_path: Path, hub: Identity, shown: Mapping[str, Attesting], **study: float) -> Net:
    members = {party.identity.name: party for party in parties(tmp_path, [20, 20, 20])}
    plan = plan_for(hub, list(members.values()), enclave={"required": True}, study=study)
    return Net(plan, hub, members, tmp_path, memory(MemoryNetwork()), attesting=shown)


def run(world: Net) -> Hub:
    async def bounded() -> Hub:
        async with asyncio.timeout(90):
            return await all_of(world, list(world.parties))

    return asyncio.run(bounded())


def doubles(own: Identity, /, **replaced: Attesting) -> dict[str, Attesting]:
    shown = {"hub": attesting(key_digest(own.public), AGGREGATOR)}
    return shown | {name: attesting(sha256(name.encode()), WORKER) for name in NAMES} | replaced


def test_a_study_between_services_that_attest(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    world = net(tmp_path, hub, doubles(hub))
    machine = run(world)
    assert machine.finished
    assert {event.peer for event in world.events if isinstance(event, EvidenceAccepted)} == set(NAMES)
    for name in NAMES:
        assert EvidenceAccepted("hub", "snp", "hardware") in world.site_events[name]
        assert world.services[name].ended == {"test": None}
    assert set(machine.result().appraisals) == set(NAMES)


def test_a_site_whose_evidence_is_refused_is_told_so_and_no_more(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    judge = AppraiserDouble(machines=["honest"])
    shown = doubles(
        hub,
        hub=attesting(key_digest(hub.public), AGGREGATOR, appraiser=judge),
        site1=attesting(sha256(b"1"), WORKER, machine="changed"),
    )
    world = net(tmp_path, hub, shown)

    async def play() -> None:
        async with asyncio.timeout(60):
            acting = asyncio.create_task(world.run_hub())
            others = [asyncio.create_task(world.run_site(name)) for name in ("site0", "site2")]
            await world.run_site("site1")
            for task in (acting, *others):
                task.cancel()
            await asyncio.gather(acting, *others, return_exceptions=True)

    asyncio.run(play())
    assert world.services["site1"].ended == {"test": "evidence refused"}
    (refused,) = [event for event in world.events if isinstance(event, Refused)]
    assert "none of the accepted images" in refused.reason


def test_a_site_that_refuses_the_hub_tells_its_owner_why_and_not_the_hub(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    world = net(
        tmp_path, hub, doubles(hub, hub=attesting(key_digest(hub.public), AGGREGATOR, hardware=False))
    )

    async def play() -> None:
        async with asyncio.timeout(60):
            acting = asyncio.create_task(world.run_hub())
            await asyncio.gather(*(world.run_site(name) for name in NAMES))
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)

    asyncio.run(play())
    for name in NAMES:
        assert "not hardware-protected" in str(world.services[name].ended["test"])
    told = {event.reason for event in world.events if isinstance(event, Refused)}
    assert told <= {"takes no part: evidence refused"}
    assert told


def test_a_site_without_an_attester_takes_no_part(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    shown = doubles(hub)
    del shown["site1"]
    world = net(tmp_path, hub, shown)

    async def play() -> None:
        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(world.run_hub()), asyncio.create_task(world.run_site("site1"))]
            while not any(isinstance(event, Refused) for event in world.site_events.get("site1", [])):
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(play())
    (refused, *_) = [event for event in world.site_events["site1"] if isinstance(event, Refused)]
    assert "asks for evidence" in refused.reason


def test_software_tpms_through_a_whole_study_and_its_release(tmp_path: Path) -> None:
    """Real quotes, the real appraisal, a policy that allows software: accepted, and never called protected."""
    needs_swtpm()
    hub = Identity.generate("hub")
    with ExitStack() as stack:
        shown = {}
        for name in ("hub", *NAMES):
            attester = software_attester(tmp_path / "tpm" / name)
            stack.callback(attester.close)
            worker = hub if name == "hub" else Identity.generate("worker")
            purpose = AGGREGATOR if name == "hub" else WORKER
            shown[name] = attesting_by(attester, purpose, worker.public, appraiser(LENIENT))
        world = net(tmp_path, hub, shown)
        machine = run(world)
    assert machine.finished
    accepted = [event for event in world.events if isinstance(event, EvidenceAccepted)]
    assert {event.protection for event in accepted} == {"not hardware-protected"}
    result = machine.result()
    save_study(tmp_path / "studies", result, hub)
    state = load_study(tmp_path / "studies", "test", keeper=hub.public, reader=hub)
    assert state.record.appraisals == dict(result.appraisals)
    released = release(
        tmp_path / "release",
        TrainedStudy.of_state(state),
        signer=hub,
        log=Log(tmp_path / "log", hub.fingerprint),
        cosigners=[Cosigner(tmp_path / "heads" / name, world.parties[name].identity) for name in NAMES],
        created=CREATED,
    )
    facts = released.certificate.statement.predicate.enclave
    assert facts is not None
    assert not facts.hardware
    assert "not hardware-protected" in " ".join(in_words(released.certificate.statement))


def test_the_default_policy_refuses_a_hub_over_a_software_tpm(tmp_path: Path) -> None:
    needs_swtpm()
    hub = Identity.generate("hub")
    with ExitStack() as stack:
        attester = software_attester(tmp_path / "tpm")
        stack.callback(attester.close)
        default = appraiser(EnclavePolicy())
        shown = {"hub": attesting_by(attester, AGGREGATOR, hub.public, default)}
        shown |= {name: attesting_by(attester, WORKER, hub.public, default) for name in NAMES}
        world = net(tmp_path, hub, shown)

        async def play() -> None:
            async with asyncio.timeout(60):
                acting = asyncio.create_task(world.run_hub())
                await world.run_site("site0")
                acting.cancel()
                await asyncio.gather(acting, return_exceptions=True)

        asyncio.run(play())
    assert "hardware_rooted" in str(world.services["site0"].ended["test"])
