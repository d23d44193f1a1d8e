"""Processes that are killed at every step and go on: the study ends as if nothing had been."""

from __future__ import annotations

import random
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
from cloister.runtime import Burnt, Hub, Party, record_of
from cloister.runtime.hubjournal import AttemptBegun, Ended, FileJournal, open_hub_log
from cloister.runtime.journal import KeepsSite
from cloister.runtime.journal.sitejournal import SiteJournal
from cloister.runtime.messages import Message, RoundStart, Upload, encode_message

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
    aggregation = {"hub_view": hub_view, **changes.pop("aggregation", {})}
    plan = plan_for(HUB, members, training=training, aggregation=aggregation, **changes)
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
    assert [done.round for done in world.hub.rounds] == list(range(world.plan.training.rounds))
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
    assert isinstance(list(run.journal.records())[-1], Ended)


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


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_site_whose_machine_was_started_anew_waits_for_the_next_epoch(
    tmp_path: Path, in_memory: Path, members: list[Party], hub_view: str
) -> None:
    """Its secrets are gone; what it promised is not, and it promises nothing twice."""
    plan = plan_of(members, hub_view, training={"rounds": 4})
    journals = Journals(tmp_path, in_memory, plan, members, {})
    run = Run(plan, members, journals=journals)
    run.go(until=lambda: run.world.hub._phase == "answer")
    journals.reboot("site1")
    run.world.restart_site("site1")
    assert not run.world.sites["site1"].resumed
    assert run.world.sites["site1"].epoch_number == 0
    assert run.world.sites["site1"].rounds == 0
    run.world.run()
    journals.close()
    model_of(run.world)
    assert all(len(different) == 1 for different in run.uploads.values())
    assert [done.epoch for done in run.world.hub.rounds] == [0, 0, 1, 1]


def test_outcomes_kept_before_a_restart_outlive_their_epoch(
    tmp_path: Path, in_memory: Path, members: list[Party]
) -> None:
    """They can be read in their own epoch alone, so its end puts the model in their place."""
    plan = plan_of(members, training={"rounds": 4})
    journals = Journals(tmp_path, in_memory, plan, members, {})
    run = Run(plan, members, journals=journals)
    run.go(until=lambda: run.world.sites["site1"].rounds == 2)
    run.world.restart_site("site1")
    site = run.world.sites["site1"]
    assert site.rounds == 2
    site.leave()
    kept = journals("site1").load()
    journals.close()
    assert kept is not None
    site.model.restore(kept.state or b"")
    assert site.rounds == 2


def test_everybody_killed_at_once_goes_on(
    tmp_path: Path, in_memory: Path, members: list[Party], undisturbed: dict[str, bytes]
) -> None:
    plan = plan_of(members)
    whole = len(Run(plan, members).go().wire)
    for step in range(1, whole, 11):
        place = tmp_path / str(step), in_memory / str(step)
        place[1].mkdir(mode=0o700)
        journals = Journals(*place, plan, members, {})
        run = Run(plan, members, journals=journals)
        run.go(until=lambda: len(run.world.wire) >= step)  # noqa: B023  # asked within the step
        run.world._queue.clear()
        for name in run.world.sites:
            run.world.replace_site(name, run.world._make_site(name))
        run.world.restart_hub()
        run.world.run()
        journals.close()
        is_as_undisturbed(run, undisturbed["sum"])


@pytest.mark.parametrize("private", [False, True])
def test_a_hub_killed_at_its_end_tells_who_has_not_heard_it(
    tmp_path: Path, in_memory: Path, members: list[Party], private: bool
) -> None:
    plan = plan_of(members, private=private)
    journals = Journals(tmp_path, in_memory, plan, members, {})
    run = Run(plan, members, journals=journals)
    run.go(until=lambda: run.world.hub.finished)
    before = record_of(run.world.hub.result())
    assert not any(site.finished for site in run.world.sites.values())
    run.world._queue.clear()
    run.world.restart_hub()
    run.world.run()
    journals.close()
    model_of(run.world)
    assert record_of(run.world.hub.result()) == before
    assert set(run.world.hub.debits) == (set(run.world.sites) if private else set())
    assert {site.concluded for site in run.world.sites.values() if site.concluded} == {
        run.world.hub._concluded
    }


# --- what is asked twice, and what is paid --------------------------------------------------------


