from __future__ import annotations

import math
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from tests.runtime.link.wires import Faults, World, connected, hub_link, never, session_of, site_link

from cloister.errors import InputError, ProtocolError
from cloister.mapped import mapped
from cloister.runtime.bodies import Joined
from cloister.runtime.link import MAX_PAYLOAD, MAX_SMALL, Link, incoming, outgoing, peek
from cloister.runtime.link.wire import MAX_FRAGMENT, WINDOW_BYTES, fragment_bytes, parse


def test_payloads_go_both_ways_in_order() -> None:
    world = connected()
    for text in (b"one", b"", b"two"):
        world.site.send(text)
    world.hub.send(b"three")
    world.run()
    assert world.at_hub == [b"one", b"", b"two"]
    assert world.at_site == [b"three"]
    assert world.site.outgoing == world.hub.outgoing == 0


def test_both_ends_know_the_session_and_the_peers_term() -> None:
    world = World(site_link(), hub_link(term=7))
    assert (world.site.session, world.site.ready, world.site.peer_term) == (b"", False, 0)
    world.open()
    assert world.site.session == world.hub.session
    assert len(world.site.session) == 32
    assert (world.site.peer_term, world.hub.peer_term) == (7, 0)
    assert world.opened == ["site", "hub"]


def test_nothing_is_sent_before_there_is_a_session() -> None:
    for link in (site_link(), hub_link()):
        with pytest.raises(ProtocolError, match="no session"):
            link.send(b"x")
        assert link.poll(0.0) is None
        assert link.wake_at() == math.inf


def test_peek_tells_the_route() -> None:
    world = connected()
    world.site.send(b"x")
    world.run()
    for receiver, datagram in world.recorded:
        route = peek(datagram)
        assert {route.sender, route.receiver} == {"hub", "site"}
        assert route.receiver == receiver


def test_a_link_keeps_its_keys_to_itself() -> None:
    world = connected()
    assert repr(world.site) == "Link(site to hub, open)"
    assert "secret" in repr(session_of(world.site))
    with pytest.raises(TypeError):
        pickle.dumps(world.site)


def test_the_payload_is_not_readable_on_the_wire() -> None:
    world = connected()
    world.site.send(b"canary-4711" * 10)
    world.site.send(b"canary-4711" * 10_000)
    world.run()
    assert world.recorded
    assert not any(b"canary-4711" in datagram for _, datagram in world.recorded)


def test_one_payload_takes_one_datagram_and_one_acknowledgement() -> None:
    world = connected()
    world.site.send(bytes(1024))
    world.run()
    assert [receiver for receiver, _ in world.recorded] == ["hub", "site"]
    assert len(world.recorded[0][1]) < 1024 + 300


def test_an_answer_carries_the_acknowledgement() -> None:
    world = connected()
    world.site.send(b"question")
    world.run(lambda: bool(world.at_hub))
    world.hub.send(b"answer")
    world.run(lambda: bool(world.at_site))
    assert world.site.outgoing == 0
    assert [receiver for receiver, _ in world.recorded] == ["hub", "site"]


