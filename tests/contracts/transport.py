"""What every `Transport` must do, inherited by the tests of each implementation."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from cloister.types import Transport


class TransportContract(ABC):
    """Subclass it and say how to connect two parties."""

    @abstractmethod
    async def connect(self) -> tuple[Transport, Transport]:
        """Return the transports of parties "alice" and "bob"."""

    def run(self, scenario: Callable[[Transport, Transport], Awaitable[None]]) -> None:
        async def play() -> None:
            await scenario(*await self.connect())

        asyncio.run(asyncio.wait_for(play(), 20))

    def test_a_message_arrives_as_it_was_sent(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            await alice.send("bob", b"\x00\xff" * 1000)
            assert await bob.receive(1.0) == b"\x00\xff" * 1000

        self.run(scenario)

    def test_nothing_arrives_where_nothing_was_sent(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            await alice.send("bob", b"for bob")
            assert await alice.receive(0.01) is None

        self.run(scenario)

    def test_every_message_arrives(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            sent = [bytes([number]) * (number + 1) for number in range(100)]
            for message in sent:
                await alice.send("bob", message)
            assert sorted([await bob.receive(1.0) or b"" for _ in sent]) == sorted(sent)

        self.run(scenario)

    def test_both_ways_at_once(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            await asyncio.gather(alice.send("bob", b"to bob"), bob.send("alice", b"to alice"))
            assert await asyncio.gather(alice.receive(1.0), bob.receive(1.0)) == [b"to alice", b"to bob"]

        self.run(scenario)
