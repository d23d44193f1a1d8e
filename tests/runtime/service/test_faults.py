"""A fault in one study of a site: its session ends, the owner reads why, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.enclave.doubles import attesting
from tests.runtime.parties import parties, plan_for
from tests.runtime.service.parts import Net, all_of, memory

from cloister.crypto import Identity, sha256
from cloister.enclave.evidence import Evidence
from cloister.errors import StorageError
from cloister.runtime import MemoryNetwork, RoundDone
from cloister.runtime.appraisal import AGGREGATOR, WORKER
from cloister.runtime.attestation import Attesting, key_digest
from cloister.runtime.ends import SiteEnd
from cloister.runtime.events import Event, Refused, Stopped
from cloister.runtime.service import SiteService, siteservice
from cloister.runtime.site import Site
from cloister.runtime.sitepolicy import Decision

FULL = StorageError("the disk is full", fix="Free some of it")


def net(tmp_path: Path, **changes: dict[str, object]) -> Net:
    hub = Identity.generate("hub")
    members = {party.identity.name: party for party in parties(tmp_path, [20, 20, 20])}
    return Net(
        plan_for(hub, list(members.values()), **changes), hub, members, tmp_path, memory(MemoryNetwork())
    )


def attested(tmp_path: Path) -> Net:
    """A study whose plan asks for evidence."""
    world = net(tmp_path, enclave={"required": True})
    world.attesting = {"hub": attesting(key_digest(world.hub.public), AGGREGATOR)} | {
        name: attesting(sha256(name.encode()), WORKER) for name in world.parties
    }
    return world


def run_sites(world: Net, *, until: Callable[[], bool] | None = None) -> None:
    """Run until site1 has ended, or `until`; the others need not come to their end."""

    async def play() -> None:
        async with asyncio.timeout(40):
            tasks = [asyncio.create_task(world.run_hub())]
            tasks += [asyncio.create_task(world.run_site(name)) for name in world.parties]
            while not (until() if until else world.services.get("site1") and world.services["site1"].ended):
                await asyncio.sleep(0.02)
                assert not (tasks[2].done() and tasks[2].exception()), "the whole service ended"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(play())


def said(world: Net, kind: type[Event]) -> list[str]:
    return [event.reason for event in world.site_events["site1"] if isinstance(event, kind)]  # type: ignore[attr-defined]


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> Counter[str]:
    """Count the calls of a method by the site's name."""
    calls: Counter[str] = Counter()
    whole = getattr(owner, method)

    def counting(self: Any, *given: Any, **named: Any) -> Any:
        site = self if isinstance(self, Site) else given[0].site
        calls[site.name] += 1
        return whole(self, *given, **named)

    monkeypatch.setattr(owner, method, counting)
    return calls


def fails(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception) -> None:
    """Let a method fail at site1."""
    whole = getattr(owner, method)

    def failing(self: Any, *given: Any, **named: Any) -> Any:
        if (self if isinstance(self, Site) else self.machine).name == "site1":
            raise error
        return whole(self, *given, **named)

    monkeypatch.setattr(owner, method, failing)


def of_site1(error: Exception) -> Callable[[str], None]:
    def failing(name: str) -> None:
        if name == "site1":
            raise error

    return failing


# --- at the end -----------------------------------------------------------------------------------


def test_a_full_disk_at_an_epochs_end_keeps_neither_secrets_nor_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, left = net(tmp_path), list[Site]()
    leave = Site.leave

    def closing(self: Site) -> bytes | None:
        budget = self._closing
        self._closing = SimpleNamespace(close=lambda: (left.append(self), budget.close())[1])
        return leave(self)

    monkeypatch.setattr(Site, "leave", closing)
    fails(monkeypatch, Site, "_before_epoch_ends", FULL)
    run_sites(world)
    (site,) = [each for each in left if each.name == "site1"]
    assert site._epoch is not None
    assert site._epoch.secure_sum is not None
    assert site._epoch.secure_sum._secrets is None


def test_what_cannot_be_kept_at_the_end_is_said_and_the_site_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = net(tmp_path)
    left: list[str] = []
    world.at_end, world.at_leaving = of_site1(FULL), left.append
    leaves = counted(monkeypatch, Site, "leave")
    farewells = counted(monkeypatch, SiteService, "_farewell")
    run_sites(world, until=lambda: len(left) == 3 and all(each.ended for each in world.services.values()))
    assert world.services["site1"].ended == {"test": str(FULL)}
    assert said(world, Stopped) == [str(FULL)]
    assert leaves == {"site0": 1, "site1": 1, "site2": 1}
    assert farewells == {"site0": 1, "site2": 1}  # of site1 the hub is not told that it needs it no more
    assert not world.services["site1"]._sessions


