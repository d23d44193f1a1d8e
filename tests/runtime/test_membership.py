"""Sites that come later, go, are silent, come back, or are trusted no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime.budgets import Noting
from tests.runtime.journals import ListJournal
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.errors import ProtocolError
from cloister.learning import PrivacySection
from cloister.runtime import Burnt, Hub, Refused, RoundDone, Stalled
from cloister.runtime.events import EpochEnded
from cloister.runtime.messages import CatchUp, Leave, Message, RosterOffer, RoundStart, State, Stop

FOUR = (20, 20, 20, 20)
PRIVACY = PrivacySection(noise_multiplier=1e-5, delta=1e-4, clip=1.0, rate=1.0)


class Noted(Hub):
    """A hub that notes what it says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.said: list[tuple[str, Message]] = []

    def _send(self, name: str, message: Message) -> None:
        self.said.append((name, message))
        super()._send(name, message)


def build(
    tmp_path: Path,
    sizes: tuple[int, ...] = FOUR,
    *,
    private: bool = False,
    journal: ListJournal | None = None,
    **changes: Any,
) -> World:
    hub = Identity.generate("hub")
    members = parties(tmp_path, sizes)
    training = {"rounds": 4, **changes.pop("training", {})}
    if private:
        training |= {"batch": 20, "local_steps": 1}
    plan = plan_for(hub, members, training=training, **changes)
    budgets = None
    if private:
        plan = msgspec.structs.replace(plan, privacy=PRIVACY)
        budgets = {each.identity.name: Noting(each.identity) for each in members}
    return World(
        plan,
        hub,
        members,
        hub_type=Noted,
        budgets=budgets,
        journal=journal or ListJournal(),
        refusing_leave=True,
    )


def rounds(world: World) -> list[RoundDone]:
    return [event for event in world.events if isinstance(event, RoundDone)]


def after(world: World, count: int, phase: str = "upload") -> Callable[[], bool]:
    return lambda: len(world.hub.rounds) == count and world.hub._phase == phase


def said(world: World, kind: type[Message], name: str | None = None) -> list[Any]:
    assert isinstance(world.hub, Noted)
    return [
        message
        for receiver, message in world.hub.said
        if isinstance(message, kind) and name in (None, receiver)
    ]


def ended_alike(world: World, names: tuple[str, ...]) -> None:
    assert world.hub.stopped is None
    assert world.hub.finished
    assert world.refusals == {}
    assert [done.round for done in world.hub.rounds] == list(range(world.plan.training.rounds))
    models = {world.sites[name].model.released().tobytes() for name in names}
    if world.hub.model is not None:
        models.add(world.hub.model.released().tobytes())
    assert len(models) == 1
    assert all(world.sites[name].finished for name in names)


ALL = ("site0", "site1", "site2", "site3")
BOTH_VIEWS = pytest.mark.parametrize("hub_view", ["sum", "none"])


# --- who comes later ------------------------------------------------------------------------------


@BOTH_VIEWS
@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_a_site_that_comes_later_catches_up_between_two_rounds(
    tmp_path: Path, hub_view: str, algorithm: str
) -> None:
    world = build(
        tmp_path, aggregation={"hub_view": hub_view}, training={"algorithm": algorithm, "average_last": 2}
    )
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 2))
    assert [epoch.terms.roster.names for epoch in world.hub.epochs] == [ALL[:3]]
    world.arrive("site3")
    world.run()
    ended_alike(world, ALL)
    assert [epoch.terms.roster.names for epoch in world.hub.epochs] == [ALL[:3], ALL]
    assert [done.epoch for done in rounds(world)] == [0, 0, 0, 1]
    assert rounds(world)[3].survivors == ALL
    (state,) = said(world, State)
    assert state.rounds == 3
    assert state.sealed is (hub_view == "none")
    assert len(state.vouchers) > world.hub.epochs[-1].terms.context.params.colluders
    assert not [event for event in world.events if isinstance(event, Burnt | Refused)]


def test_with_hub_view_none_the_state_that_passes_the_hub_is_sealed(tmp_path: Path) -> None:
    world = build(tmp_path, aggregation={"hub_view": "none"})
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 2))
    world.arrive("site3")
    world.run(until=lambda: bool(said(world, State)))
    (state,) = said(world, State)
    for site in (world.sites[name] for name in ALL[:3]):
        assert site.model.snapshot() not in bytes(state.state)
        assert site.model.params.tobytes() not in bytes(state.state)


