"""Two links and a wire between them that loses, repeats, reorders, alters and is slow, in simulated time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloister.crypto import Identity
from cloister.errors import IntegrityError, ProtocolError
from cloister.runtime.link import Link
from cloister.runtime.link.session import Session
from cloister.runtime.link.wire import PROBE, sealed_part

STUDY = bytes(range(32))
HUB, SITE, STRANGER = (Identity.generate(name) for name in ("hub", "site", "stranger"))


def site_link(study: bytes = STUDY, **options: Any) -> Link:
    return Link(SITE, HUB.public, study, initiator=True, **options)


def hub_link(study: bytes = STUDY, **options: Any) -> Link:
    return Link(HUB, SITE.public, study, initiator=False, **options)


def never() -> bool:
    return False


@dataclass
class Faults:
    """Chances between 0 and 1, the longest extra delay in seconds, bytes a second in each direction."""

    loss: float = 0.0
    repeat: float = 0.0
    alter: float = 0.0
    delay: float = 0.0
    speed: float = math.inf


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
    drop: Callable[[str, bytes], bool] = lambda receiver, datagram: False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  # a run must repeat
        self._flying: list[tuple[float, int, str, bytes]] = []
        self._count = 0
        self._free = {"hub": 0.0, "site": 0.0}

    def open(self) -> World:
        self.site.open(self.now)
        self.run(lambda: self.site.ready and self.hub.ready)
        return self

    def run(self, until: Callable[[], bool] = never, longest: float = 10_000.0) -> None:
        """Go on until `until`, or until nothing is left to happen."""
        end = self.now + longest
        while not until():
            self._transmit()
            at = min([self.site.wake_at(), self.hub.wake_at(), *(at for at, *_ in self._flying[:1])])
            if at == math.inf:
                return
            assert at <= end, "nothing comes of it"
            self.now = max(self.now, at)
            while self._flying and self._flying[0][0] <= self.now:
                _, _, receiver, datagram = self._flying.pop(0)
                self.deliver(receiver, datagram)

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        self.run(lambda: self._next() > end)
        self.now = end

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

    def sent_bytes(self, receiver: str) -> int:
        return sum(len(datagram) for to, datagram in self.recorded if to == receiver)

    def _next(self) -> float:
        self._transmit()
        return min([self.site.wake_at(), self.hub.wake_at(), *(at for at, *_ in self._flying[:1])])

    def _transmit(self) -> None:
        for link, receiver in ((self.site, "hub"), (self.hub, "site")):
            while (datagram := link.poll(self.now)) is not None:
                self.recorded.append((receiver, datagram))
                if not self.drop(receiver, datagram):
                    self._fly(receiver, datagram)
            assert link.wake_at() > self.now, "a link that had something to transmit did not"

    def _fly(self, receiver: str, datagram: bytes) -> None:
        chance, faults = self._random.random, self.faults
        self._free[receiver] = max(self._free[receiver], self.now) + len(datagram) / faults.speed
        for _ in range(2 if chance() < faults.repeat else 1):
            if chance() < faults.loss:
                continue
            sent = alter(datagram, self._random) if chance() < faults.alter else datagram
            self._count += 1
            at = self._free[receiver] + 1e-4 + chance() * faults.delay
            self._flying.append((at, self._count, receiver, sent))
        self._flying.sort()


def alter(datagram: bytes, source: random.Random) -> bytes:
    """Return the datagram with one bit changed, or cut."""
    position = source.randrange(len(datagram))
    if source.random() < 0.2:
        return datagram[:position]
    altered = bytearray(datagram)
    altered[position] ^= 1 << source.randrange(8)
    return bytes(altered)


def connected(**options: Any) -> World:
    """Return two links with an open session and nothing on the wire."""
    world = World(site_link(**options), hub_link(**options)).open()
    world.run()
    world.recorded.clear()
    return world


def session_of(link: Link) -> Session:
    assert link._session is not None
    return link._session


def signed_frame(link: Link, kind: int, plaintext: bytes = b"", **changes: int) -> bytes:
    """Return a frame with chosen numbers as only the owner of `link`'s keys can make it."""
    session = session_of(link)
    frame = session._frame(kind, changes.get("sequence", 0), changes.get("size", 0), memoryview(b""), 0.0)
    for name, value in changes.items():
        setattr(frame, name, value)
    if kind > PROBE:
        head = sealed_part(kind, frame.sequence, frame.size)
        sealed = session._seal.seal(frame.sequence, plaintext, session._sealed_out + head)
        frame.ciphertext = memoryview(sealed)
    return session._sign(frame, bytes(frame.ciphertext[-16:]))
