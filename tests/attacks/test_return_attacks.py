"""Lies about where the others are: to who comes later, who was away, and around a hub's restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime.journals import ListJournal
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.errors import ProtocolError
from cloister.runtime import Hub
from cloister.runtime.messages import (
    Answer,
    CatchUp,
    Concluded,
    Finish,
    Message,
    Outcome,
    Position,
    Request,
    RosterOffer,
    RoundStart,
    SealedState,
    State,
    StateRequest,
    StudyKeys,
    Upload,
)
from cloister.runtime.voucher import vouch
from cloister.secagg.messages import Request as Asked
from cloister.secagg.messages import encode

FOUR = (20, 20, 20, 20)
BOTH_VIEWS = pytest.mark.parametrize("hub_view", ["sum", "none"])


class Liar(Hub):
    """A hub that may change what it says, and notes it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.said: list[tuple[str, Message]] = []
        self.lie: Callable[[str, Message], Message | None] = lambda name, message: message

    def _send(self, name: str, message: Message) -> None:
        told = self.lie(name, message)
        if told is not None:
            self.said.append((name, told))
            super()._send(name, told)


def build(tmp_path: Path, sizes: tuple[int, ...] = FOUR, **changes: Any) -> World:
    hub = Identity.generate("hub")
    members = parties(tmp_path, sizes)
    training = {"rounds": 4, **changes.pop("training", {})}
    plan = plan_for(hub, members, training=training, **changes)
    return World(plan, hub, members, hub_type=Liar, journal=ListJournal(), refusing_leave=True)


def liar(world: World) -> Liar:
    assert isinstance(world.hub, Liar)
    return world.hub


def told(world: World, name: str, kind: type[Message]) -> list[Any]:
    return [
        message for receiver, message in liar(world).said if receiver == name and isinstance(message, kind)
    ]


def newcomer(tmp_path: Path, lie: Callable[[World, State], State], **changes: Any) -> World:
    """A study whose hub lies in the model it hands to site3, which comes after two rounds."""
    world = build(tmp_path, **changes)
    liar(world).lie = lambda name, message: lie(world, message) if isinstance(message, State) else message
    world.lost.add("site3")
    world.start()
    world.run(until=lambda: len(world.hub.rounds) == 2)
    world.arrive("site3")
    world.run()
    return world


def stays_out(world: World, reason: str) -> None:
    """The newcomer refused and left, its model untouched; the others finished."""
    assert world.sites["site3"].rounds == 0
    assert reason in world.refusals["site3"]
    assert set(world.refusals) == {"site3"}
    assert world.hub.finished
    assert len({world.sites[name].model.released().tobytes() for name in ("site0", "site1", "site2")}) == 1


def forged(message: State) -> memoryview:
    state = bytearray(message.state)
    state[-1] ^= 1
    return memoryview(bytes(state))


# --- the model, for who comes later ---------------------------------------------------------------


@BOTH_VIEWS
@pytest.mark.parametrize(
    ("which", "count"), [("none", 0), ("one", 1), ("one twice", 1), ("garbage", 0), ("of strangers", 0)]
)
def test_a_model_that_too_few_vouch_for_is_refused(
    tmp_path: Path, hub_view: str, which: str, count: int
) -> None:
    def lie(world: World, message: State) -> State:
        first = message.vouchers[0]
        vouchers = {
            "none": [],
            "one": [first],
            "one twice": [first, first],
            "garbage": [b"", b"{}", first[:-1], first.replace(b'"sig":"', b'"sig":"A')],
            "of strangers": [
                vouch(Identity.generate(name), world.plan.digest, 1, message.rounds, message.state)
                for name in ("site0", "site1", "hub")
            ],
        }[which]
        return msgspec.structs.replace(message, vouchers=vouchers)

    world = newcomer(tmp_path, lie, aggregation={"hub_view": hub_view})
    stays_out(world, f"{count} members vouch for the model, 2 must")


def test_another_model_than_the_one_that_is_vouched_for_is_refused(tmp_path: Path) -> None:
    world = newcomer(tmp_path, lambda _, message: msgspec.structs.replace(message, state=forged(message)))
    stays_out(world, "0 members vouch")