@BOTH_VIEWS
def test_several_sites_come_one_after_another(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, (20,) * 5, aggregation={"hub_view": hub_view, "colluders": 1})
    world.lost |= {"site0", "site4"}
    world.start()
    world.run(until=after(world, 1))
    world.arrive("site0")  # it becomes the first of the roster, who deals the study key
    world.run(until=after(world, 2))
    world.arrive("site4")
    world.run()
    ended_alike(world, ("site0", *ALL[1:], "site4"))
    assert [len(epoch.joins) for epoch in world.hub.epochs] == [3, 4, 5]
    assert len({site.study_key for site in world.sites.values()}) == 1


@BOTH_VIEWS
def test_one_that_comes_in_the_set_up_waits_for_the_next(tmp_path: Path, hub_view: str) -> None:
    for phase in ("roster", "announce", "deal", "ready"):
        world = build(tmp_path / phase, aggregation={"hub_view": hub_view})
        world.lost.add("site3")
        world.start()
        world.run(until=lambda: world.hub._phase == phase)  # noqa: B023  # asked within the step
        world.arrive("site3")
        world.run()
        ended_alike(world, ALL)
        assert world.hub.epochs[-1].terms.roster.names == ALL


def test_one_that_comes_after_the_last_round_is_told_so(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 4, "done"))
    world.arrive("site3")
    world.run()
    ended_alike(world, ALL[:3])
    assert "ended" in str(world.sites["site3"].stopped)


def test_one_that_comes_after_the_end_is_told_so(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.lost.add("site3")
    world.start()
    world.run()
    world.arrive("site3")
    world.run()
    ended_alike(world, ALL[:3])
    assert "ended" in str(world.sites["site3"].stopped)


# --- who is silent --------------------------------------------------------------------------------


@BOTH_VIEWS
def test_a_silent_site_is_not_waited_for_after_its_deadline_and_goes_on_when_it_is_back(
    tmp_path: Path, hub_view: str
) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view}, training={"rounds": 5})
    world.start()
    world.run(until=after(world, 1))
    world.lost.add("site2")
    world.run(until=after(world, 2))
    world.run(until=after(world, 3))
    later = world.now
    world.arrive("site2")  # a new session, in the same epoch
    world.run()
    ended_alike(world, ALL)
    assert len(world.hub.epochs) == 1
    without = ("site0", "site1", "site3")
    assert [done.survivors for done in rounds(world)] == [ALL, without, without, without, ALL]
    assert (
        later < 1.5 * world.plan.study.deadline_seconds
    )  # one deadline, and nobody waited in the next round
    assert [each.outcome.round for each in said(world, CatchUp, "site2")] == [0, 1, 2]


@BOTH_VIEWS
def test_a_site_that_was_silent_in_two_rounds_reads_on_where_its_session_lives(
    tmp_path: Path, hub_view: str
) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=after(world, 1))
    world.slow.add("site2")
    world.run(until=after(world, 3))
    world.hurry()
    world.run()
    ended_alike(world, ALL)
    assert len(world.hub.epochs) == 1
    assert said(world, CatchUp) == []


@BOTH_VIEWS
def test_a_site_whose_session_lived_through_a_change_of_epoch_is_in_the_next(
    tmp_path: Path, hub_view: str
) -> None:
    world = build(
        tmp_path,
        (20,) * 5,
        aggregation={"hub_view": hub_view, "colluders": 1},
        training={"rounds": 6},
    )
    world.lost.add("site4")
    world.start()
    world.run(until=after(world, 1))
    world.slow.add("site2")
    world.run(until=after(world, 2))
    world.arrive("site4")
    world.run(until=lambda: len(world.hub.epochs) == 2 and world.hub._phase == "upload")
    assert world.hub.epochs[-1].terms.roster.names == ("site0", "site1", "site3", "site4")
    world.hurry()
    world.run()
    ended_alike(world, (*ALL, "site4"))
    assert len(world.hub.epochs[-1].joins) == 5


