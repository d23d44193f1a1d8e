"""One session: frames are signed, encrypted, numbered and acknowledged.

Steps on a frame that arrives, in this order:

1. a transmission that was seen, of a frame that was taken, is a duplicate: nothing happens;
2. bounds, and that its kind, size and place fit together;
3. the peer's signature over the header and the ciphertext's tag;
4. what it acknowledges was sent;
5. decryption, under its sequence as nonce;
6. only now anything changes.

The signature covers the tag of AES-GCM and not the ciphertext itself: who does not hold the session's key
cannot make another ciphertext with that tag, and 5 says so. Hashing every byte once more would cost a tenth
of a round. What it gives up: the receiver, who holds the key, cannot prove to others what a frame said.
What others must be able to check (countersignatures, manifests, debits, vouchers) is signed by itself.

A frame that goes again is sealed again from the payload. The tag of the first ciphertext is kept: a payload
that was changed meanwhile gives another one, which never leaves (two plaintexts under one nonce would show
their difference).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from cloister.crypto import HoldsSecret
from cloister.crypto.aead import TAG_BYTES, Numbered
from cloister.errors import InputError, ProtocolError
from cloister.runtime.link.handshake import Parties, SessionKeys
from cloister.runtime.link.incoming import Incoming, Payload
from cloister.runtime.link.outgoing import FIRST_TIMEOUT, LONGEST_TIMEOUT, Flight, Outgoing
from cloister.runtime.link.wire import (
    ACK,
    LABEL,
    PROBE,
    REORDERED,
    WINDOW_BYTES,
    Frame,
    encode,
    sealed_part,
    signed_part,
)

__all__ = ["ACK_DELAY", "Session"]

ACK_DELAY: Final = 0.02
_ACK_BYTES: Final = WINDOW_BYTES // 2
_NO_SIGNATURE: Final = bytes(64)
_NOTHING: Final = memoryview(b"")


class Session(HoldsSecret):
    """Both directions of one session, at one end."""

    def __init__(
        self,
        parties: Parties,
        keys: SessionKeys,
        *,
        initiator: bool,
        auto_grant: bool,
        aside: Path | None = None,
    ) -> None:
        self.id = keys.session
        self.route_in = parties.route_in(keys.version)
        self.outgoing = Outgoing(confirm=initiator)
        self.incoming = Incoming(auto_grant=auto_grant, aside=aside)
        self._identity, self._peer = parties.identity, parties.peer
        self._route_out = parties.route_out(keys.version)
        mine, theirs = (keys.initiator, keys.responder)[:: 1 if initiator else -1]
        self._seal, self._open = Numbered(mine), Numbered(theirs)
        self._sealed_out, self._signed_out = self._contexts(self._route_out)
        self._sealed_in, self._signed_in = self._contexts(self.route_in)
        self._stamp = self._peer_stamp = -1
        self._ack_at = math.inf
        self._ack_bytes = 0
        self._ack_again = FIRST_TIMEOUT

    def receive(self, frame: Frame, now: float) -> list[Payload]:
        """Take a frame of this session; return the payloads that are now in order.

        Raises:
            ProtocolError: it does not fit.
            IntegrityError: it does not verify or open.
        """
        if frame.kind <= PROBE and (frame.sequence or frame.size or frame.ciphertext):
            raise ProtocolError("sent an acknowledgement with something in it")  # 2
        newer = frame.stamp > self._peer_stamp
        lacking = frame.kind > PROBE and self.incoming.lacks(frame)  # 2
        if not newer and not lacking:
            return []  # 1
        self._peer.verify(frame.signature, self._signed(self._signed_in, frame))  # 3
        if newer:
            self.outgoing.check(frame, self._stamp)  # 4
        payloads: list[Payload] = []
        if lacking:
            grants = self.incoming.grants
            payloads = self.incoming.take(frame, self._open, self._sealed(self._sealed_in, frame))  # 5
            self._ack_bytes += len(frame.ciphertext)
            if self.incoming.grants > grants or self._ack_bytes >= _ACK_BYTES:
                self._ack_at = -math.inf
        if newer:
            self._peer_stamp = frame.stamp
            self.outgoing.acknowledge(frame, now)
        if frame.kind > PROBE:
            self._ack_at = min(self._ack_at, now + ACK_DELAY)
        elif frame.kind == PROBE:
            self._ack_at = -math.inf
        return payloads

    def poll(self, now: float) -> bytes | None:
        """Return the next datagram to transmit, or None.

        Raises:
            InputError: a payload was changed while it was being sent.
        """
        flight = self.outgoing.next(now)
        if flight is not None:
            return self._transmit(flight, now)
        if self.outgoing.probes():
            return self._signal(PROBE, now)
        return self._signal(ACK, now) if now >= self._ack_at else None

    def wake_at(self) -> float:
        """Return when `poll` may return something without new input."""
        return min(self.outgoing.wake_at(), self._ack_at)

    def grant(self) -> None:
        """Let the payload that was announced come."""
        if self.incoming.grant():
            self._ack_at = -math.inf

    def nudge(self, now: float) -> None:
        """Send again what is on its way, and say what has arrived."""
        self.outgoing.nudge(now)
        self._ack_at = -math.inf

    def _transmit(self, flight: Flight, now: float) -> bytes:
        head = sealed_part(flight.kind, flight.sequence, flight.size)
        ciphertext = self._seal.seal(flight.sequence, flight.data, self._sealed_out + head)
        tag = bytes(ciphertext[-TAG_BYTES:])
        if flight.seal not in (b"", tag):
            raise InputError(
                "a payload was changed while it was being sent", fix="Send a copy, or leave it alone"
            )
        flight.seal = tag
        frame = self._frame(flight.kind, flight.sequence, flight.size, memoryview(ciphertext), now)
        self.outgoing.sent(flight, self._stamp, now)
        return self._sign(frame, tag)

    def _signal(self, kind: int, now: float) -> bytes:
        return self._sign(self._frame(kind, 0, 0, _NOTHING, now), b"")

    def _frame(self, kind: int, sequence: int, size: int, ciphertext: memoryview, now: float) -> Frame:
        self._stamp += 1 + REORDERED * (kind == PROBE)  # clearly later than all that went before
        incoming = self.incoming
        if incoming.starved:  # nothing but this tells the peer of its grant
            self._ack_at = now + self._ack_again
            self._ack_again = min(2 * self._ack_again, LONGEST_TIMEOUT)
        else:
            self._ack_at, self._ack_again = math.inf, FIRST_TIMEOUT
        self._ack_bytes = 0
        return Frame(
            self._route_out,
            self.id,
            kind,
            sequence,
            size,
            self._stamp,
            incoming.next,
            self._peer_stamp + 1,
            incoming.held,
            incoming.grants,
            ciphertext,
            _NO_SIGNATURE,
        )

    def _sign(self, frame: Frame, tag: bytes) -> bytes:
        frame.signature = self._identity.sign(self._signed_out + signed_part(frame) + tag)
        return encode(frame)

    def _contexts(self, route: bytes) -> tuple[bytes, bytes]:
        return LABEL + b"/sealed" + route + self.id, LABEL + b"/frame" + route + self.id

    @staticmethod
    def _sealed(context: bytes, frame: Frame) -> bytes:
        return context + sealed_part(frame.kind, frame.sequence, frame.size)

    @staticmethod
    def _signed(context: bytes, frame: Frame) -> bytes:
        return context + signed_part(frame) + bytes(frame.ciphertext[-TAG_BYTES:])
