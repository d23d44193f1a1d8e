from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.transport import TransportContract
from tests.faults.datagrams import Faults, FaultyTransport, Weather

from cloister.runtime import MemoryNetwork
from cloister.types import Transport

SENT = [number.to_bytes(2, "big") * 20 for number in range(2000)]
ROUGH = Faults(drop=0.2, duplicate=0.1, reorder=0.3, corrupt=0.05, delay=0.001, lateness=0.01)


class TestFairWeather(TransportContract):
    """Without faults the wrapper is a transport like any other."""

    async def connect(self) -> tuple[Transport, Transport]:
        network = MemoryNetwork()
        return (
            FaultyTransport(network.join("alice"), Weather(Faults(), 1)),
            FaultyTransport(network.join("bob"), Weather(Faults(), 2)),
        )


def test_one_seed_is_one_weather() -> None:
    one, same, other = (Weather(ROUGH, seed) for seed in (7, 7, 8))
    fallen = [one.fall(datagram) for datagram in SENT]
    assert fallen == [same.fall(datagram) for datagram in SENT]
    assert fallen != [other.fall(datagram) for datagram in SENT]


def test_a_fault_that_is_added_does_not_move_the_others() -> None:
    mild, worse = Weather(Faults(drop=0.2), 3), Weather(Faults(drop=0.2, duplicate=0.5, corrupt=0.5), 3)
    lost = [not mild.fall(datagram) for datagram in SENT]
    assert lost == [not worse.fall(datagram) for datagram in SENT]


def test_faults_strike_as_often_as_they_are_told_to() -> None:
    weather = Weather(ROUGH, 5)
    for datagram in SENT:
        weather.fall(datagram)
    left = len(SENT) - weather.happened["dropped"]
    assert weather.happened["dropped"] / len(SENT) == pytest.approx(0.2, abs=0.04)
    assert weather.happened["duplicated"] / left == pytest.approx(0.1, abs=0.04)
    assert weather.happened["reordered"] / left == pytest.approx(0.3, abs=0.05)
    assert weather.happened["corrupted"] / left == pytest.approx(0.05, abs=0.03)
    assert weather.happened["delayed"] == left


@given(st.binary(min_size=1, max_size=50), st.integers(0, 1000))
def test_what_is_corrupted_is_never_what_was_sent(datagram: bytes, seed: int) -> None:
    (arrival,) = Weather(Faults(corrupt=1.0), seed).fall(datagram)
    assert arrival.datagram != datagram
    assert len(arrival.datagram) <= len(datagram)


def test_an_empty_datagram_cannot_be_altered() -> None:
    (arrival,) = Weather(Faults(corrupt=1.0), 0).fall(b"")
    assert arrival.datagram == b""


def received(faults: Faults) -> list[bytes]:
    async def play() -> list[bytes]:
        network = MemoryNetwork()
        alice, bob = FaultyTransport(network.join("alice"), Weather(faults, 11)), network.join("bob")
        for datagram in SENT:
            await alice.send("bob", datagram)
        await alice.settle()
        found = []
        while (one := await bob.receive(0.01)) is not None:
            found.append(one)
        return found

    return asyncio.run(play())


def test_late_datagrams_arrive_all_and_in_another_order() -> None:
    found = received(Faults(reorder=0.5, lateness=0.02))
    assert found != SENT
    assert sorted(found) == SENT


def test_lost_and_repeated_datagrams_over_a_transport() -> None:
    found = received(Faults(drop=0.3, duplicate=0.3))
    assert set(found) < set(SENT)
    assert len(found) > len(set(found))


def test_silence_is_in_both_directions_and_ends() -> None:
    async def play() -> None:
        network = MemoryNetwork()
        alice, bob = FaultyTransport(network.join("alice"), Weather(Faults(), 0)), network.join("bob")
        alice.silent = True
        await alice.send("bob", b"lost")
        await bob.send("alice", b"lost")
        assert await alice.receive(0.02) is None
        assert await bob.receive(0.02) is None
        alice.silent = False
        await bob.send("alice", b"heard")
        assert await alice.receive(1.0) == b"heard"

    asyncio.run(play())


def test_closing_forgets_what_is_late() -> None:
    async def play() -> None:
        network = MemoryNetwork()
        bob = network.join("bob")
        alice = FaultyTransport(network.join("alice"), Weather(Faults(delay=0.05), 0))
        await alice.send("bob", b"late")
        await alice.close()
        await alice.settle()
        assert await bob.receive(0.1) is None

    asyncio.run(play())