@pytest.mark.parametrize("kill", ["hub", "site1"])
@pytest.mark.parametrize("phase", ["upload", "answer"])
@pytest.mark.parametrize("private", [True, False])  # noise, or rounding at random: made once
def test_what_is_asked_twice_is_answered_with_the_same_bytes(
    tmp_path: Path, in_memory: Path, members: list[Party], kill: str, phase: str, private: bool
) -> None:
    plan = plan_of(members, private=private, aggregation={"bits": 32 if private else 8})
    journals = Journals(tmp_path, in_memory, plan, members, {})
    run = Run(plan, members, journals=journals)
    again: set[bytes] = set()
    run.go(until=lambda: run.world.hub._phase == phase and ("site1", 0) in run.uploads)
    for _ in range(2):
        if kill == "hub":
            run.world.restart_hub()
        else:
            run.world.restart_site(kill)
        run.world.run(until=lambda: run.world.hub._phase == phase)
    site = run.world.sites["site1"]
    for _ in range(3):
        (upload,) = site.handle(RoundStart(0, 0))
        again.add(encode_message(upload))
    assert run.uploads["site1", 0] == again
    run.world.run()
    journals.close()
    model_of(run.world)
    assert all(len(different) == 1 for different in run.uploads.values())
    assert not private or charged(run, "site1") == list(range(ROUNDS))


def charged(run: Run, name: str) -> list[int]:
    return [each for each in run.budgets[name].asked if isinstance(each, int)]


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_an_attempt_is_paid_once_however_often_the_hub_dies(members: list[Party], hub_view: str) -> None:
    plan = plan_of(members, hub_view, private=True)
    for step in range(1, 100):
        run = Run(plan, members, hub_fuse=Fuse(step))
        run.go()
        model_of(run.world)
        for name in run.budgets:
            assert charged(run, name) == list(range(run.world.hub._attempt + 1))
            assert {attempt for sender, attempt in run.uploads if sender == name} == set(charged(run, name))
        if not run.kills:
            break


def test_a_burnt_attempt_is_paid_and_so_is_the_one_in_its_place(members: list[Party]) -> None:
    run = Run(plan_of(members, private=True), members)
    run.go(until=lambda: run.world.hub._phase == "answer")
    run.world.slow |= {"site2", "site3"}
    run.world.run(until=lambda: any(isinstance(event, Burnt) for event in run.world.events))
    run.world.hurry()
    run.world.restart_hub()
    run.world.run()
    model_of(run.world)
    assert run.world.hub._attempt == ROUNDS
    assert all(charged(run, name) == list(range(ROUNDS + 1)) for name in run.budgets)
    assert len({run.uploads["site0", attempt].copy().pop() for attempt in range(ROUNDS + 1)}) == ROUNDS + 1


# --- anything, at any time ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_whatever_breaks_whenever_it_breaks_the_study_ends_and_nothing_leaves_twice(
    tmp_path: Path, in_memory: Path, members: list[Party], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  # what breaks is no secret
    plan = plan_of(
        members,
        chance.choice(["sum", "none"]),
        training={"rounds": 6},
        study={"patience": 50, "spare_rounds": 40},
        **({"private": True} if seed % 3 == 0 else {}),
        aggregation={"bits": 8 if seed % 3 == 1 else 32},
    )
    journals = Journals(tmp_path, in_memory, plan, members, {})
    run = Run(plan, members, journals=journals, full=chance.random() < 0.3)
    world, rebooted = run.world, 0
    world.start()
    for _ in range(40):
        stop = len(world.wire) + chance.randrange(1, 40), world.now + 3 * plan.study.deadline_seconds
        world.run(until=lambda: len(world.wire) >= stop[0] or world.now >= stop[1])  # noqa: B023
        if world.hub.finished or world.hub.stopped:
            break
        name = chance.choice(list(world.sites))
        match chance.randrange(6):
            case 0:
                world.restart_hub()
            case 1:
                world.restart_site(name)
            case 2 if not world.lost:
                world.lost.add(name)
            case 3:
                journals.reboot(name)
                rebooted += 1
                world.restart_site(name)
            case 4:
                chance.shuffle(world._queue)
            case _:
                for _ in range(min(5, len(world._queue))):
                    world._queue.popleft()
        if chance.random() < 0.5:
            for gone in list(world.lost):
                world.arrive(gone)
    for gone in list(world.lost):
        world.arrive(gone)
    world.run()
    journals.close()
    if world.hub.stopped:  # what everybody who had it lost is lost
        lost = "too few sites hold the model", "too few sites confirmed the final model"
        assert world.hub.stopped.startswith(lost)
        assert rebooted
    else:
        assert [done.round for done in world.hub.rounds] == list(range(6))
        done = [site for site in world.sites.values() if site.rounds == 6]
        assert len({site.model.released().tobytes() for site in done}) == 1
    assert all(len(different) == 1 for different in run.uploads.values())
    for name in run.budgets:
        left = [attempt for sender, attempt in run.uploads if sender == name]
        assert not plan.privacy or len(set(charged(run, name))) >= len(left)
