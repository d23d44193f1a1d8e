"""Services over the in-memory network: invitations, policy, refusals, and the same model as in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.journal.kept import memory as memory_folder
from tests.runtime.parties import parties, plan_for
from tests.runtime.service.parts import Net, all_of, memory

from cloister.crypto import Identity
from cloister.runtime import MemoryNetwork, RoundDone
from cloister.runtime.events import Refused
from cloister.runtime.journal import KeepsSite, NoJournal, SiteJournal
from cloister.runtime.sitepolicy import Decision


def net(tmp_path: Path, sizes: list[int], **changes: dict[str, object]) -> Net:
    hub = Identity.generate("hub")
    members = {party.identity.name: party for party in parties(tmp_path, sizes)}
    plan = plan_for(hub, list(members.values()), **changes)
    return Net(plan, hub, members, tmp_path, memory(MemoryNetwork()))


def run(world: Net, names: list[str]):  # type: ignore[no-untyped-def]
    async def bounded():  # type: ignore[no-untyped-def]
        async with asyncio.timeout(60):
            return await all_of(world, names)

    return asyncio.run(bounded())


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_study_between_services(tmp_path: Path, hub_view: str) -> None:
    world = net(tmp_path, [20, 20, 20], aggregation={"hub_view": hub_view})
    hub = run(world, list(world.parties))
    assert hub.finished
    models = [site.model.released() for site in world.sites.values()]
    for model in models[1:]:
        np.testing.assert_array_equal(model, models[0])
    assert all(service.ended == {"test": None} for service in world.services.values())
    assert all(site.concluded is not None for site in world.sites.values())
    assert hub.told == set(world.parties)
    assert sum(isinstance(event, RoundDone) for event in world.site_events["site0"]) == 3


def test_a_site_whose_policy_refuses_takes_no_part_and_the_others_go_on(tmp_path: Path) -> None:
    world = net(tmp_path, [20, 20, 20, 20], study={"deadline_seconds": 1.0})
    world.verdict = lambda name: Decision("refuse" if name == "site3" else "accept", ("no",))

    async def play() -> None:
        async with asyncio.timeout(60):
            stubborn = asyncio.create_task(world.run_site("site3"))
            hub = await all_of(world, ["site0", "site1", "site2"])
            stubborn.cancel()
            assert hub.finished
            assert hub.epochs[-1].terms.roster.names == ("site0", "site1", "site2")

    asyncio.run(play())
    assert "site3" not in world.sites


def test_a_study_that_every_site_refuses_ends_at_once_and_says_who_and_why(tmp_path: Path) -> None:
    world = net(tmp_path, [20, 20, 20], study={"deadline_seconds": 1000.0})
    world.verdict = lambda name: Decision("refuse", ("no such purpose",))

    async def play() -> None:
        async with asyncio.timeout(30):
            sites = [asyncio.create_task(world.run_site(name)) for name in world.parties]
            hub = await world.run_hub()
            for each in sites:
                each.cancel()
            why = "its owner's policy or budget refuses"
            assert hub.stopped == f"every site refuses; site0: {why}; site1: {why}; site2: {why}"

    asyncio.run(play())
    said = [event for event in world.events if isinstance(event, Refused)]
    assert sorted(event.peer for event in said) == ["site0", "site1", "site2"]  # once each


def test_a_refusal_that_is_mended_and_an_owner_who_is_asked_are_waited_for(tmp_path: Path) -> None:
    world = net(tmp_path, [20, 20, 20])
    first = {"site1": Decision("ask", ("new",)), "site2": Decision("refuse", ("no",))}
    world.verdict = lambda name: first.pop(name, Decision("accept", ()))
    hub = run(world, list(world.parties))
    assert hub.finished
    assert hub.epochs[-1].terms.roster.names == ("site0", "site1", "site2")
    assert [event.peer for event in world.events if isinstance(event, Refused)] == ["site2"]


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


def test_a_site_killed_before_it_kept_the_end_is_waited_for(tmp_path: Path, in_memory: Path) -> None:
    world = net(tmp_path, [20, 20, 20])
    opened: list[SiteJournal] = []
    died = asyncio.Event()

    def journal(name: str) -> KeepsSite:
        if name != "site2":
            return NoJournal()
        party = world.parties[name]
        opened.append(SiteJournal(tmp_path / "journal", in_memory, party.identity, world.plan.digest))
        return opened[-1]

    def dies(name: str) -> None:
        if name == "site2" and len(opened) == 1:
            opened[0].close()
            died.set()
            raise asyncio.CancelledError

    world.journals, world.at_end = journal, dies

    async def play() -> None:
        async with asyncio.timeout(60):
            others = [asyncio.create_task(world.run_site(name)) for name in ("site0", "site1")]
            hub = asyncio.create_task(world.run_hub())
            killed = asyncio.create_task(world.run_site("site2"))
            await died.wait()
            killed.cancel()
            await asyncio.gather(*others)
            assert not hub.done(), "the hub left before everybody had kept the end"
            await world.run_site("site2")
            assert (await hub).finished

    asyncio.run(play())
    assert world.sites["site2"].resumed
    assert world.sites["site2"].concluded is not None
    assert world.services["site2"].ended == {"test": None}