def test_a_hub_and_its_one_colluder_do_not_vouch_for_a_model_of_their_own(tmp_path: Path) -> None:
    """One of four may collude: its word and what the honest said of another model are not two words."""

    def lie(world: World, message: State) -> State:
        state = forged(message)
        colluder = world.sites["site1"]._identity
        own = vouch(colluder, world.plan.digest, 1, message.rounds, state)
        return msgspec.structs.replace(message, state=state, vouchers=[*message.vouchers, own])

    stays_out(newcomer(tmp_path, lie), "1 members vouch")


@pytest.mark.parametrize("facts", ["plan", "epoch", "rounds"])
def test_a_voucher_counts_for_its_own_plan_epoch_and_round_alone(tmp_path: Path, facts: str) -> None:
    def lie(world: World, message: State) -> State:
        plan = bytes(32) if facts == "plan" else world.plan.digest
        epoch, rounds = 1 - (facts == "epoch"), message.rounds - (facts == "rounds")
        vouchers = [
            vouch(world.sites[name]._identity, plan, epoch, rounds, message.state)
            for name in ("site0", "site1", "site2")
        ]
        return msgspec.structs.replace(message, vouchers=vouchers)

    stays_out(newcomer(tmp_path, lie), "0 members vouch")


def test_a_model_of_another_number_of_rounds_than_stated_is_refused(tmp_path: Path) -> None:
    world = newcomer(tmp_path, lambda _, message: msgspec.structs.replace(message, rounds=message.rounds - 1))
    stays_out(world, "0 members vouch")


@BOTH_VIEWS
def test_a_model_is_sealed_where_the_hub_may_not_see_it_and_only_there(tmp_path: Path, hub_view: str) -> None:
    def lie(world: World, message: State) -> State:
        state = memoryview(world.sites["site0"].model.snapshot())
        return msgspec.structs.replace(message, sealed=not message.sealed, state=state)

    world = newcomer(tmp_path, lie, aggregation={"hub_view": hub_view})
    stays_out(world, "a model that is not due")


def test_a_model_that_was_sealed_for_another_does_not_open(tmp_path: Path) -> None:
    """Also where the hub says that it is for this one: reader, epoch and round are in what is sealed."""
    world = build(tmp_path, (20,) * 5, aggregation={"hub_view": "none", "colluders": 1})
    swapped: dict[str, memoryview] = {}

    def lie(name: str, message: Message) -> Message:
        if not isinstance(message, State):
            return message
        swapped.setdefault(name, message.state)
        other = swapped.get("site3", message.state)
        return msgspec.structs.replace(message, state=other) if name == "site4" else message

    liar(world).lie = lie
    world.lost |= {"site3", "site4"}
    world.start()
    world.run(until=lambda: len(world.hub.rounds) == 1)
    world.arrive("site3")
    world.arrive("site4")
    world.run()
    assert world.refusals == {"site4": "carried a model that does not open (from hub)."}
    assert world.hub.finished


def test_a_hub_cannot_ask_for_a_model_to_be_sealed_for_itself_or_a_stranger(tmp_path: Path) -> None:
    world = build(tmp_path, aggregation={"hub_view": "none"})
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 1)
    site = world.sites["site0"]
    for receiver in ("hub", "mallory"):
        with pytest.raises(ProtocolError):
            site.handle(StateRequest([receiver]))
    (sealed,) = site.handle(StateRequest(["site1"]))
    assert isinstance(sealed, SealedState)
    assert site.model.params.tobytes() not in bytes(sealed.sealed)


def test_where_the_hub_has_the_model_no_site_hands_it_on(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 1)
    with pytest.raises(ProtocolError, match="has itself"):
        world.sites["site0"].handle(StateRequest(["site1"]))


@BOTH_VIEWS
def test_a_model_is_not_put_in_the_place_of_one_that_is_as_new(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 2)
    site, before = world.sites["site0"], world.sites["site0"].model.snapshot()
    vouchers = [
        vouch(each._identity, world.plan.digest, 0, rounds, before)
        for each in world.sites.values()
        for rounds in (1, 2)
    ]
    for rounds in (1, 2):
        with pytest.raises(ProtocolError, match="not due"):
            site.handle(State(rounds, memoryview(before), hub_view == "none", vouchers))
    assert site.model.snapshot() == before


