from __future__ import annotations

import pytest
from tests.runtime.link.test_attacks import hello, next_of
from tests.runtime.link.wires import World, connected, hub_link, session_of, site_link

from cloister.crypto import AgreementKey
from cloister.errors import InputError, ProtocolError
from cloister.runtime.link import handshake, peek
from cloister.runtime.link.handshake import Parties, common_version, derive_keys
from cloister.runtime.link.link import CONFIRM_WITHIN


def test_only_the_initiator_opens() -> None:
    with pytest.raises(InputError, match="initiator"):
        hub_link().open(0.0)


def test_a_hello_is_repeated_less_and_less_often_until_it_is_answered() -> None:
    site = site_link()
    site.open(0.0)
    times, now = [], 0.0
    while now < 25.0:
        if site.poll(now) is not None:
            times.append(now)
        now = site.wake_at()
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 12.5, 17.5, 22.5]
    site.nudge(23.0)
    assert site.poll(23.0) is not None


def test_the_same_hello_gets_the_same_answer_and_a_session_is_confirmed_by_its_first_frame() -> None:
    site, hub = site_link(), hub_link()
    first = hello(site)
    answers = []
    for _ in range(3):
        assert not hub.receive(first, 0.0).opened
        answers.append(next_of(hub))
    assert len(set(answers)) == 1
    assert not hub.ready
    assert site.receive(answers[0], 0.0).opened
    assert not site.receive(answers[1], 0.0).opened
    received = hub.receive(next_of(site), 0.0)
    assert (received.opened, received.payloads) == (True, [])
    assert hub.ready


def test_the_first_payload_may_overtake_the_confirmation() -> None:
    site, hub = site_link(), hub_link()
    hub.receive(hello(site), 0.0)
    site.receive(next_of(hub), 0.0)
    site.send(b"early")
    confirm, payload = next_of(site), next_of(site)
    assert hub.receive(payload, 0.0).opened
    assert hub.receive(confirm, 0.0).payloads == [b"early"]


def test_a_session_stays_in_force_until_the_new_one_is() -> None:
    world = connected()
    old = world.site.session
    world.drop = lambda *_: True
    world.site.open(world.now)
    next_of(world.site, world.now)
    world.drop = lambda *_: False
    world.site.send(b"under the old one")
    world.run(lambda: bool(world.at_hub))
    assert world.site.session == world.hub.session == old
    world.run()
    assert world.site.session == world.hub.session != old
    assert world.opened[-2:] == ["site", "hub"]


def test_a_new_session_drops_what_was_queued_at_both_ends() -> None:
    world = connected()
    world.drop = lambda *_: True
    world.site.send(b"lost")
    world.hub.send(b"lost")
    world.run_for(0.1)
    world.drop = lambda *_: False
    world.site.open(world.now)
    world.run()
    assert world.at_hub == world.at_site == []
    assert world.site.outgoing == world.hub.outgoing == 0
    world.hub.send(b"next")
    world.run()
    assert world.at_site == [b"next"]


def test_a_hub_that_restarts_gets_a_new_session_when_the_site_opens_one() -> None:
    world = connected()
    world.hub = hub_link(term=1)
    world.site.send(b"to the old hub")
    world.run_for(3.0)
    assert world.refused > 0
    assert not world.hub.ready
    world.open()
    world.site.send(b"to the new one")
    world.run()
    assert world.at_hub == [b"to the new one"]
    assert world.site.peer_term == 1


def test_a_hub_that_restarts_during_the_handshake_is_met_again() -> None:
    world = World(site_link(), hub_link())
    world.site.open(0.0)
    world.run(lambda: world.site.ready)
    world.hub = hub_link()
    world.run()
    assert world.hub.ready
    assert world.now < CONFIRM_WITHIN + 6
    assert world.site.session == world.hub.session


def test_a_second_answer_from_a_restarted_hub_opens_at_once() -> None:
    site, hubs = site_link(), (hub_link(), hub_link())
    first = hello(site)
    for hub in hubs:
        hub.receive(first, 0.0)
    site.receive(next_of(hubs[0]), 0.0)
    next_of(site)
    assert not site.receive(next_of(hubs[1]), 0.0).opened
    again = next_of(site)
    assert again != first
    assert peek(again).receiver == "hub"
    hubs[1].receive(again, 0.0)
    assert site.receive(next_of(hubs[1]), 0.0).opened
    assert hubs[1].receive(next_of(site), 0.0).opened