def test_a_site_that_is_silent_at_the_end_is_waited_for(tmp_path: Path) -> None:
    world = build(tmp_path, (20, 20, 20))
    world.start()
    world.run(until=after(world, 4, "done"))
    world.lost.add("site1")
    world.run(until=lambda: world.now > 5 * world.plan.study.deadline_seconds)
    assert world.hub.stopped is None
    assert {event.missing for event in world.events if isinstance(event, Stalled)} == {("site1",)}
    world.arrive("site1")
    world.run()
    ended_alike(world, ALL[:3])


def test_a_site_that_never_confirms_the_end_costs_a_deadline_and_not_the_study(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=after(world, 4, "done"))
    world.lost.add("site1")
    world.run()
    ended_alike(world, ("site0", "site2", "site3"))


def test_one_that_missed_the_end_is_told_when_it_is_back(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=after(world, 3))
    world.lost.add("site1")
    world.run()
    world.arrive("site1")
    world.run()
    ended_alike(world, ALL)
    assert world.sites["site1"].concluded == world.sites["site0"].concluded


def test_a_silent_member_of_a_set_up_of_three_is_waited_for(tmp_path: Path) -> None:
    """Without it there is no roster; its session lives, and what it says later counts again."""
    world = build(tmp_path, (20, 20, 20))
    world.start()
    world.run(until=lambda: world.hub._phase == "deal")
    world.slow.add("site1")
    world.run(until=lambda: world.now > 3 * world.plan.study.deadline_seconds)
    assert world.hub._phase == "join"
    world.hurry()
    world.run()
    ended_alike(world, ALL[:3])


# --- who begins anew ------------------------------------------------------------------------------


@BOTH_VIEWS
def test_a_site_that_lost_everything_takes_part_from_the_next_epoch_on(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=after(world, 2))
    world.restart_site("site1")
    assert world.sites["site1"].rounds == 0
    world.run()
    ended_alike(world, ALL)
    assert [done.epoch for done in rounds(world)] == [0, 0, 0, 1]
    assert not [event for event in world.events if isinstance(event, Burnt)]


@BOTH_VIEWS
def test_where_the_round_cannot_end_without_it_the_next_epoch_begins_at_once(
    tmp_path: Path, hub_view: str
) -> None:
    world = build(tmp_path, (20, 20, 20), aggregation={"hub_view": hub_view, "colluders": 1})
    world.start()
    world.run(until=after(world, 2))
    world.restart_site("site1")
    world.run()
    ended_alike(world, ALL[:3])
    assert [done.epoch for done in rounds(world)] == [0, 0, 1, 1]
    assert world.now < 1  # nobody waited
    assert [event.attempt for event in world.events if isinstance(event, Burnt)] == [2]
    assert [event.epoch for event in world.events if isinstance(event, EpochEnded)] == [0]


def test_a_newcomer_lets_a_round_end_that_others_left_short(tmp_path: Path) -> None:
    """Three of four are needed: one is lost for good, and another lost everything."""
    world = build(tmp_path)
    world.start()
    world.run(until=after(world, 2))
    world.lost.add("site2")
    world.restart_site("site3")
    world.run()
    ended_alike(world, ("site0", "site1", "site3"))
    assert world.hub.epochs[-1].terms.roster.names == ("site0", "site1", "site3")


@BOTH_VIEWS
def test_a_newcomer_whose_session_breaks_gets_its_model_again(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 1))
    world.arrive("site3")
    world.run(until=lambda: bool(said(world, State)))
    world._queue.clear()  # all that is under way
    world.arrive("site3")
    world.run()
    ended_alike(world, ALL)
    assert len(said(world, State)) == 2
    assert len(world.hub.epochs) == 2


def test_who_hands_the_model_on_is_asked_again_when_its_session_broke(tmp_path: Path) -> None:
    world = build(tmp_path, aggregation={"hub_view": "none"})
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 1))
    world.arrive("site3")
    world.run(until=lambda: world.hub._phase == "state")
    world._queue.clear()
    asked = world.hub._asked
    world.arrive(asked)
    world.run()
    ended_alike(world, ALL)
    assert len(world.hub.epochs) == 2
    assert asked in world.hub.epochs[-1].joins


def test_who_does_not_hand_the_model_on_is_left_out(tmp_path: Path) -> None:
    world = build(tmp_path, (20,) * 5, aggregation={"hub_view": "none", "colluders": 1})
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 1))
    world.arrive("site3")
    world.run(until=lambda: world.hub._phase == "state")
    asked = world.hub._asked
    world.lost.add(asked)
    world.run()
    ended_alike(world, tuple(name for name in world.sites if name != asked))
    assert asked not in world.hub.epochs[-1].joins


