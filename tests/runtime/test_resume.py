"""Processes that are killed at every step and go on: the study ends as if nothing had been."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.runtime.budgets import Noting
from tests.runtime.journals import Dying, Fuse, Killed, ListJournal, dying_hub
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity, canonical_bytes
from cloister.learning import Plan, PrivacySection
from cloister.runtime import Hub, Party, record_of
from cloister.runtime.hubjournal import AttemptBegun, FileJournal, open_hub_log
from cloister.runtime.journal import KeepsSite
from cloister.runtime.journal.sitejournal import SiteJournal
from cloister.runtime.messages import Message, Upload, encode_message

HUB = Identity.generate("hub")
QUIET = PrivacySection(noise_multiplier=1e-5, delta=1e-4, clip=1.0, rate=1.0)
ROUNDS = 2


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Party]:
    return parties(tmp_path_factory.mktemp("vaults"), [20, 20, 20, 20])


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # it must be in memory
        yield Path(folder)


def plan_of(members: list[Party], hub_view: str = "sum", *, private: bool = False, **changes: Any) -> Plan:
    # one batch of all rows a step, so that every run trains alike
    training = {"batch": 20, "local_steps": 1, "rounds": ROUNDS, **changes.pop("training", {})}
    plan = plan_for(HUB, members, training=training, aggregation={"hub_view": hub_view}, **changes)
    return msgspec.structs.replace(plan, privacy=QUIET) if private else plan


class Watched(Hub):
    """A hub that notes every upload, by sender and attempt, over all its lives."""

    uploads: dict[tuple[str, int], set[bytes]]

    def handle(self, peer: str, message: Message, now: float) -> Any:
        if isinstance(message, Upload):
            self.uploads.setdefault((peer, message.attempt), set()).add(encode_message(message))
        return super().handle(peer, message, now)


class Run:
    """A study whose processes may be killed.

    Attributes:
        kills: how often one was.
        uploads: every vector that left a site, by sender and attempt.
    """

    def __init__(
        self,
        plan: Plan,
        members: list[Party],
        *,
        hub_fuse: Fuse | None = None,
        journals: Callable[[str], KeepsSite] | None = None,
        full: bool = False,
    ) -> None:
        self.kills = 0
        self.uploads: dict[tuple[str, int], set[bytes]] = {}
        self.journal = ListJournal(full=full)
        self.budgets = {each.identity.name: Noting(each.identity) for each in members}
        self.world = World(
            plan,
            HUB,
            members,
            hub_type=type("Noted", (Watched,), {"uploads": self.uploads}),
            budgets=self.budgets,
            journal=self.journal if hub_fuse is None else dying_hub(self.journal, hub_fuse),
            journals=journals,
        )

    def go(self, *, until: Callable[[], bool] = lambda: False) -> World:
        start, restarts = self.world.start, 0
        while True:
            try:
                start()
                self.world.run(until=until)
                return self.world
            except Killed as killed:
                self.kills += 1
                restarts += 1
                assert restarts < 50
                name = killed.name
                start = (
                    self.world.restart_hub
                    if name == "hub"
                    else lambda name=name: self.world.restart_site(name)  # type: ignore[misc]
                )


def model_of(world: World) -> bytes:
    """The model that all sites, and the hub where it may, ended with."""
    assert world.hub.stopped is None
    assert world.hub.finished
    models = {site.model.released().tobytes() for site in world.sites.values()}
    if world.hub.model is not None:
        models.add(world.hub.model.released().tobytes())
    assert len(models) == 1
    assert [done.round for done in world.hub.rounds] == list(range(ROUNDS))
    assert all(site.finished for site in world.sites.values())
    return models.pop()


def is_as_undisturbed(run: Run, undisturbed: bytes) -> None:
    model = model_of(run.world)
    np.testing.assert_array_equal(np.frombuffer(model), np.frombuffer(undisturbed))
    assert all(len(different) == 1 for different in run.uploads.values())  # never two under one mask


@pytest.fixture(scope="module")
def undisturbed(members: list[Party]) -> dict[str, bytes]:
    return {view: model_of(Run(plan_of(members, view), members).go()) for view in ("sum", "none")}


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_hub_killed_at_any_record_goes_on(
    members: list[Party], undisturbed: dict[str, bytes], hub_view: str
) -> None:
    plan = plan_of(members, hub_view)
    for step in range(1, 100):
        run = Run(plan, members, hub_fuse=Fuse(step))
        run.go()
        is_as_undisturbed(run, undisturbed[hub_view])
        if not run.kills:
            break
    assert step > 2 * 3 * ROUNDS


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_hub_killed_between_any_two_datagrams_goes_on(
    members: list[Party], undisturbed: dict[str, bytes], hub_view: str
) -> None:
    plan = plan_of(members, hub_view)
    whole = len(Run(plan, members).go().wire)
    for step in range(1, whole, 7):
        run = Run(plan, members)
        run.go(until=lambda: len(run.world.wire) >= step)  # noqa: B023  # asked within the step
        run.world.restart_hub()
        run.world.run()
        is_as_undisturbed(run, undisturbed[hub_view])
        assert canonical_bytes(record_of(run.world.hub.result(model=np.empty(0), study_key=bytes(32))))


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_hub_killed_at_any_record_goes_on_from_a_checkpoint(
    members: list[Party], undisturbed: dict[str, bytes], hub_view: str
) -> None:
    plan = plan_of(members, hub_view)
    for step in range(1, 100):
        run = Run(plan, members, hub_fuse=Fuse(step), full=True)
        run.go()
        is_as_undisturbed(run, undisturbed[hub_view])
        if not run.kills:
            break
    run.world.restart_hub()
    assert run.world.hub.finished
    assert [done.round for done in run.world.hub.rounds] == list(range(ROUNDS))


def test_after_a_checkpoint_no_epoch_number_is_used_again(members: list[Party]) -> None:
    run = Run(plan_of(members), members, full=True)
    run.go(until=lambda: len(run.world.hub.rounds) == 1)
    run.world.restart_hub()
    assert run.world.hub._next_epoch == 1


def test_an_attempt_that_began_is_never_begun_again(members: list[Party]) -> None:
    for step in range(1, 60):
        run = Run(plan_of(members), members, hub_fuse=Fuse(step))
        run.go()
        begun = [each.attempt for each in run.journal.records() if isinstance(each, AttemptBegun)]
        assert begun == sorted(set(begun))
        if not run.kills:
            break


def test_a_hub_goes_on_from_files(
    tmp_path: Path, members: list[Party], undisturbed: dict[str, bytes]
) -> None:
    plan = plan_of(members)
    run = Run(plan, members)
    make_hub, logs = run.world._make_hub, []

    def from_files() -> Hub:
        while logs:
            logs.pop().close()
        logs.append(open_hub_log(tmp_path, plan.digest, HUB))
        hub = make_hub()
        hub._journal = FileJournal(logs[-1])
        return hub

    run.world._make_hub = from_files  # type: ignore[method-assign]
    run.world.restart_hub()
    for rounds in (0, 1):
        run.go(until=lambda: len(run.world.hub.rounds) == rounds and run.world.hub._phase == "answer")  # noqa: B023
        run.world.restart_hub()
    run.world.run()
    is_as_undisturbed(run, undisturbed["sum"])
    logs.pop().close()


# --- a site ---------------------------------------------------------------------------------------


class Journals:
    """Journals of sites on disk and in memory, opened anew after each kill."""

    def __init__(
        self, root: Path, in_memory: Path, plan: Plan, members: list[Party], fuses: dict[str, Fuse]
    ) -> None:
        self._root, self._in_memory, self._digest = root, in_memory, plan.digest
        self._identities = {each.identity.name: each.identity for each in members}
        self._fuses = fuses
        self._open: dict[str, SiteJournal] = {}

    def __call__(self, name: str) -> KeepsSite:
        if name in self._open:
            self._open[name].close()
        folder, in_memory = self._root / name, self._in_memory / name
        folder.mkdir(exist_ok=True, parents=True)
        in_memory.mkdir(mode=0o700, exist_ok=True)
        journal = self._open[name] = SiteJournal(folder, in_memory, self._identities[name], self._digest)
        assert journal.resumable
        return Dying(journal, self._fuses[name], name) if name in self._fuses else journal

    def reboot(self, name: str) -> None:
        """Empty what is in memory."""
        self._open.pop(name).close()
        for file in (self._in_memory / name).iterdir():
            file.unlink()

    def close(self) -> None:
        for journal in self._open.values():
            journal.close()


@pytest.mark.parametrize("hub_view", ["sum", "none"])
@pytest.mark.parametrize("private", [False, True])
def test_a_site_killed_at_any_record_goes_on(
    tmp_path: Path,
    in_memory: Path,
    members: list[Party],
    undisturbed: dict[str, bytes],
    hub_view: str,
    private: bool,
) -> None:
    plan = plan_of(members, hub_view, private=private)
    for step in range(1, 100):
        place = tmp_path / str(step), in_memory / str(step)
        place[1].mkdir(mode=0o700)
        journals = Journals(*place, plan, members, {"site1": Fuse(step)})
        run = Run(plan, members, journals=journals)
        run.go()
        journals.close()
        model_of(run.world)
        if not private:
            is_as_undisturbed(run, undisturbed[hub_view])
        for noting in run.budgets.values():
            entered = [each for each in noting.asked if isinstance(each, int)]
            if private:
                # once for each attempt at the hub; an entry that is asked for again is the same one
                assert sorted(set(entered)) == list(range(run.world.hub._attempt + 1))
                assert len(entered) - len(set(entered)) <= run.kills
            else:
                assert entered == []
        if not run.kills:
            break
    assert step > 2 * 3 * ROUNDS


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_site_killed_between_any_two_datagrams_goes_on(
    tmp_path: Path, in_memory: Path, members: list[Party], undisturbed: dict[str, bytes], hub_view: str
) -> None:
    plan = plan_of(members, hub_view)
    whole = len(Run(plan, members).go().wire)
    for step in range(1, whole, 7):
        place = tmp_path / str(step), in_memory / str(step)
        place[1].mkdir(mode=0o700)
        journals = Journals(*place, plan, members, {})
        run = Run(plan, members, journals=journals)
        run.go(until=lambda: len(run.world.wire) >= step)  # noqa: B023  # asked within the step
        run.world.restart_site("site1")
        run.world.run()
        journals.close()
        is_as_undisturbed(run, undisturbed[hub_view])