def test_a_site_that_restarts_resets_the_hub() -> None:
    world = connected()
    world.hub.send(b"to the old site")
    world.site = site_link()
    world.opened.clear()
    world.site.open(world.now)
    world.run()
    assert world.opened == ["site", "hub"]
    world.hub.send(b"to the new one")
    world.run()
    assert world.at_site == [b"to the new one"]


def test_an_older_term_is_refused() -> None:
    site = site_link(least_term=5)
    hub = hub_link(term=4)
    hub.receive(hello(site), 0.0)
    with pytest.raises(ProtocolError, match="term 4, and term 5 has begun"):
        site.receive(next_of(hub), 0.0)
    assert not site.ready
    newer = hub_link(term=6)
    newer.receive(hello(site), 0.0)
    assert site.receive(next_of(newer), 0.0).opened
    assert site.peer_term == 6
    back = hub_link(term=5)
    back.receive(hello(site), 0.0)
    with pytest.raises(ProtocolError, match="term 5, and term 6 has begun"):
        site.receive(next_of(back), 0.0)
    assert site.session


def test_of_two_hubs_that_answer_the_newer_wins() -> None:
    site, old, new = site_link(), hub_link(term=1), hub_link(term=2)
    first = hello(site)
    for hub in (old, new):
        hub.receive(first, 0.0)
    site.receive(next_of(old), 0.0)
    old.receive(next_of(site), 0.0)
    old.send(b"I am the hub")
    assert site.receive(next_of(old), 0.0).payloads == [b"I am the hub"]
    site.receive(next_of(new), 0.0)
    again = next_of(site)
    for hub in (old, new):
        hub.receive(again, 0.0)
    with pytest.raises(ProtocolError, match="term 1"):
        site.receive(next_of(old), 0.0)
    assert site.receive(next_of(new), 0.0).opened
    assert site.peer_term == 2


def test_the_highest_common_version_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "VERSIONS", (1, 2, 3))
    site = site_link()
    monkeypatch.setattr(handshake, "VERSIONS", (2, 1, 7))
    world = World(site, hub_link()).open()
    world.site.send(b"x")
    world.run()
    assert world.at_hub == [b"x"]
    assert {peek(datagram).version for _, datagram in world.recorded[2:]} == {2}


def test_no_common_version_is_named_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "VERSIONS", (1, 2))
    site = site_link()
    monkeypatch.setattr(handshake, "VERSIONS", (3, 4))
    hub = hub_link()
    with pytest.raises(ProtocolError, match="versions 1, 2 and this party 3, 4"):
        hub.receive(hello(site), 0.0)
    with pytest.raises(ProtocolError, match="versions 3, 4 and this party 1, 2"):
        site.receive(next_of(hub), 0.0)
    assert not site.ready
    assert site.poll(100.0) is None
    assert common_version((1, 5, 2), (2, 5)) == 5


def test_sessions_and_directions_have_their_own_keys() -> None:
    first, second = connected(), connected()
    sealed = {
        session_of(link)._seal.seal(0, b"same", b"same")
        for world in (first, second)
        for link in (world.site, world.hub)
    }
    assert len(sealed) == 4
    keys = derive_keys(AgreementKey.generate(), AgreementKey.generate().public, b"1", b"2", 1, bytes(32))
    assert repr(keys) == "SessionKeys(secret)"
    assert repr(Parties(*[None] * 3)) == "<Parties: secret>"  # type: ignore[arg-type]  # nothing of it is read


def test_a_key_of_small_order_is_refused() -> None:
    site = site_link()
    hub = hub_link()
    key = AgreementKey.generate()
    key.public = bytes(32)  # type: ignore[misc]  # what only an attacker does
    parties = site._parties
    with pytest.raises(ProtocolError, match="small order"):
        hub.receive(parties.hello(key, (1,), 0, b"", lambda length: bytes(length)), 0.0)
    assert hub.poll(0.0) is None
