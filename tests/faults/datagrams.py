"""A `Transport` that loses, repeats, reorders, delays and alters datagrams, as its seed says.

`Weather` decides, and is pure: the same seed makes the same of the same datagrams, and a test with simulated
time can ask it alone. `FaultyTransport` puts one over a real transport. Faults befall what is sent: wrap both
parties for faults both ways.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from cloister.types import Transport

__all__ = ["Arrival", "Fault", "Faults", "FaultyTransport", "Weather"]

Fault = Literal["dropped", "duplicated", "reordered", "delayed", "corrupted"]


@dataclass(frozen=True)
class Faults:
    """How bad it is: probabilities for each datagram by itself.

    Attributes:
        drop: it never arrives.
        duplicate: it arrives twice, the second time up to `lateness` later.
        reorder: it arrives up to `lateness` later, so that others overtake it.
        delay: seconds that every datagram takes.
        lateness: seconds.
        corrupt: one to three of its bytes are changed, or its end is cut off.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    lateness: float = 0.05
    corrupt: float = 0.0


@dataclass(frozen=True)
class Arrival:
    """What arrives `after` so many seconds."""

    after: float
    datagram: bytes


class Weather:
    """Decides what becomes of datagrams.

    Attributes:
        happened: how often each fault struck so far.
    """

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._random = random.Random(seed)  # noqa: S311  # which datagram is lost is no secret
        self.happened: Counter[Fault] = Counter()

    def fall(self, datagram: bytes | memoryview) -> list[Arrival]:
        """Return what arrives of `datagram`, and when: nothing, one thing, or two."""
        faults = self._faults
        # all dice are thrown for every datagram: one fault must not shift what befalls the next datagram
        drop, duplicate, reorder, corrupt, first, second, shape = (self._random.random() for _ in range(7))
        if drop < faults.drop:
            self.happened["dropped"] += 1
            return []
        content = bytes(datagram)
        if corrupt < faults.corrupt and content:
            self.happened["corrupted"] += 1
            content = _altered(content, random.Random(shape))  # noqa: S311  # nor is which byte is altered
        after = faults.delay
        if faults.delay:
            self.happened["delayed"] += 1
        if reorder < faults.reorder:
            self.happened["reordered"] += 1
            after += first * faults.lateness
        arrivals = [Arrival(after, content)]
        if duplicate < faults.duplicate:
            self.happened["duplicated"] += 1
            arrivals.append(Arrival(after + second * faults.lateness, content))
        return arrivals


def _altered(content: bytes, dice: random.Random) -> bytes:
    if len(content) > 1 and dice.random() < 0.25:
        return content[: dice.randrange(len(content))]
    changed = bytearray(content)
    for place in {dice.randrange(len(content)) for _ in range(dice.randint(1, 3))}:
        changed[place] ^= dice.randint(1, 255)
    return bytes(changed)


class FaultyTransport:
    """A transport whose sent datagrams go through a `Weather`; implements `cloister.types.Transport`.

    Attributes:
        inner: the transport that carries what is left.
        weather: may be replaced at any time, to make it worse or fair.
        silent: while True nothing passes in either direction.
    """

    def __init__(self, inner: Transport, weather: Weather) -> None:
        self.inner = inner
        self.weather = weather
        self.silent = False
        self._under_way: set[asyncio.Task[None]] = set()

    async def send(self, receiver: str, message: bytes) -> None:
        """Send what the weather leaves of it; what is late is sent later, by a task."""
        if self.silent:
            return
        for arrival in self.weather.fall(message):
            if arrival.after <= 0.0:
                await self.inner.send(receiver, arrival.datagram)
            else:
                task = asyncio.create_task(self._later(receiver, arrival))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    async def _later(self, receiver: str, arrival: Arrival) -> None:
        await asyncio.sleep(arrival.after)
        if not self.silent:
            await self.inner.send(receiver, arrival.datagram)

    async def receive(self, timeout: float) -> bytes | None:
        """Return the next datagram, or None after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while True:
            found = await self.inner.receive(max(0.0, until - loop.time()))
            if found is None or not self.silent:
                return found

    async def settle(self) -> None:
        """Return when everything that is late has been sent."""
        while self._under_way:
            await asyncio.gather(*self._under_way)

    async def close(self) -> None:
        """Forget what is under way, and close the inner transport where it can be closed."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        closing = getattr(self.inner, "close", None)
        if closing is not None:
            await closing()
