"""The sending half of a session: what waits, what is on its way, and what must go again.

A payload is cut into frames when their turn comes, never earlier: `next` returns the next frame to transmit,
`sent` records that it went, `acknowledge` what the peer says. Frames are numbered in the order of payloads.

- At most `WINDOW_FRAMES`, and a frame more than `WINDOW_BYTES`, are on their way or arrived out of turn.
- A large payload is announced; its fragments go when the peer has granted it. What is queued behind it waits.
- A frame is lost when the peer has seen a transmission clearly later than its own (`echo`).
- When nothing was heard for the time-out (four deviations above the measured round trip, at least half a
  second, doubled with every time-out in a row), the oldest small frames go again, or else a probe, to which
  the peer says what it has: a fragment that is still on its way over a slow line is not sent twice.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from cloister.crypto import Buffer
from cloister.errors import InputError, ProtocolError
from cloister.runtime.bodies import Body, body_of
from cloister.runtime.link.wire import (
    ANNOUNCE,
    CONFIRM,
    FRAGMENT,
    MAX_PAYLOAD,
    MAX_SMALL,
    REORDERED,
    WHOLE,
    WINDOW_BYTES,
    WINDOW_FRAMES,
    Frame,
    fragment_bytes,
)

__all__ = ["FIRST_TIMEOUT", "LONGEST_TIMEOUT", "Flight", "Outgoing"]

FIRST_TIMEOUT: Final = 0.5
LONGEST_TIMEOUT: Final = 5.0
_AGAIN_BYTES: Final = (
    64 << 10
)  # small frames that go again after a time-out, before the peer said what it lacks


class Flight:
    """A frame that was numbered and is not acknowledged yet: bytes [start, stop) of a payload, which are read
    whenever it goes."""

    __slots__ = (
        "_payload",
        "at",
        "held",
        "kind",
        "lost",
        "seal",
        "sequence",
        "size",
        "stamp",
        "start",
        "stop",
        "tries",
    )

    def __init__(self, sequence: int, kind: int, size: int, payload: Body, start: int, stop: int) -> None:
        self.sequence = sequence
        self.kind = kind
        self.size = size
        self._payload, self.start, self.stop = payload, start, stop
        self.seal = b""  # tag of its ciphertext, once there was one
        self.stamp = -1
        self.at = 0.0
        self.tries = 0
        self.lost = False
        self.held = False

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def data(self) -> Buffer:
        """What it carries."""
        return self._payload.part(self.start, self.stop)


class Outgoing:
    """Queue, window and timers of one direction."""

    def __init__(self, *, confirm: bool) -> None:
        self.size = 0  # bytes queued or not acknowledged
        self.acknowledged = 0  # the first sequence the peer lacks
        self._numbered = 0
        self._stamp = -1
        self._queue: deque[Body] = deque()
        self._confirm = confirm
        self._large: Body | None = None  # announced
        self._position = 0
        self._announced = self._granted = 0
        self._flights: dict[int, Flight] = {}
        self._travelling = 0
        self._lost: deque[Flight] = deque()
        self._probe = False
        self._deadline = math.inf
        self._timeouts = 0
        self._round_trip: tuple[float, float] | None = None  # smoothed, deviation (RFC 6298)

    def queue(self, payload: Buffer | Body) -> None:
        """Take a payload; a reference is kept until it is acknowledged. Raises InputError above the limit."""
        body = body_of(payload)
        if body.size > MAX_PAYLOAD:
            raise InputError(f"a payload is longer than {MAX_PAYLOAD} bytes", fix="Send it in parts")
        self.size += body.size
        self._queue.append(body)

    def next(self, now: float) -> Flight | None:
        """Return the frame to transmit now, or None."""
        if now >= self._deadline:
            self._time_out(now)
        while self._lost:
            flight = self._lost.popleft()
            if flight.lost:
                return flight
        return self._fresh() if self._may_send() else None

    def probes(self) -> bool:
        """Return, once, whether a probe is due."""
        due, self._probe = self._probe, False
        return due

    def sent(self, flight: Flight, stamp: int, now: float) -> None:
        """Record that `flight` went as transmission `stamp`."""
        self._stamp = stamp
        flight.stamp, flight.at, flight.lost = stamp, now, False
        flight.tries += 1
        if self._deadline == math.inf:
            self._deadline = now + self._timeout()

    def wake_at(self) -> float:
        """Return when `next` may return something without new input."""
        if self._probe or any(flight.lost for flight in self._lost) or self._may_send():
            return -math.inf
        return self._deadline

    def nudge(self, now: float) -> None:
        """Take everything on its way for lost: the connection was."""
        self._timeouts = 0
        if self._flights:
            self._deadline = now + self._timeout()
        for flight in self._flights.values():
            self._lose(flight)

    def check(self, frame: Frame, stamp: int) -> None:
        """Raise ProtocolError if the peer acknowledges or grants what was never sent."""
        reach = frame.ack + 1 + frame.held.bit_length() if frame.held else frame.ack
        if (
            not self.acknowledged <= frame.ack <= reach <= self._numbered
            or frame.echo > stamp + 1
            or not self._granted <= frame.grants <= self._announced
        ):
            raise ProtocolError("acknowledges what it was never sent")

    def acknowledge(self, frame: Frame, now: float) -> None:
        """Apply what the peer says; the caller sees to it that newer is never followed by older."""
        self._granted = frame.grants
        news = False
        for sequence in range(self.acknowledged, frame.ack):
            flight = self._flights.pop(sequence)
            self.size -= len(flight)
            self._travelling -= len(flight)
            news |= self._arrived(flight, frame.echo, now)
        self.acknowledged = frame.ack
        held, sequence = frame.held, frame.ack + 1
        while held:
            if held & 1:
                news |= self._arrived(self._flights[sequence], frame.echo, now)
            held, sequence = held >> 1, sequence + 1
        self._find_lost(frame.echo)
        if news:
            self._timeouts = 0
            self._deadline = now + self._timeout() if self._flights else math.inf

    def _may_send(self) -> bool:
        if self._travelling >= WINDOW_BYTES or len(self._flights) >= WINDOW_FRAMES:
            return False
        if self._large is not None:
            return self._granted >= self._announced
        return self._confirm or bool(self._queue)

    def _fresh(self) -> Flight:
        if self._confirm:
            self._confirm = False
            return self._number(CONFIRM, 0, body_of(b""), 0, 0)
        if self._large is not None:
            return self._fragment(self._large)
        payload = self._queue.popleft()
        if payload.size <= MAX_SMALL:
            return self._number(WHOLE, 0, payload, 0, payload.size)
        self._large, self._position = payload, 0
        self._announced += 1
        return self._number(ANNOUNCE, payload.size, payload, 0, 0)

    def _fragment(self, payload: Body) -> Flight:
        end = min(self._position + fragment_bytes(payload.size), payload.size)
        flight = self._number(FRAGMENT, 0, payload, self._position, end)
        self._position = end
        if end >= payload.size:
            self._large = None
        return flight

    def _number(self, kind: int, size: int, payload: Body, start: int, stop: int) -> Flight:
        flight = Flight(self._numbered, kind, size, payload, start, stop)
        self._flights[flight.sequence] = flight
        self._numbered += 1
        self._travelling += len(flight)
        return flight

    def _arrived(self, flight: Flight, echo: int, now: float) -> bool:
        if flight.held:
            return False
        flight.held, flight.lost = True, False
        if flight.stamp + 1 == echo:
            self._measure(now - flight.at)
        return True

    def _find_lost(self, echo: int) -> None:
        for flight in self._flights.values():
            if flight.stamp + 1 + REORDERED <= echo:
                self._lose(flight)
            elif flight.tries == 1:
                return  # later frames were first sent later, so they are not lost either

    def _lose(self, flight: Flight) -> None:
        if not flight.lost and not flight.held:
            flight.lost = True
            self._lost.append(flight)

    def _time_out(self, now: float) -> None:
        self._timeouts += 1
        self._deadline = now + self._timeout()
        again = 0
        for flight in self._flights.values():
            again += len(flight)
            if len(flight) > MAX_SMALL or again > _AGAIN_BYTES:
                break
            self._lose(flight)
        self._probe = not any(flight.lost for flight in self._lost)

    def _timeout(self) -> float:
        smoothed, deviation = self._round_trip or (0.0, 0.0)
        base = max(FIRST_TIMEOUT, smoothed + 4 * deviation)
        return min(base * 2.0 ** min(self._timeouts, 10), max(LONGEST_TIMEOUT, base))

    def _measure(self, sample: float) -> None:
        if self._round_trip is None:
            self._round_trip = (sample, sample / 2)
            return
        smoothed, deviation = self._round_trip
        deviation = 0.75 * deviation + 0.25 * abs(smoothed - sample)
        self._round_trip = (0.875 * smoothed + 0.125 * sample, deviation)
