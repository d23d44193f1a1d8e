from __future__ import annotations

import asyncio

import pytest
from tests.contracts.transport import TransportContract

from cloister.errors import StorageError
from cloister.runtime import MemoryNetwork
from cloister.types import Transport


class TestMemoryTransport(TransportContract):
    async def connect(self) -> tuple[Transport, Transport]:
        network = MemoryNetwork()
        return network.join("alice"), network.join("bob")


def test_an_unknown_receiver_is_an_error() -> None:
    alice = MemoryNetwork().join("alice")
    with pytest.raises(StorageError, match="no such party"):
        asyncio.run(alice.send("nobody", b"x"))


def test_an_address_is_taken_once() -> None:
    network = MemoryNetwork()
    network.join("alice")
    with pytest.raises(StorageError, match="taken"):
        network.join("alice")


def test_a_cut_party_hears_and_says_nothing_and_traffic_is_counted() -> None:
    async def play() -> None:
        network = MemoryNetwork()
        alice, bob = network.join("alice"), network.join("bob")
        await alice.send("bob", b"12345")
        network.cut("bob")
        await alice.send("bob", b"lost")
        await bob.send("alice", b"lost")
        assert await bob.receive(0.1) == b"12345"
        assert await bob.receive(0.01) is None
        assert await alice.receive(0.01) is None
        assert dict(network.carried) == {("alice", "bob"): 5}

    asyncio.run(play())
