"""What somebody on the wire, somebody with an old recording, and a peer that lies can do: nothing."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.link.wires import (
    HUB,
    SITE,
    STRANGER,
    World,
    alter,
    connected,
    hub_link,
    session_of,
    signed_frame,
    site_link,
)

from cloister.crypto import Identity
from cloister.errors import IntegrityError, ProtocolError
from cloister.runtime.link import Link, peek
from cloister.runtime.link.wire import (
    ACK,
    ANNOUNCE,
    CONFIRM,
    FRAGMENT,
    MAX_PAYLOAD,
    MAX_SMALL,
    PROBE,
    WHOLE,
    Route,
)


def next_of(link: Link, now: float = 0.0) -> bytes:
    datagram = link.poll(now)
    assert datagram is not None
    return datagram


def refused(link: Link, datagram: bytes) -> None:
    with pytest.raises((ProtocolError, IntegrityError)):
        link.receive(datagram, 0.0)


def hello(site: Link) -> bytes:
    site.open(0.0)
    return next_of(site)


def asked() -> tuple[Link, bytes, bytes]:
    """A site whose hello was answered, with both."""
    site, hub = site_link(), hub_link()
    first = hello(site)
    hub.receive(first, 0.0)
    return site, first, next_of(hub)


def large_world() -> World:
    """A site that was granted a payload of three fragments, none of which was sent."""
    world = connected()
    world.site.send(bytes(190_000))
    world.run(lambda: world.hub.granted)
    return world


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_any_altered_datagram_is_refused_and_changes_nothing(seed: int) -> None:
    source = random.Random(seed)  # noqa: S311
    site, hub = site_link(), hub_link()
    first = hello(site)
    refused(hub, alter(first, source))
    hub.receive(first, 0.0)
    answer = next_of(hub)
    refused(site, alter(answer, source))
    assert site.receive(answer, 0.0).opened
    confirm = next_of(site)
    refused(hub, alter(confirm, source))
    assert not hub.ready
    assert hub.receive(confirm, 0.0).opened
    site.send(b"payload")
    frame = next_of(site)
    refused(hub, alter(frame, source))
    assert hub.receive(frame, 0.0).payloads == [b"payload"]


def test_every_altered_bit_of_a_frame_is_refused() -> None:
    world = connected()
    world.site.send(b"payload")
    frame = next_of(world.site, world.now)
    for position in range(8 * len(frame)):
        altered = bytearray(frame)
        altered[position // 8] ^= 1 << position % 8
        refused(world.hub, bytes(altered))
    assert world.hub.receive(frame, world.now).payloads == [b"payload"]


def test_an_altered_fragment_leaves_no_trace_in_the_buffer() -> None:
    world = large_world()
    grant = next_of(world.hub, world.now)
    world.site.receive(grant, world.now)
    fragment = bytearray(next_of(world.site, world.now))
    fragment[500] ^= 1
    refused(world.hub, bytes(fragment))
    large = session_of(world.hub).incoming._large
    assert large is not None
    assert not any(large.take())


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x91" * 10_000])
def test_garbage_is_refused(garbage: bytes) -> None:
    refused(connected().hub, garbage)
    with pytest.raises(ProtocolError):
        peek(garbage)


def test_a_datagram_above_the_limit_is_refused() -> None:
    with pytest.raises(ProtocolError, match="size limit"):
        connected().hub.receive(bytes((1 << 20) + 4097), 0.0)


def test_a_name_that_is_none_reaches_no_log() -> None:
    world = connected()
    world.site.send(b"x")
    fields = msgspec.msgpack.decode(next_of(world.site, world.now))
    fields[1] = msgspec.msgpack.encode([1, bytes(32), "\x1b[2Jroot\n", "site"])
    with pytest.raises(ProtocolError, match="no datagram of a link"):
        peek(msgspec.msgpack.encode(fields))
    refused(world.hub, msgspec.msgpack.encode(fields))


def test_what_is_meant_for_another_study_or_party_is_refused() -> None:
    other = connected(study=bytes(32))
    other.site.send(b"x")
    frame = next_of(other.site)
    refused(connected().hub, frame)
    with pytest.raises(ProtocolError, match="another study"):
        hub_link().receive(hello(site_link(bytes(32))), 0.0)
    elsewhere = Link(SITE, STRANGER.public, bytes(range(32)), initiator=True)
    with pytest.raises(ProtocolError, match="another study, party"):
        hub_link().receive(hello(elsewhere), 0.0)


def test_a_hello_is_good_for_one_hub_and_not_for_another_of_the_same_name() -> None:
    namesake = Identity.generate("hub")
    first = hello(Link(SITE, namesake.public, bytes(range(32)), initiator=True))
    with pytest.raises(IntegrityError):
        hub_link().receive(first, 0.0)


def test_nobody_speaks_for_somebody_else() -> None:
    impostor = Link(Identity.generate("site"), HUB.public, bytes(range(32)), initiator=True)
    hub = hub_link()
    with pytest.raises(IntegrityError):
        hub.receive(hello(impostor), 0.0)
    assert hub.poll(0.0) is None
    site, first, _ = asked()
    false_hub = Link(Identity.generate("hub"), SITE.public, bytes(range(32)), initiator=False)
    refused(false_hub, first)  # it cannot even be asked
    false_hub._parties.peer = SITE.public
    false_hub._check = lambda hello: None  # type: ignore[method-assign]  # an attacker checks nothing
    false_hub.receive(first, 0.0)
    with pytest.raises(IntegrityError):
        site.receive(next_of(false_hub), 0.0)
    assert not site.ready


@pytest.mark.parametrize(
    ("field", "value"), [(2, bytes(32)), (3, bytes(32)), (4, [1, 2]), (5, 9), (6, bytes(32))]
)
def test_every_field_of_a_hello_is_signed(field: int, value: object) -> None:
    fields = msgspec.msgpack.decode(hello(site_link()))
    fields[field] = value
    with pytest.raises((IntegrityError, ProtocolError)):
        hub_link().receive(msgspec.msgpack.encode(fields), 0.0)


def test_nothing_is_accepted_back_by_its_sender() -> None:
    world = connected()
    world.site.send(b"x")
    refused(world.site, next_of(world.site, world.now))
    refused(world.site, hello(world.site))
    two = hub_link()
    two.receive(hello(site_link()), 0.0)
    refused(hub_link(), next_of(two))


def test_an_answer_is_good_for_one_hello() -> None:
    _, _, answer = asked()
    site = site_link()
    hello(site)
    with pytest.raises(ProtocolError, match="never sent"):
        site.receive(answer, 0.0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9))
def test_replaying_a_recording_has_no_effect(seed: int) -> None:
    source = random.Random(seed)  # noqa: S311
    world = connected()
    for _ in range(3):
        for link in (world.site, world.hub):
            link.send(b"small")
            link.send(bytes(source.randrange(17_000, 200_000)))
        world.run()
        world.open()
    world.run()
    session, delivered = world.site.session, (len(world.at_hub), len(world.at_site))
    replayed = world.recorded.copy()
    source.shuffle(replayed)
    for _, datagram in replayed:
        world.deliver("hub", datagram)
        world.deliver("site", datagram)
    world.run()
    assert (len(world.at_hub), len(world.at_site)) == delivered
    assert world.site.session == world.hub.session == session
    world.site.send(b"still here")
    world.hub.send(b"here too")
    world.run()
    assert (world.at_hub[-1], world.at_site[-1]) == (b"still here", b"here too")


def test_replayed_hellos_cannot_keep_a_session_from_opening() -> None:
    old = [hello(site_link()) for _ in range(8)]
    world = World(site_link(), hub_link())
    world.site.open(0.0)
    world.run(lambda: world.site.ready)
    for datagram in old:
        world.deliver("hub", datagram)  # the candidate is gone
    world.run(lambda: world.hub.ready)
    assert world.now < 11.0
    world.run()
    assert world.site.session == world.hub.session
    assert len(world.hub._candidates) <= 4


def test_an_older_candidate_cannot_shut_out_a_newer_one() -> None:
    site, hub = site_link(), hub_link()
    confirms = []
    for _ in range(2):
        hub.receive(hello(site), 0.0)
        site.receive(next_of(hub), 0.0)
        confirms.append(next_of(site))
    assert hub.receive(confirms[0], 0.0).opened  # delayed on purpose
    assert hub.receive(confirms[1], 0.0).opened
    assert hub.session == site.session
    refused(hub, confirms[0])


def test_a_duplicate_is_dropped_before_its_signature_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    world = connected()
    world.site.send(b"x")
    frame = next_of(world.site, world.now)
    assert world.hub.receive(frame, world.now).payloads == [b"x"]
    monkeypatch.setattr(session_of(world.hub), "_peer", None)
    for _ in range(3):
        assert world.hub.receive(frame, world.now).payloads == []


LIES: dict[str, Callable[[World], bytes]] = {
    "too far ahead": lambda world: signed_frame(world.site, WHOLE, sequence=2000),
    "acknowledges": lambda world: signed_frame(world.site, ACK, ack=7),
    "never sent": lambda world: signed_frame(world.site, ACK, echo=50),
    "was never": lambda world: signed_frame(world.site, ACK, held=1),
    "it was": lambda world: signed_frame(world.site, PROBE, grants=1),
    "something in it": lambda world: signed_frame(world.site, ACK, sequence=3),
    "does not fit": lambda world: signed_frame(world.site, WHOLE, bytes(MAX_SMALL + 1), sequence=9),
    "what it announced": lambda world: signed_frame(world.site, FRAGMENT, bytes(9), sequence=9),
    "not fit what": lambda world: signed_frame(world.site, ANNOUNCE, sequence=9, size=MAX_SMALL),
    "frame that does": lambda world: signed_frame(world.site, WHOLE, b"x", sequence=9, size=5),
    "a frame that does": lambda world: signed_frame(world.site, CONFIRM, b"x", sequence=9),
    "no datagram": lambda world: signed_frame(world.site, ANNOUNCE, sequence=9, size=MAX_PAYLOAD + 1),
}


@pytest.mark.parametrize("message", LIES)
def test_a_peer_that_lies_is_refused(message: str) -> None:
    world = connected()
    with pytest.raises(ProtocolError, match=message):
        world.hub.receive(LIES[message](world), world.now)
    world.hub.send(b"still here")
    world.run()
    assert world.at_site == [b"still here"]


def test_what_a_peer_acknowledged_it_cannot_take_back() -> None:
    world = connected()
    world.hub.send(b"x")
    world.run()
    with pytest.raises(ProtocolError, match="never sent"):
        world.hub.receive(signed_frame(world.site, ACK, ack=0), world.now)


@pytest.mark.parametrize(
    ("sequence", "kind", "length"),
    [(2, FRAGMENT, 65_535), (4, FRAGMENT, 65_536), (5, FRAGMENT, 65_536), (3, WHOLE, 10), (2, CONFIRM, 0)],
)
def test_a_fragment_has_its_place_and_length(sequence: int, kind: int, length: int) -> None:
    world = large_world()  # announced by frame 1, fragments are frames 2 to 4
    with pytest.raises(ProtocolError, match="does not fit"):
        world.hub.receive(signed_frame(world.site, kind, bytes(length), sequence=sequence), world.now)


def test_a_fragment_before_its_grant_is_refused() -> None:
    world = connected(auto_grant=False)
    world.site.send(bytes(190_000))
    world.run()
    with pytest.raises(ProtocolError, match="does not fit"):
        world.hub.receive(signed_frame(world.site, FRAGMENT, bytes(65_536), sequence=2), world.now)


def test_nothing_else_takes_the_place_of_a_fragment_that_was_not_announced_yet() -> None:
    world = connected()
    world.hub.receive(signed_frame(world.site, ANNOUNCE, sequence=2, size=190_000), world.now)
    with pytest.raises(ProtocolError, match="does not fit"):
        world.hub.receive(signed_frame(world.site, WHOLE, b"x", sequence=4), world.now)
    world.hub.receive(signed_frame(world.site, WHOLE, b"x", sequence=30), world.now)
    with pytest.raises(ProtocolError, match="does not fit"):
        world.hub.receive(signed_frame(world.site, ANNOUNCE, sequence=29, size=190_000), world.now)


def test_what_waits_for_its_turn_is_bounded_in_bytes() -> None:
    world = connected()
    count = (4 << 20) // MAX_SMALL + 1
    for number in range(count):
        frame = signed_frame(world.site, WHOLE, bytes(MAX_SMALL), sequence=2 + number)
        assert world.hub.receive(frame, world.now).payloads == []
    more = signed_frame(world.site, WHOLE, b"x", sequence=2 + count)
    with pytest.raises(ProtocolError, match="too much"):
        world.hub.receive(more, world.now)
    first = signed_frame(world.site, WHOLE, b"first", sequence=1)
    assert len(world.hub.receive(first, world.now).payloads) == count + 1
    assert world.hub.receive(more, world.now).payloads == [b"x"]
    assert session_of(world.hub).incoming.waiting == 0


def test_a_frame_signed_but_sealed_otherwise_changes_nothing() -> None:
    world = connected()
    session = session_of(world.site)
    session._sealed_out, kept = b"elsewhere", session._sealed_out
    with pytest.raises(IntegrityError):
        world.hub.receive(signed_frame(world.site, WHOLE, b"x", sequence=1), world.now)
    session._sealed_out = kept
    assert world.hub.receive(signed_frame(world.site, WHOLE, b"x", sequence=1), world.now).payloads == [b"x"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_what_is_promised(data: bytes) -> None:
    site, hub = site_link(), hub_link()
    for link in (site, hub):
        with pytest.raises((ProtocolError, IntegrityError)):
            link.receive(data, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_arbitrary_signed_numbers_raise_only_what_is_promised(data: st.DataObject) -> None:
    world = connected()
    names = ("sequence", "size", "stamp", "ack", "echo", "held", "grants")
    for _ in range(10):
        kind = data.draw(st.integers(ACK, FRAGMENT))
        numbers = {name: data.draw(st.sampled_from((0, 1, 2, 3, 5, 70_000))) for name in names}
        plaintext = bytes(data.draw(st.sampled_from((0, 1, 35_000))))
        before = world.hub.session
        frame = signed_frame(world.site, kind, plaintext, **numbers)
        with contextlib.suppress(ProtocolError, IntegrityError):
            world.hub.receive(frame, world.now)
        while world.hub.poll(world.now) is not None:
            pass
        assert world.hub.wake_at() > world.now
        assert world.hub.session == before


def test_a_route_is_exact() -> None:
    route = peek(hello(site_link()))
    assert route == Route(1, bytes(range(32)), "site", "hub")
