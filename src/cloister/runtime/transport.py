"""The in-memory `Transport`: mailboxes in one process.

What passes through is what passes on a network, the signed and encrypted bytes of `Link`, and nothing
else. It counts what it carries, for the report. It can be told to lose a party, for tests of drop-out.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from cloister.errors import StorageError

__all__ = ["MemoryNetwork", "MemoryTransport"]


class MemoryNetwork:
    """The post office: one mailbox a party.

    Attributes:
        carried: bytes delivered so far, by (sender, receiver).
        messages: messages delivered so far, by (sender, receiver).
    """

    def __init__(self) -> None:
        self._boxes: dict[str, asyncio.Queue[bytes]] = {}
        self._cut: set[str] = set()
        self.carried: Counter[tuple[str, str]] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()

    def join(self, address: str) -> MemoryTransport:
        """Open a mailbox for `address` and return its transport."""
        if address in self._boxes:
            raise StorageError("this address is taken", where=address, fix="Give every party its own name")
        self._boxes[address] = asyncio.Queue()
        return MemoryTransport(self, address)

    def cut(self, address: str) -> None:
        """From now on lose every message from and to `address`, as an unplugged cable would."""
        self._cut.add(address)

    def deliver(self, sender: str, receiver: str, message: bytes) -> None:
        """Put a copy of `message` into the receiver's mailbox."""
        if receiver not in self._boxes:
            raise StorageError("no such party on this network", where=receiver, fix="Start it first")
        if self._cut & {sender, receiver}:
            return
        self.carried[sender, receiver] += len(message)
        self.messages[sender, receiver] += 1
        self._boxes[receiver].put_nowait(bytes(message))

    async def take(self, address: str, timeout: float) -> bytes | None:
        """Return the next message in the mailbox of `address`, or None after `timeout` seconds."""
        try:
            # not wait_for: before Python 3.12 it swallows a cancellation that meets an arriving message
            async with asyncio.timeout(timeout):
                return await self._boxes[address].get()
        except TimeoutError:
            return None


class MemoryTransport:
    """One party's end of a `MemoryNetwork`; implements `cloister.types.Transport`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self.address = address

    async def send(self, receiver: str, message: bytes) -> None:
        """Deliver at once."""
        self._network.deliver(self.address, receiver, message)

    async def receive(self, timeout: float) -> bytes | None:
        """Return the next message for this party, or None after `timeout` seconds."""
        return await self._network.take(self.address, timeout)
