"""What every `Transport` must do where nothing goes wrong, inherited by the tests of each implementation.

A transport may lose what it carries; on an idle machine, between parties that are there, none of these does.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from cloister.types import Transport

LARGEST = 8 << 20


class TransportContract(ABC):
    """Subclass it and say how to connect two parties."""

    @abstractmethod
    async def connect(self) -> tuple[Transport, Transport]:
        """Return the transports of parties "alice" and "bob"."""

    async def disconnect(self, alice: Transport, bob: Transport) -> None:
        """End what `connect` began, where that needs ending."""
        del alice, bob

    def run(self, scenario: Callable[[Transport, Transport], Awaitable[None]]) -> None:
        async def play() -> None:
            async with asyncio.timeout(20):
                ends = await self.connect()
                try:
                    await scenario(*ends)
                finally:
                    await self.disconnect(*ends)

        asyncio.run(play())

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

    def test_the_largest_datagram_and_the_empty_one_arrive(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            for message in (bytes(range(256)) * (LARGEST // 256), b""):
                await alice.send("bob", message)
                assert await bob.receive(5.0) == message

        self.run(scenario)

    def test_views_are_carried_as_bytes_are(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            kept = bytearray(b"..a datagram..")
            await alice.send("bob", memoryview(kept)[2:-2])  # type: ignore[arg-type]  # any buffer will do
            kept[:] = bytes(len(kept))
            assert await bob.receive(1.0) == b"a datagram"

        self.run(scenario)

    def test_waiting_for_a_datagram_can_be_cancelled_and_loses_none(self) -> None:
        async def scenario(alice: Transport, bob: Transport) -> None:
            waiting = asyncio.create_task(bob.receive(10.0))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await alice.send("bob", b"later")
            assert await bob.receive(1.0) == b"later"

        self.run(scenario)