def test_a_site_that_cannot_leave_in_order_closes_what_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = net(tmp_path)
    left: list[str] = []
    world.at_leaving = left.append
    fails(monkeypatch, Site, "leave", FULL)
    run_sites(world)
    assert "site1" in left
    assert world.services["site1"].ended == {"test": str(FULL)}


def test_the_first_of_two_errors_is_the_reason(tmp_path: Path) -> None:
    world = net(tmp_path)
    world.at_end, world.at_leaving = of_site1(FULL), of_site1(KeyError("canary"))
    run_sites(world)
    assert world.services["site1"].ended == {"test": str(FULL)}


def test_an_error_that_nobody_expected_at_the_end_keeps_its_words(tmp_path: Path) -> None:
    world = net(tmp_path)
    world.at_leaving = of_site1(KeyError("canary"))
    run_sites(world)
    (reason,) = said(world, Stopped)
    assert reason == world.services["site1"].ended["test"]
    assert "KeyError at" in reason
    assert "canary" not in reason


# --- on the way -----------------------------------------------------------------------------------


class _Failing(list[Event]):
    """A log that fails where a round has ended."""

    def append(self, event: Event) -> None:
        if isinstance(event, RoundDone):
            raise TypeError("canary")
        super().append(event)


def test_a_fault_besides_the_machine_ends_the_session_too(tmp_path: Path) -> None:
    world = net(tmp_path)
    world.site_events["site1"] = _Failing()
    run_sites(world)
    (reason,) = said(world, Stopped)
    assert "TypeError at" in reason
    told = [event.reason for event in world.events if isinstance(event, Refused)]
    assert told == ["takes no part: it met an error of its own"]


@pytest.mark.parametrize("method", ["receive", "tick"])
def test_a_fault_in_one_session_does_not_end_the_service(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = net(tmp_path)
    fails(monkeypatch, SiteEnd, method, TypeError("canary"))
    run_sites(world)
    assert "TypeError at" in str(world.services["site1"].ended["test"])


def no_evidence(challenge: bytes, session: bytes) -> Evidence:
    raise TypeError("canary")


@pytest.mark.parametrize("place", ["evidence", "show"])
def test_a_fault_in_making_evidence_ends_the_session(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = attested(tmp_path)
    if place == "show":
        fails(monkeypatch, SiteEnd, "show", TypeError("canary"))
    else:
        world.attesting = {
            **world.attesting,
            "site1": replace(world.attesting["site1"], evidence_for=no_evidence),
        }
    run_sites(world)
    reason = str(world.services["site1"].ended["test"])
    assert "TypeError at" in reason
    assert "canary" not in reason


# --- before it begins -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["decide", "open"])
@pytest.mark.parametrize("error", [MemoryError(), TypeError("canary")], ids=["memory", "fault"])
def test_a_fault_at_an_invitation_declines_it_and_the_next_is_looked_at_anew(
    tmp_path: Path, place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siteservice, "KNOCK_SECONDS", 0.6)
    world = net(tmp_path)
    left = {"site1": 2}
    journals = world.journals

    def failing(name: str) -> None:
        if left.get(name):
            left[name] -= 1
            raise error

    if place == "decide":
        world.verdict = lambda name: failing(name) or Decision("accept", ())
    else:
        world.journals = lambda name: failing(name) or journals(name)

    async def play() -> None:
        async with asyncio.timeout(40):
            assert (await all_of(world, list(world.parties))).finished

    asyncio.run(play())
    (reason,) = said(world, Refused)  # once
    assert "canary" not in reason
    assert ("not enough memory" if isinstance(error, MemoryError) else "TypeError at") in reason
    assert world.services["site1"].ended == {"test": None}


class _Shown(dict[str, Attesting]):
    """What site1 shows of its worker cannot be made."""

    def __getitem__(self, name: str) -> Attesting:
        if name == "site1":
            raise TypeError("canary")
        return super().__getitem__(name)


@pytest.mark.parametrize("place", ["attesting", "obey"])
def test_what_was_opened_for_a_study_that_cannot_begin_is_closed(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = attested(tmp_path)
    left: list[str] = []
    world.at_leaving = left.append
    leaves = counted(monkeypatch, Site, "leave")
    if place == "attesting":
        world.attesting = _Shown(world.attesting)
    else:
        fails(monkeypatch, Site, "obey", FULL)
    run_sites(world, until=lambda: any(isinstance(event, Refused) for event in world.events))
    assert "site1" in left
    assert leaves["site1"] == len([name for name in left if name == "site1"])
    (reason,) = said(world, Refused)
    assert ("TypeError at" if place == "attesting" else str(FULL)) in reason
