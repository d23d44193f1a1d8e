"""What a hub hears of a site that leaves on its own account: nothing that rows, files or a ledger have in them."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.runtime.parties import parties, plan_for
from tests.runtime.service.parts import Net, memory

from cloister.crypto import Identity
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    SchemaError,
    StorageError,
)
from cloister.learning.sections import PrivacySection
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import MemoryNetwork, Refused
from cloister.runtime.service.told import LEAVES, told_of, unexpected
from cloister.runtime.site import Site

PARTIES = {"hub", "site0", "site1"}
CAUSES = [
    SchemaError("7321 rows are longer than the context", column="canary", fix="Shorten canary"),
    InputError("canary is 7321 rows", where="/home/canary/base", fix="See /home/canary"),
    StorageError("there is not enough memory for 7321 rows", where="/home/canary"),
    PlanError("training diverged after 7321 steps", where="canary"),
    IntegrityError("canary changed", where="/home/canary"),
    PolicyRefused("epsilon 0.7321 of canary is left", where="/home/canary"),
    ProtocolError("the worker ended before its work was done (signal 9, 7321 kB canary)"),
    ProtocolError("7321 canary", peer="worker"),
    unexpected(TypeError("7321 canary")),
]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize("private", [False, True])
def test_no_word_of_the_cause_is_told(cause: CloisterError, private: bool) -> None:
    told = told_of(cause, private=private, parties=PARTIES)
    assert not any(part in told for part in ("7321", "canary", "/"))


def test_under_privacy_all_causes_sound_alike() -> None:
    assert {told_of(cause, private=True, parties=PARTIES) for cause in CAUSES} == {LEAVES}


def test_what_another_party_did_is_told() -> None:
    error = ProtocolError("dealt a study key that does not open", peer="site1", fix="Ask it")
    for private in (False, True):
        told = told_of(error, private=private, parties=PARTIES)
        assert told == "dealt a study key that does not open (from site1)"


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the worker of site1 fail on its rows."""
    vector = Site._vector

    def failing(site: Site, *terms: object) -> object:
        if site.name == "site1":
            raise error
        return vector(site, *terms)  # type: ignore[arg-type]

    monkeypatch.setattr(Site, "_vector", failing)


def heard(world: Net) -> list[str]:
    """Run until site1 has left; return what the hub heard of it."""

    async def play() -> None:
        async with asyncio.timeout(60):
            acting = asyncio.create_task(world.run_hub())
            others = [asyncio.create_task(world.run_site(name)) for name in ("site0", "site2")]
            await world.run_site("site1")
            for task in (acting, *others):
                task.cancel()
            await asyncio.gather(acting, *others, return_exceptions=True)

    asyncio.run(play())
    return [event.reason for event in world.events if isinstance(event, Refused)]


@pytest.mark.parametrize("cause", CAUSES[:3], ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize("private", [False, True])
def test_a_site_that_fails_on_its_rows_tells_its_owner_and_not_the_hub(
    tmp_path: Path, cause: CloisterError, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, cause)
    hub = Identity.generate("hub")
    members = parties(tmp_path, [20, 20, 20])
    with ExitStack() as stack:
        plan = plan_for(hub, members, training={"local_steps": 1, "batch": 16})
        if private:
            section = PrivacySection(noise_multiplier=60.0, delta=1e-4, clip=1.0, rate=0.5)
            data = msgspec.structs.replace(plan.data, public_rows=False)
            plan = msgspec.structs.replace(plan, privacy=section, data=data)
            for at, member in enumerate(members):
                name = member.identity.name
                ledger = stack.enter_context(Ledger.open(tmp_path / "ledgers" / name, member.identity))
                ledger.declare("people", Cap.of(12.0, 1e-3))
                dataset = member.vault.manifest("train").dataset_id
                ledger.bind("people", dataset, member.vault.fingerprints("train"))
                members[at] = replace(member, ledger=ledger)
        by_name = {member.identity.name: member for member in members}
        world = Net(plan, hub, by_name, tmp_path, memory(MemoryNetwork()))
        reasons = heard(world)
    assert world.services["site1"].ended == {"test": str(cause)}
    assert len(reasons) == 1
    assert not any(part in reasons[0] for part in ("7321", "canary", "/"))
    if private:
        assert reasons == [f"takes no part: {LEAVES}"]


def test_a_fault_of_our_own_ends_the_session_and_its_words_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that hub and owner wait for a site that does nothing any more."""
    fails(monkeypatch, TypeError("canary of 7321"))
    hub = Identity.generate("hub")
    members = parties(tmp_path, [20, 20, 20])
    plan = plan_for(hub, members, training={"local_steps": 1, "batch": 16})
    by_name = {member.identity.name: member for member in members}
    world = Net(plan, hub, by_name, tmp_path, memory(MemoryNetwork()))
    reasons = heard(world)
    assert len(reasons) == 1
    (said,) = world.services["site1"].ended.values()
    assert said is not None
    assert re.fullmatch(
        r"this site met an error it did not expect \(TypeError at \w+\.py:\d+\)\. Report it\.", said
    )
    assert not any(part in said + reasons[0] for part in ("7321", "canary"))
    assert reasons == ["takes no part: it met an error of its own"]  # and nobody looks for it in their rows


def test_no_memory_is_said_as_such() -> None:
    assert isinstance(unexpected(MemoryError()), StorageError)