@pytest.mark.parametrize("size", [MAX_SMALL, MAX_SMALL + 1, 65_536, 65_537, 262_145, 4_000_000, 9_000_001])
def test_sizes_around_the_limits_arrive_whole(size: int) -> None:
    world = connected()
    payload = (bytes(range(251)) * (size // 251 + 1))[:size]
    world.site.send(payload)
    world.site.send(b"after")
    world.run()
    assert world.at_hub == [payload, b"after"]
    assert all(len(datagram) < MAX_FRAGMENT + 1024 for _, datagram in world.recorded)
    assert world.hub.incoming == 0
    assert world.refused == 0


def test_views_of_numbers_are_sent_as_bytes() -> None:
    world = connected()
    world.site.send(memoryview(bytes(range(16))).cast("I"))
    world.run()
    assert world.at_hub == [bytes(range(16))]


def test_a_large_payload_waits_for_its_grant_and_so_does_what_follows() -> None:
    world = connected(auto_grant=False)
    large = bytes(100_000)
    for payload in (b"before", large, b"after"):
        world.site.send(payload)
    world.run()
    assert world.at_hub == [b"before"]
    assert (world.hub.incoming, world.hub.granted) == (100_000, False)
    assert world.site.outgoing == 100_005
    assert world.sent_bytes("hub") < 1024
    assert world.site.wake_at() == world.hub.wake_at() == math.inf  # waiting costs nothing
    world.hub.grant()
    assert world.hub.granted
    world.run()
    assert world.at_hub == [b"before", large, b"after"]
    assert (world.hub.incoming, world.hub.granted) == (0, False)


def test_a_grant_without_an_announcement_grants_nothing() -> None:
    world = connected(auto_grant=False)
    world.hub.grant()
    hub_link().grant()
    world.site.send(bytes(100_000))
    world.run()
    assert world.at_hub == []
    assert not world.hub.granted


def test_a_lost_grant_is_repeated() -> None:
    world = connected(auto_grant=False)
    world.site.send(bytes(100_000))
    world.run()
    world.drop = lambda receiver, _: receiver == "site"
    world.hub.grant()
    world.run_for(20.0)
    assert world.at_hub == []
    assert 4 <= sum(receiver == "site" for receiver, _ in world.recorded) <= 12
    world.drop = lambda *_: False
    world.run()
    assert world.at_hub == [bytes(100_000)]


def test_each_large_payload_wants_its_own_grant() -> None:
    world = connected(auto_grant=False)
    for letter in (b"a", b"b"):
        world.site.send(letter * 20_000)
    for number in (1, 2):
        world.run()
        assert len(world.at_hub) == number - 1
        world.hub.grant()
        world.hub.grant()
    world.run()
    assert world.at_hub == [b"a" * 20_000, b"b" * 20_000]


def test_a_payload_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PAYLOAD == 8 << 30
    monkeypatch.setattr(outgoing, "MAX_PAYLOAD", 10)
    world = connected()
    with pytest.raises(InputError, match="longer"):
        world.site.send(bytes(11))


def test_what_is_on_its_way_is_bounded() -> None:
    world = connected()
    world.drop = lambda *_: True
    for _ in range(3000):
        world.site.send(bytes(10))
    assert world.site.outgoing == 30_000
    sent = 0
    while world.site.poll(0.0) is not None:
        sent += 1
    assert sent == 1024
    world = connected()
    world.site.send(bytes(20 << 20))
    world.run(lambda: world.hub.incoming > 0)
    world.site.receive(world.hub.poll(world.now) or b"", world.now)
    sent = 0
    while (datagram := world.site.poll(world.now)) is not None:
        sent += len(datagram)
    assert WINDOW_BYTES <= sent < WINDOW_BYTES + 10_000


def test_a_large_payload_costs_one_buffer() -> None:
    size = 64 << 20
    world = connected()
    payload = bytes(size)
    got: list[int] = []
    tracemalloc.start()
    world.site.send(payload)
    while not got:
        for link, other in ((world.site, world.hub), (world.hub, world.site)):
            while (datagram := link.poll(0.0)) is not None:
                got += [len(each) for each in other.receive(datagram, 0.0).payloads]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got == [size]
    assert size <= peak < size + (6 << 20)


def test_a_slow_line_is_not_flooded_with_repetitions() -> None:
    world = connected()
    world.faults = Faults(speed=400_000.0)
    size = 6_000_000
    world.site.send(bytes(size))
    world.run()
    assert len(world.at_hub) == 1
    assert world.sent_bytes("hub") < 1.5 * size
    world.recorded.clear()
    world.site.send(bytes(size))  # by now it knows how slow the line is
    world.run()
    assert [receiver for receiver, _ in world.recorded].count("hub") == 7


def test_an_outage_ends_with_the_next_repetition_or_at_once_with_a_nudge() -> None:
    for nudged in (True, False):
        world = connected()
        for number in range(50):
            world.site.send(bytes([number]))
        world.drop = lambda *_: True
        world.run_for(60.0)
        world.drop = lambda *_: False
        if nudged:
            world.site.nudge(world.now)
        began = world.now
        world.run(lambda world=world: len(world.at_hub) == 50)  # type: ignore[misc]  # bound early, on purpose
        assert world.now - began < (0.01 if nudged else 5.1)
        assert world.at_hub == [bytes([number]) for number in range(50)]


def test_a_nudge_begins_the_time_outs_anew() -> None:
    world = connected()
    world.site.send(b"x")
    world.drop = lambda *_: True
    world.run_for(61.0)
    world.site.nudge(world.now)
    assert world.site.poll(world.now) is not None
    assert world.site.wake_at() == world.now + 0.5


def test_fragments_that_were_all_lost_go_again_after_one_probe() -> None:
    world = connected()
    world.site.send(bytes(400_000))
    losses = iter([True] * 5)
    world.drop = lambda receiver, datagram: len(datagram) > 50_000 and next(losses, False)
    began = world.now
    world.run(lambda: bool(world.at_hub))
    assert world.now - began < 1.1
    assert [len(datagram) > 50_000 for _, datagram in world.recorded].count(True) == 9


def test_one_loss_in_a_stream_is_repaired_without_a_time_out() -> None:
    world = connected()
    for number in range(60):
        world.site.send(bytes([number]) * 10_000)
    losses = iter([True])
    world.drop = lambda receiver, _: receiver == "hub" and next(losses, False)
    began = world.now
    world.run(lambda: len(world.at_hub) == 60)
    assert world.now - began < 0.1
    assert len([1 for receiver, _ in world.recorded if receiver == "hub"]) == 61


def test_a_changed_payload_never_leaves_a_second_time() -> None:
    world = connected()
    payload = bytearray(b"first")
    world.site.send(payload)
    world.drop = lambda *_: True
    assert world.site.poll(world.now) is not None
    payload[:] = b"later"
    with pytest.raises(InputError, match="changed while"):
        world.site.poll(world.now + 1)
    assert not world.site.ready


def test_close_forgets_keys_and_queues() -> None:
    world = connected()
    world.site.send(b"x")
    world.site.close()
    assert (world.site.ready, world.site.session, world.site.outgoing) == (False, b"", 0)
    assert world.site.poll(100.0) is None
    assert world.site.wake_at() == math.inf
    with pytest.raises(ProtocolError, match="no session"):
        world.site.send(b"x")
    world.hub.send(b"y")
    datagram = world.hub.poll(world.now) or b""
    with pytest.raises(ProtocolError, match="another session"):
        world.site.receive(datagram, world.now)
    world.open()
    world.run(never)
    assert world.site.session == world.hub.session != b""


def test_fragments_are_between_their_limits() -> None:
    assert [fragment_bytes(size) for size in (17_000, 262_144, 400_000, 4_000_000, 8 << 30)] == [
        65_536,
        65_536,
        100_000,
        1_000_000,
        1 << 20,
    ]


def test_datagrams_may_be_views() -> None:
    site, hub = site_link(), hub_link()
    site.open(0.0)
    for link, other in ((site, hub), (hub, site), (site, hub)):
        other.receive(memoryview(link.poll(0.0) or b""), 0.0)
    assert site.ready
    assert hub.ready
    site.send(b"x")
    datagram = site.poll(0.0) or b""
    assert hub.receive(memoryview(bytearray(datagram)), 0.0).payloads == [b"x"]
    assert parse(datagram) == parse(memoryview(datagram))


def test_a_study_is_named_by_32_bytes() -> None:
    with pytest.raises(InputError, match="32 bytes"):
        site_link(bytes(31))
    assert isinstance(site_link(bytes(32)), Link)


@pytest.mark.parametrize("room", [True, False])
def test_a_large_payload_may_lie_in_a_file_while_it_comes(
    tmp_path: Path, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(
        incoming, "mapped", lambda *given: (made.append(mapped(*given).nbytes), mapped(*given))[1]
    )
    folder = tmp_path if room else tmp_path / "none"  # without room it lies in memory
    world = World(site_link(), hub_link(aside=folder))
    world.open()
    data = os.urandom(6_000_001)
    world.site.send(Joined([data[:5], data[5:]]))
    world.site.send(b"behind it")
    world.run()
    while not world.at_hub:
        world.hub.grant()
        world.run()
    assert [bytes(payload) for payload in world.at_hub] == [data, b"behind it"]
    assert made == [len(data)] * room
    assert list(tmp_path.iterdir()) == []
