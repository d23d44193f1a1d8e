"""Whatever the wire does, every payload arrives once, whole and in order; and no nonce has two meanings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime.link.wires import Faults, World, hub_link, site_link

from cloister.crypto import Buffer, sha256
from cloister.crypto.aead import Numbered
from cloister.runtime.link import session

SIZES = st.one_of(
    st.integers(0, 2000), st.integers(16_000, 17_000), st.integers(60_000, 140_000), st.just(1_400_000)
)
CHANCES = st.floats(0.0, 0.35)
FAULTS = st.builds(
    Faults,
    loss=CHANCES,
    repeat=CHANCES,
    alter=CHANCES,
    delay=st.floats(0.0, 2.0),
    speed=st.sampled_from((float("inf"), 300_000.0)),
)


class Recorder(Numbered):
    """Notes what is sealed under which key and number, and refuses a second meaning."""

    __slots__ = ("_seen",)
    sealed = 0

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self._seen: dict[int, tuple[bytes, bytes]] = {}

    def seal(self, number: int, plaintext: Buffer, associated_data: bytes) -> bytes:
        meaning = (sha256(plaintext), associated_data)
        assert self._seen.setdefault(number, meaning) == meaning
        Recorder.sealed += 1
        return super().seal(number, plaintext, associated_data)


@pytest.fixture(autouse=True)
def _no_nonce_has_two_meanings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = Recorder.sealed
    monkeypatch.setattr(session, "Numbered", Recorder)
    yield
    assert Recorder.sealed > before


def opened(faults: Faults, seed: int, **options: bool) -> World:
    """Return a world whose session opened before the faults began: nothing replaces it."""
    world = World(site_link(**options), hub_link(**options), seed=seed).open()
    world.run()
    world.faults = faults
    return world


def payloads(sizes: list[int], first: int) -> list[bytes]:
    return [
        bytes([number % 251]) * 4 + bytes(size)
        for number, size in zip(itertools.count(first), sizes, strict=False)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FAULTS, st.lists(SIZES, max_size=12), st.lists(SIZES, max_size=5), st.integers(0, 2**32))
def test_everything_arrives_once_whole_and_in_order(
    faults: Faults, up: list[int], down: list[int], seed: int
) -> None:
    world = opened(faults, seed)
    to_hub, to_site = payloads(up, 0), payloads(down, 100)
    for link, list_ in ((world.site, to_hub), (world.hub, to_site)):
        for payload in list_:
            link.send(payload)
    world.run()
    assert world.at_hub == to_hub
    assert world.at_site == to_site
    assert world.opened == ["site", "hub"]
    assert world.site.outgoing == world.hub.outgoing == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    FAULTS,
    st.lists(
        st.sampled_from(("open", "hub restarts", "site restarts", "send", "wait", "nudge")), max_size=14
    ),
    st.integers(0, 2**32),
)
def test_restarts_and_new_sessions_repeat_nothing_and_end_well(
    faults: Faults, events: list[str], seed: int
) -> None:
    world = World(site_link(), hub_link(), faults, seed).open()
    sent, term = [], 0
    for number, event in enumerate(events):
        if event == "hub restarts":
            term += 1
            world.hub = hub_link(term=term)
        elif event == "site restarts":
            world.site = site_link(least_term=term)
        elif event == "wait":
            world.run_for(0.7)
        elif event == "nudge":
            world.site.nudge(world.now)
            world.hub.nudge(world.now)
        elif event == "send" and world.site.ready:
            sent.append(bytes([number]) * 20_000)
            world.site.send(sent[-1])
        if event in ("open", "hub restarts", "site restarts"):
            world.site.open(world.now)
    world.site.open(world.now)
    session_before = world.site.session
    world.run(lambda: world.site.session == world.hub.session != session_before)
    last = payloads([10, 100_000], 200)
    for payload in last:
        world.site.send(payload)
    world.run(lambda: world.at_hub[-2:] == last)
    remaining = iter(sent)
    assert all(payload in remaining for payload in world.at_hub[:-2])  # a subsequence: once, in order


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FAULTS, st.integers(0, 2**32))
def test_grants_arrive_whatever_the_wire_does(faults: Faults, seed: int) -> None:
    world = opened(faults, seed, auto_grant=False)
    sent = payloads([70_000, 5, 300_000], 0)
    for payload in sent:
        world.site.send(payload)
    for _ in range(2):
        world.run(lambda: world.hub.incoming > 0 and not world.hub.granted)
        world.hub.grant()
    world.run()
    assert world.at_hub == sent
