"""One site that lies, or a network that invents, against a study whose hub and other sites are honest: it can
leave the study or spoil the model, and must not stop the others or crash the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.errors import PlanError, ProtocolError
from cloister.runtime import (
    Burnt,
    Countersignature,
    Refused,
    RoundDone,
    Step,
    countersign,
    manifest_digest,
)
from cloister.runtime.link import Link
from cloister.runtime.messages import (
    Announce,
    Countersign,
    Done,
    Finish,
    Message,
    Outcome,
    Ready,
    RosterOffer,
    RoundStart,
    Upload,
)
from cloister.secagg import Encoding

FOUR = (20, 20, 20, 20)
Change = Callable[[Message], Message]


def build(tmp_path: Path, sizes: tuple[int, ...] = FOUR, **changes: Any) -> World:
    hub = Identity.generate("hub")
    members = parties(tmp_path, sizes)
    return World(plan_for(hub, members, **changes), hub, members)


def lie(world: World, name: str, kind: type[Message], change: Change) -> None:
    """Make a site change every message of one kind before it leaves."""
    site = world.sites[name]
    honest = site._handle
    site._handle = lambda message: [  # type: ignore[method-assign]
        change(reply) if isinstance(reply, kind) else reply for reply in honest(message)
    ]


def say(world: World, name: str, message: Message) -> None:
    """Let a site say something of its own accord, at once."""
    world.heard(name, message)


def rounds(world: World) -> list[RoundDone]:
    return [event for event in world.events if isinstance(event, RoundDone)]


def finishes_without(world: World, liar: str) -> None:
    world.run()
    assert world.hub.stopped is None
    assert world.hub.finished
    assert liar not in world.hub.epochs[-1].terms.roster.names
    assert [done.round for done in rounds(world)] == [0, 1, 2]


def left_out(tmp_path: Path) -> World:
    """A study of four whose site3 was silent in the set-up, is not on the roster and comes back."""
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.hub._phase == "announce")
    world.lost.add("site3")
    world.run(until=lambda: len(world.hub.epochs) == 2)
    world.lost.clear()
    return world


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["roster", "announce", "deal", "ready"])
def test_invented_and_replayed_messages_exclude_nobody_from_the_set_up(tmp_path: Path, phase: str) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.hub._phase == phase)
    site = world.sites["site1"]
    sent = [datagram for sender, _, datagram in world.wire if sender == "site1"]
    other = Link(site._identity, world.hub._identity.public, bytes(32), initiator=True)
    other.open(world.now)
    foreign = other.poll(world.now)
    assert foreign is not None
    frame = msgspec.msgpack.decode(sent[-1])
    session, frame[2] = frame[2], bytes(32)
    elsewhere = msgspec.msgpack.encode(frame)
    frame[2], frame[-1] = session, bytes(64)  # the signature, beside a stamp that was never seen
    frame[6] += 1000
    for datagram in sent:
        assert world.attack_hub(datagram) == []
    for datagram in (foreign, elsewhere, msgspec.msgpack.encode(frame)):
        assert [type(event) for event in world.attack_hub(datagram)] == [Refused]
    world.run()
    assert world.hub.finished
    assert [epoch.terms.roster.names for epoch in world.hub.epochs] == [("site0", "site1", "site2", "site3")]


# --- the set-up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", [{"rows": 7}, {"manifest": "0" * 64}, {"plan": "0" * 64}], ids=lambda field: next(iter(field))
)
def test_who_countersigns_something_else_is_left_out(tmp_path: Path, field: dict[str, Any]) -> None:
    world = build(tmp_path)

    def change(message: Message) -> Message:
        assert isinstance(message, Countersign)
        site = world.sites["site3"]
        statement = site._current().terms.countersignature("site3")
        return Countersign(countersign(site._identity, msgspec.structs.replace(statement, **field)))

    lie(world, "site3", Countersign, change)
    world.start()
    finishes_without(world, "site3")


def test_who_ends_the_set_up_with_another_digest_is_left_out(tmp_path: Path) -> None:
    world = build(tmp_path)
    lie(world, "site3", Ready, lambda message: msgspec.structs.replace(message, setup_digest=bytes(32)))
    world.start()
    finishes_without(world, "site3")


@pytest.mark.parametrize("keys", [None, b"", b"{}"])
def test_a_first_member_that_deals_no_study_key_is_left_out(tmp_path: Path, keys: bytes | None) -> None:
    world = build(tmp_path)
    lie(world, "site0", Ready, lambda message: msgspec.structs.replace(message, study_keys=keys))
    world.start()
    finishes_without(world, "site0")


def test_a_site_that_is_not_on_the_roster_has_no_voice_in_the_set_up(tmp_path: Path) -> None:
    world = left_out(tmp_path)
    roster = world.hub.epochs[-1].terms.roster
    statement = Countersignature(
        world.plan.digest.hex(), roster.digest.hex(), 1, "site3", world.sites["site3"]._plan.data.schema, 20
    )
    outsider = world.sites["site3"]
    said: dict[str, Message] = {
        "roster": Countersign(countersign(outsider._identity, statement)),
        "announce": Announce(b"junk"),
        "ready": Ready(bytes(32)),
    }
    for phase, message in said.items():
        world.run(until=lambda phase=phase: world.hub._phase == phase)  # type: ignore[misc]
        say(world, "site3", message)
    world.run()
    assert world.hub.finished
    assert world.hub.stopped is None
    # it was heard, and so takes part from the next epoch on; that of the others went its way
    assert [(len(epoch.joins), epoch.opened) for epoch in world.hub.epochs] == [
        (4, False),
        (3, True),
        (4, True),
    ]


def test_a_member_that_vanishes_when_all_is_dealt_means_a_smaller_roster(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.hub._phase == "ready")
    world.lost.add("site3")
    finishes_without(world, "site3")
    assert len({site.study_key for name, site in world.sites.items() if name != "site3"}) == 1


# --- rounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evaluation", [[], [1.0] * 3, [float("nan")] * 4, [1e308] * 4, [-1.0, 0.0, 0.0, 0.0], [0.0] * 5]
)
@pytest.mark.parametrize("kind", [Upload, Done])
def test_an_evaluation_that_is_none_is_refused_and_stops_nobody(
    tmp_path: Path, kind: type[Message], evaluation: list[float]
) -> None:
    world = build(tmp_path)
    lie(world, "site3", kind, lambda message: msgspec.structs.replace(message, evaluation=evaluation))
    world.start()
    world.run()
    assert world.hub.finished
    assert not [event for event in world.events if isinstance(event, Burnt)]
    assert {event.peer for event in world.events if isinstance(event, Refused)} == {"site3"}
    assert world.hub.final_metrics is not None
    assert np.isfinite(list(world.hub.final_metrics[0].values())).all()


def test_a_sum_that_no_honest_sites_have_burns_the_attempt_and_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build(tmp_path)
    encode = Encoding.encode
    calls = 0

    def poisoned(self: Encoding, vector: Any, *more: Any) -> Any:
        nonlocal calls
        calls += 1
        ring = encode(self, vector, *more)
        return ring + ring.dtype.type(2**31 - 1) if calls == 1 else ring

    monkeypatch.setattr(Encoding, "encode", poisoned)
    world.start()
    world.run()
    assert world.hub.finished
    assert [event.attempt for event in world.events if isinstance(event, Burnt)] == [0]
    assert [(done.round, done.attempt) for done in rounds(world)] == [(0, 1), (1, 2), (2, 3)]
    assert world.hub.rounds == rounds(world)


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_one_site_with_another_model_at_the_end_does_not_take_it_from_the_others(
    tmp_path: Path, hub_view: str
) -> None:
    world = build(tmp_path, aggregation={"hub_view": hub_view})
    lie(world, "site3", Done, lambda message: msgspec.structs.replace(message, tag=bytes(32)))
    world.start()
    world.run()
    assert world.hub.finished
    assert [event.peer for event in world.events if isinstance(event, Refused)] == ["site3"]


def test_a_site_that_is_not_on_the_roster_has_no_voice_at_the_end(tmp_path: Path) -> None:
    world = left_out(tmp_path)
    world.run(until=lambda: world.hub._phase == "done")
    say(world, "site3", Done(bytes(32)))
    world.run()
    assert world.hub.finished


# --- the hub, seen from a site --------------------------------------------------------------------


def test_a_finish_before_the_last_round_does_not_finish_a_site(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: len(rounds(world)) == 1)
    site = world.sites["site0"]
    outcome = Outcome(
        0, 0, ["site0", "site1", "site2"], memoryview(bytes(4 * world.sites["site0"].shape.size))
    )
    with pytest.raises(ProtocolError, match="last round"):
        site._handle(Finish(outcome))
    assert not site.finished
    assert site.model.rounds == 0


def test_a_refused_start_does_not_move_the_model(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: len(rounds(world)) == 1)
    site = world.sites["site0"]
    outcome = Outcome(
        0, 0, ["site0", "site1", "site2"], memoryview(bytes(4 * world.sites["site0"].shape.size))
    )
    for start in (RoundStart(2, 1, outcome), RoundStart(1, 0, outcome)):
        with pytest.raises(ProtocolError, match=r"is due|was used"):
            site._handle(start)
    assert site.model.rounds == 0


def test_abandoned_and_finished_epochs_are_erased(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: world.hub._phase == "ready")
    abandoned = {name: site._secure_sum() for name, site in world.sites.items()}
    world.lost.add("site3")
    world.run()
    for name in ("site0", "site1", "site2"):
        assert abandoned[name]._secrets is None
        assert world.sites[name]._secure_sum() is not abandoned[name]
        assert world.sites[name].finished
        world.sites[name].leave()
        assert world.sites[name]._secure_sum()._secrets is None


def test_a_stopped_site_erases_its_secrets_and_does_no_more(tmp_path: Path) -> None:
    world = build(tmp_path)
    world.start()
    world.run(until=lambda: len(rounds(world)) == 1)
    world.hub._step = Step()
    world.hub._stop("x" * 2000)
    world.events += world.hub_end._take(world.hub._step)
    world.collect()
    world.run()
    for site in world.sites.values():
        assert site.stopped == "x" * 500
        assert site._secure_sum()._secrets is None
        assert site._expected == ()


def test_an_offered_roster_is_compared_with_the_colluders_of_the_whole_plan(tmp_path: Path) -> None:
    """Of seven sites two may collude with the hub; a roster of those two and one victim is refused."""
    world = build(tmp_path, (20,) * 7)
    site = world.sites["site2"]
    trio = [world.sites[name] for name in ("site0", "site1", "site2")]
    offer = RosterOffer(
        0,
        [each._identity.public.to_json() for each in trio],
        [manifest_digest(each._manifest) for each in trio],
        [20, 20, 20],
    )
    with pytest.raises(PlanError, match="colluders"):
        site._handle(offer)
