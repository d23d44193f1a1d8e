from __future__ import annotations

import pytest
from tests.runtime.link.wires import World, connected, hub_link, site_link

from cloister.errors import ProtocolError
from cloister.runtime.link import peek


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


def test_peek_tells_the_route() -> None:
    world = connected()
    world.site.send(b"x")
    world.run()
    for receiver, datagram in world.recorded:
        route = peek(datagram)
        assert {route.sender, route.receiver} == {"hub", "site"}
        assert route.receiver == receiver