@BOTH_VIEWS
def test_a_hub_that_dies_while_a_newcomer_gets_its_model_goes_on(tmp_path: Path, hub_view: str) -> None:
    for steps in range(0, 60, 6):
        place = tmp_path / str(steps)
        world = build(place, journal=ListJournal(), aggregation={"hub_view": hub_view})
        world.lost.add("site3")
        world.start()
        world.run(until=after(world, 1))
        world.arrive("site3")
        begun = len(world.wire)
        world.run(until=lambda: len(world.wire) >= begun + steps)  # noqa: B023  # asked within the step
        world.restart_hub()
        world.run()
        ended_alike(world, ALL)


# --- who is shut out, and who leaves --------------------------------------------------------------


@BOTH_VIEWS
@pytest.mark.parametrize("phase", ["upload", "answer"])
def test_a_revoked_site_is_out_at_once_and_in_no_sum(tmp_path: Path, hub_view: str, phase: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=after(world, 1, phase))
    world.events += world.hub_end.revoke("site1", world.now)
    world.collect()
    world.run()
    rest = ("site0", "site2", "site3")
    ended_alike(world, rest)
    assert [done.survivors for done in rounds(world)] == [ALL, rest, rest, rest]
    assert [done.epoch for done in rounds(world)] == [0, 1, 1, 1]
    assert [event.attempt for event in world.events if isinstance(event, Burnt)] == [1]
    assert not world.hub_end.connected("site1")
    world.arrive("site1")
    world.run()
    assert not world.hub_end.connected("site1")


def test_a_revocation_in_the_set_up_begins_it_again(tmp_path: Path) -> None:
    for phase in ("join", "roster", "announce", "deal", "ready"):
        world = build(tmp_path / phase)
        world.start()
        world.run(until=lambda: world.hub._phase == phase and world.hub.joined)  # noqa: B023
        world.events += world.hub_end.revoke("site1", world.now)
        world.collect()
        world.run()
        ended_alike(world, ("site0", "site2", "site3"))


def test_with_too_few_left_a_revocation_ends_the_study(tmp_path: Path) -> None:
    world = build(tmp_path, (20, 20, 20))
    world.start()
    world.run(until=after(world, 1))
    world.events += world.hub_end.revoke("site1", world.now)
    world.collect()
    world.run()
    assert world.hub.stopped == "2 sites take part, the plan asks for 3"
    assert world.sites["site0"].stopped == world.hub.stopped


@pytest.mark.parametrize("phase", ["roster", "announce", "deal", "ready", "upload", "answer"])
def test_a_site_that_leaves_is_left_out(tmp_path: Path, phase: str) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.hub._phase == phase)
    world.heard("site1", Leave("no more"))  # what it sent before is still under way
    world.lost.add("site1")
    world.run()
    ended_alike(world, ("site0", "site2", "site3"))
    assert any("no more" in event.reason for event in world.events if isinstance(event, Refused))


def test_what_was_under_way_from_a_site_that_left_does_not_bring_it_back(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=after(world, 1))
    world.heard("site1", Leave("no more"))
    world.run()
    assert world.hub.finished
    assert "takes no part" in [event.reason for event in world.events if isinstance(event, Refused)]


def test_a_site_that_left_before_the_roster_is_not_waited_for(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.lost.add("site1")
    world.start()
    world.heard("site1", Leave("its owner refuses"))
    world.run()
    ended_alike(world, ("site0", "site2", "site3"))
    assert world.now < 1


def test_a_site_that_left_may_come_back(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=after(world, 1))
    world.heard("site1", Leave("a moment"))
    world.lost.add("site1")
    world.run(until=after(world, 2))
    world.restart_site("site1")
    world.run()
    ended_alike(world, ALL)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("phase", ["announce", "upload"])
def test_a_refusal_of_all_for_a_moment_does_not_end_what_has_begun(
    tmp_path: Path, phase: str, restarted: bool
) -> None:
    """The power was cut: what every site needs is not up yet when it is invited again."""
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.hub._phase == phase)
    if restarted:
        world.restart_hub()
    for name in ALL:
        world.events += world.hub_end._take(world.hub.decline(name, "its files do not fit"))
    assert world.hub.stopped is None
    world.hub_end._take(world.hub.look_around())
    assert world.hub.stopped is None
    for name in ALL:
        world.arrive(name)
    world.run()
    ended_alike(world, ALL)


