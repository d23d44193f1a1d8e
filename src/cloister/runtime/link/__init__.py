"""A link carries payloads of any size between two parties of one study, over a transport nobody trusts.

What goes in with `send` comes out of the other end's `receive` once, whole, and in the order it went in, for
as long as a session lasts; the transport may lose, repeat, delay, reorder and alter datagrams. No I/O, no
clock:

    link.open(now)                          the initiator, which is the site
    while datagram := link.poll(now): ...   hand it to the transport
    link.receive(datagram, now)             what the transport brought
    link.wake_at()                          when to poll although nothing came

Order: hello, answer, then frames. The initiator has a session with the answer, the responder with the first
frame that verifies under it. A session that opens (`Received.opened`) begins empty at both ends: what was
queued is gone, and whoever uses the link says where to go on. Payloads above 16 KiB are announced first and
come when the receiver grants it; what was sent after them waits, since order is kept.

Invariants:
- only what the peer's identity signed for this receiver, study and session is delivered, once and in order;
  any other datagram, such as one with a bit changed, raises or is ignored, and changes nothing;
- a recorded datagram resets nothing: an old hello gives a candidate at most, which nobody can use;
- a key serves one direction of one session; a nonce, one plaintext and one header, however often it travels;
- the keys are fresh: an identity's keys, read later, do not open what was said;
- a party believes the highest term it has seen, so a hub that was replaced cannot go on;
- what waits is bounded: a window of frames in flight, and one large payload that was granted.

What it does not do: hide who talks to whom, how much and when; resist a quantum computer (stated in the
threat model); notice that the peer is gone (it repeats for ever, every five seconds); protect a payload that
its sender changes before it is acknowledged (the link then closes).
"""

from cloister.runtime.link.link import Link, Received
from cloister.runtime.link.wire import MAX_PAYLOAD, MAX_SMALL, Route, peek

__all__ = ["MAX_PAYLOAD", "MAX_SMALL", "Link", "Received", "Route", "peek"]