def test_a_site_that_was_not_asked_hands_nothing_on(tmp_path: Path) -> None:
    world = build(tmp_path, aggregation={"hub_view": "none"})
    world.lost.add("site3")
    world.start()
    world.run(until=lambda: len(world.hub.rounds) == 1)
    world.arrive("site3")
    world.run(until=lambda: world.hub._phase == "state")
    other = next(name for name in ("site0", "site1", "site2") if name != world.hub._asked)
    world.heard(other, SealedState("site3", memoryview(b"junk")))
    assert not told(world, "site3", State)
    world.run()
    assert world.refusals == {}
    assert world.sites["site3"].finished


# --- outcomes, for who was away -------------------------------------------------------------------


@BOTH_VIEWS
def test_outcomes_of_wrong_rounds_do_not_move_a_model(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 2)
    site, before = world.sites["site0"], world.sites["site0"].model.snapshot()
    last = next(m.outcome for m in reversed(told(world, "site0", RoundStart)) if m.outcome is not None)
    for ahead in (3, 4, 100):
        with pytest.raises(ProtocolError, match="another round"):
            site.handle(CatchUp(msgspec.structs.replace(last, round=ahead)))
    for past in (0, 1):
        total = memoryview(bytes(len(last.total)))
        assert site.handle(CatchUp(Outcome(past, past, list(last.survivors), total))) == []
    assert site.model.snapshot() == before


@BOTH_VIEWS
@pytest.mark.parametrize(
    "survivors", [["site0"], ["site0", "site1"], ["site0"] * 4, ["site0", "site1", "eve"]]
)
def test_an_outcome_over_a_list_that_cannot_be_is_refused(
    tmp_path: Path, hub_view: str, survivors: list[str]
) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=lambda: world.hub.rounds != [] and world.sites["site0"].rounds == 0)
    site, before = world.sites["site0"], world.sites["site0"].model.snapshot()
    outcome = next(m.outcome for m in told(world, "site0", RoundStart) if m.outcome is not None)
    with pytest.raises(ProtocolError):
        site.handle(CatchUp(msgspec.structs.replace(outcome, survivors=survivors)))
    assert site.model.snapshot() == before


@BOTH_VIEWS
def test_a_site_that_was_told_another_outcome_is_in_no_sum_with_the_others(
    tmp_path: Path, hub_view: str
) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})

    def lie(name: str, message: Message) -> Message:
        if isinstance(message, CatchUp):
            total = bytearray(message.outcome.total)
            total[0] ^= 1
            outcome = msgspec.structs.replace(message.outcome, total=memoryview(bytes(total)))
            return CatchUp(outcome)
        return message

    liar(world).lie = lie
    world.start()
    world.run(until=lambda: len(world.hub.rounds) == 1)
    world.lost.add("site3")
    world.run(until=lambda: len(world.hub.rounds) == 2)
    world.arrive("site3")
    world.run()
    assert told(world, "site3", CatchUp)
    assert all("site3" not in done.survivors for done in world.hub.rounds[1:])
    honest = {world.sites[name].model.params.tobytes() for name in ("site0", "site1", "site2")}
    assert world.sites["site3"].model.params.tobytes() not in honest


def test_a_site_does_not_say_it_is_where_it_is_not(tmp_path: Path) -> None:
    """A member that lies about its position gets no more than it could have had, and stops nobody."""
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: len(world.hub.rounds) == 2)
    digest = world.hub.epochs[-1].secure_sum.setup_digest
    honest = world.sites["site3"].join()
    for position in (
        Position(0, bytes(32), 1, 0),
        Position(7, digest, 1, 0),
        Position(0, digest, 2**31 - 1, 0),
        Position(0, digest, 0, 2**31 - 1),
    ):
        world.heard("site3", msgspec.structs.replace(honest, position=position))
    world.lost.add("site3")
    world.run()
    assert world.hub.finished
    assert world.hub.stopped is None


# --- around a restart -----------------------------------------------------------------------------


@BOTH_VIEWS
def test_an_old_attempt_is_not_started_again_after_a_restart(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 2 and world.hub._phase == "upload")
    world.restart_hub()
    world.run(until=lambda: world.sites["site0"].attempt == 2 and world.hub._phase == "answer")
    site, before = world.sites["site0"], world.sites["site0"].model.snapshot()
    outcome = world.hub._last
    for start in (
        RoundStart(2, 0),
        RoundStart(2, 1),
        RoundStart(1, 1),
        RoundStart(0, 0),
        RoundStart(1, 3, outcome),
        RoundStart(3, 1, outcome),
    ):
        with pytest.raises(ProtocolError):
            site.handle(start)
    assert site.model.snapshot() == before