def test_a_refusal_of_all_before_anything_began_ends_the_study(tmp_path: Path) -> None:
    world = build(tmp_path)
    for name in ALL:
        world.events += world.hub_end._take(world.hub.decline(name, "no"))
    assert world.hub.stopped == f"every site refuses; {'; '.join(f'{name}: no' for name in ALL)}"


def test_a_stopped_study_says_so_to_who_comes(tmp_path: Path) -> None:
    world = build(tmp_path, (20, 20, 20))
    world.start()
    world.run(until=after(world, 1))
    world.lost |= {"site1"}
    world.run()
    assert world.hub.stopped
    world.arrive("site1")
    world.run()
    assert world.sites["site1"].stopped == world.hub.stopped
    assert said(world, Stop, "site1")


# --- private studies ------------------------------------------------------------------------------


@BOTH_VIEWS
def test_a_private_study_takes_a_new_roster_that_leaves_its_claim(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, private=True, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=after(world, 1))
    site1 = world.sites["site1"]
    world.run(until=after(world, 2))
    restarted = world._make_site("site1")
    restarted._attempts_used = site1._attempts_used  # its journal counts them; the ledger knows the claim
    world._forget("site1")
    world.replace_site("site1", restarted)
    world.arrive("site1")
    world.run()
    ended_alike(world, ALL)
    assert len(world.hub.epochs) == 2
    first, second = (epoch.terms.privacy for epoch in world.hub.epochs)
    assert first == second
    asked = restarted._budget.asked  # type: ignore[attr-defined]
    assert [str(each).split()[0] for each in asked if isinstance(each, str)] == ["admit", "resume", "close"]
    entered = [each for each in asked if isinstance(each, int)]
    assert entered == sorted(set(entered))


def test_a_private_study_asks_nobody_to_change_its_claim(tmp_path: Path) -> None:
    world = build(tmp_path, private=True)
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 1))
    world.arrive("site3")  # with four, noise and sensitivity would be others
    world.run()
    ended_alike(world, ALL[:3])
    assert len(world.hub.epochs) == 1
    assert "ended" in str(world.sites["site3"].stopped)


def test_a_private_study_takes_a_newcomer_in_the_place_of_one_who_is_lost(tmp_path: Path) -> None:
    world = build(tmp_path, private=True)
    world.lost.add("site3")
    world.start()
    world.run(until=after(world, 1))
    world.lost.add("site1")
    world.arrive("site3")
    world.run()
    ended_alike(world, ("site0", "site2", "site3"))
    assert [epoch.terms.roster.names for epoch in world.hub.epochs] == [
        ALL[:3],
        ("site0", "site2", "site3"),
    ]


def test_a_private_study_stops_rather_than_go_on_with_another_claim(tmp_path: Path) -> None:
    world = build(tmp_path, private=True)
    world.start()
    world.run(until=after(world, 1))
    world.events += world.hub_end.revoke("site1", world.now)
    world.collect()
    world.run()
    assert "claims would change" in str(world.hub.stopped)
    assert world.refusals == {}
    assert len(world.hub.epochs) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_site_refuses_a_roster_that_changes_the_claim_once_attempts_have_begun(
    tmp_path: Path, begun: bool
) -> None:
    world = build(tmp_path, private=True)
    world.start()
    world.run(
        until=(lambda: world.sites["site0"].rounds == 1)
        if begun
        else (lambda: world.hub._phase == "announce")
    )
    terms = world.hub.epochs[-1].terms
    kept = terms.roster.members[:3]
    offer = RosterOffer(
        terms.number + 1,
        [member.to_json() for member in kept],
        [terms.manifests[member.name] for member in kept],
        [terms.rows[member.name] for member in kept],
    )
    site = world.sites["site0"]
    if not begun:
        assert len(site.handle(offer)) == 1
        return
    with pytest.raises(ProtocolError, match="claim would change"):
        site.handle(offer)
    assert site.epoch_number == terms.number
    assert site.handle(RoundStart(1, world.hub._attempt)) == site.handle(RoundStart(1, world.hub._attempt))
