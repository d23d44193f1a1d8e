"""Two links and a wire between them that loses, repeats, reorders and alters, in simulated time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cloister.crypto import Identity
from cloister.errors import IntegrityError, ProtocolError
from cloister.runtime.link import Link

STUDY = bytes(range(32))
HUB, SITE, STRANGER = (Identity.generate(name) for name in ("hub", "site", "stranger"))


def site_link(study: bytes = STUDY, **options: object) -> Link:
    return Link(SITE, HUB.public, study, initiator=True, **options)  # type: ignore[arg-type]


def hub_link(study: bytes = STUDY, **options: object) -> Link:
    return Link(HUB, SITE.public, study, initiator=False, **options)  # type: ignore[arg-type]


@dataclass
class Faults:
    """Chances, each between 0 and 1, and the longest delay in seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    alter: float = 0.0
    delay: float = 0.0


@dataclass
class World:
    """Delivers datagrams at their time; records what was sent, received and refused."""

    site: Link
    hub: Link
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    now: float = 0.0
    recorded: list[tuple[str, bytes]] = field(default_factory=list)
    at_hub: list[bytes] = field(default_factory=list)
    at_site: list[bytes] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    refused: int = 0
    drop: Callable[[str, bytes], bool] | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._flying: list[tuple[float, int, str, bytes]] = []
        self._count = 0

    def open(self) -> World:
        self.site.open(self.now)
        self.run(until=lambda: self.site.ready and self.hub.ready)
        return self

    def run(self, until: Callable[[], bool] = lambda: False, longest: float = 10_000.0) -> None:
        """Go on until `until` or until nothing is left to happen."""
        end = self.now + longest
        while not until():
            self._transmit()
            times = [self.site.wake_at(), self.hub.wake_at(), *(at for at, *_ in self._flying[:1])]
            at = min(times)
            if at == math.inf:
                return
            assert at > -math.inf, "a link that has something to transmit did not"
            assert at <= end, "nothing comes of it"
            self.now = max(self.now, at)
            while self._flying and self._flying[0][0] <= self.now:
                _, _, receiver, datagram = self._flying.pop(0)
                self.deliver(receiver, datagram)

    def deliver(self, receiver: str, datagram: bytes) -> None:
        link, into = (self.hub, self.at_hub) if receiver == "hub" else (self.site, self.at_site)
        try:
            received = link.receive(datagram, self.now)
        except (ProtocolError, IntegrityError):
            self.refused += 1
            return
        into += map(bytes, received.payloads)
        if received.opened:
            self.opened.append(receiver)

    def _transmit(self) -> None:
        for link, receiver in ((self.site, "hub"), (self.hub, "site")):
            while (datagram := link.poll(self.now)) is not None:
                self.recorded.append((receiver, datagram))
                if self.drop is None or not self.drop(receiver, datagram):
                    self._fly(receiver, datagram)
            assert link.wake_at() > self.now

    def _fly(self, receiver: str, datagram: bytes) -> None:
        chance, faults = self._random.random, self.faults
        for _ in range(2 if chance() < faults.repeat else 1):
            if chance() < faults.loss:
                continue
            if chance() < faults.alter:
                position = self._random.randrange(len(datagram))
                altered = bytearray(datagram)
                altered[position] ^= 1 << self._random.randrange(8)
                datagram = bytes(altered)
            self._count += 1
            self._flying.append((self.now + 1e-4 + chance() * faults.delay, self._count, receiver, datagram))
        self._flying.sort()


def connected(**options: object) -> World:
    """Return two links with an open session."""
    return World(site_link(**options), hub_link(**options)).open()