@BOTH_VIEWS
def test_no_second_vector_leaves_for_an_attempt_whoever_asks_again(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 1 and world.sites["site0"].attempt == 1)
    site, left = world.sites["site0"], set()
    for _ in range(5):
        (upload,) = site.handle(RoundStart(1, 1))
        assert isinstance(upload, Upload)
        left.add(bytes(upload.body))
    assert len(left) == 1


class TwoChoices:
    """What a site gave for two survivor lists of one attempt."""

    def __init__(self, world: World, name: str) -> None:
        site, hub = world.sites[name], world.hub.epochs[-1].secure_sum
        self._attempt = world.hub._attempt
        self._site, self._setup = site, hub.setup_digest

    def ask(self, survivors: list[str]) -> list[Message]:
        body = encode(Asked(self._setup, self._attempt, survivors, []))
        return self._site.handle(Request(self._attempt, body))


@BOTH_VIEWS
@pytest.mark.parametrize("restart", ["hub", "none"])
def test_a_hub_that_asks_for_two_choices_around_its_restart_gets_one(
    tmp_path: Path, hub_view: str, restart: str
) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(
        until=lambda: world.hub._phase == "upload" and len(world.hub.epochs[-1].secure_sum.uploaded) == 3
    )
    everybody, less = list(world.sites), ["site0", "site1", "site2"]
    world.run(until=lambda: world.sites["site0"].attempt == 0)
    first = TwoChoices(world, "site0").ask(less)
    assert [type(answer) for answer in first] == [Answer]
    if restart == "hub":
        world.restart_hub()
        world.run(until=lambda: world.hub._phase == "upload")
    again = TwoChoices(world, "site0")
    with pytest.raises(ProtocolError, match="another survivor list was chosen"):
        again.ask(everybody)
    assert again.ask(less) == first


def test_a_hub_that_forgot_its_choice_learns_no_second_sum(tmp_path: Path) -> None:
    """Its journal is cut before the list: it asks for another, and who supported the first refuses."""
    world = build(tmp_path)
    world.start()
    journal = world.hub._journal
    assert isinstance(journal, ListJournal)
    world.run(until=lambda: world.hub._phase == "upload")
    world.slow.add("site3")
    three = [world.sites[name] for name in ("site0", "site1", "site2")]
    world.run(until=lambda: all(site.attempt == 0 and site._secure_sum().choice for site in three))
    while b"fixed" not in journal.kept.pop():
        pass
    world.slow.clear()
    world.restart_hub()
    world.run()
    assert [(done.round, done.attempt) for done in world.hub.rounds if done.attempt == 0] == []
    assert set(world.refusals) == {"site0", "site1", "site2"}
    assert all("another survivor list was chosen" in reason for reason in world.refusals.values())
    assert world.hub.stopped


@BOTH_VIEWS
def test_an_epoch_number_is_not_agreed_to_twice_around_a_restart(tmp_path: Path, hub_view: str) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    world.start()
    world.run(until=lambda: world.hub._phase == "announce")
    offers = told(world, "site0", RosterOffer)
    journal = world.hub._journal
    assert isinstance(journal, ListJournal)
    journal.kept.clear()  # a hub that was put back to an older copy
    world.restart_hub()
    world.run()
    assert world.refusals
    assert all("second roster" in reason for reason in world.refusals.values())
    with pytest.raises(ProtocolError):
        world.sites["site0"].handle(offers[0])


def test_nothing_ends_a_study_before_its_last_round(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.sites["site0"].rounds == 2)
    site, before = world.sites["site0"], world.sites["site0"].model.snapshot()
    outcome = next(m.outcome for m in told(world, "site0", RoundStart) if m.outcome is not None)
    for message in (Finish(outcome), Concluded(b"{}", b"{}")):
        with pytest.raises(ProtocolError, match=r"before (its|the) last round"):
            site.handle(message)
    with pytest.raises(ProtocolError):
        site.handle(StudyKeys(b"{}"))
    assert site.model.snapshot() == before
    assert not site.finished
