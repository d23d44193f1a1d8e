"""Both ends of an exchange, for tests: a fixed time, a ring of keys, and shortcuts through a whole exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.crypto import sha256
from cloister.inference.exchange import REQUEST_PREFIX, Answering, Asking, KeyRing, RequestHead, ResponseHead

NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
MODEL, DIGEST = "tiny", "ab" * 32
HEAD = RequestHead(
    "POST", "/v1/chat/completions", {"content-type": "application/json"}, "cd" * 32, "clst-abc"
)
JSON = {"content-type": "application/json"}


def counted(label: bytes) -> Callable[[int], bytes]:
    """Return a source of bytes that are the same in every run."""
    drawn = 0

    def draw(count: int) -> bytes:
        nonlocal drawn
        out = b""
        while len(out) < count:
            out += sha256(label, drawn.to_bytes(8, "big"))
            drawn += 1
        return out[:count]

    return draw


def new_ring(**given: object) -> KeyRing:
    return KeyRing(MODEL, DIGEST, **{"lifetime": 3600, "overlap": 600, **given})  # type: ignore[arg-type]


def taken(ring: KeyRing, request: bytes, at: datetime = NOON) -> Answering:
    """Open a whole request."""
    answering = ring.open(request[:REQUEST_PREFIX], at)
    answering.feed(request[REQUEST_PREFIX:])
    return answering


def frames_of(stream: bytes, start: int) -> list[bytes]:
    """Cut what follows `start` into its frames, as anybody on the way can."""
    frames, at = [], start
    while at < len(stream):
        length = int.from_bytes(stream[at : at + 4], "big") & 0x7FFF_FFFF
        frames.append(stream[at : at + 4 + length])
        at += 4 + length
    return frames


@dataclass
class Exchange:
    """One exchange: the client's state, what the server read, and its answer in pieces."""

    asking: Asking
    head: RequestHead
    body: bytes
    pieces: list[bytes]

    @property
    def answer(self) -> bytes:
        return b"".join(self.pieces)


def exchanged(
    ring: KeyRing,
    *,
    head: RequestHead = HEAD,
    body: bytes = b"question",
    pieces: Sequence[bytes] = (b"answer",),
    streamed: bool = False,
    status: int = 200,
    at: datetime = NOON,
) -> Exchange:
    """Ask and answer; the answer was not fed to the client yet."""
    asking = Asking(ring.current(at), head, body)
    answering = taken(ring, asking.request, at)
    read, read_body = answering.request()
    out = [answering.head(status, JSON, streamed), *map(answering.body, pieces), answering.end(at)]
    return Exchange(asking, read, read_body, out)


def told(events: Sequence[ResponseHead | bytes]) -> tuple[ResponseHead, bytes]:
    """Return head and body in the events of an answer."""
    head, *rest = events
    assert isinstance(head, ResponseHead)
    assert all(isinstance(event, bytes) for event in rest)
    return head, b"".join(rest)  # type: ignore[arg-type]
