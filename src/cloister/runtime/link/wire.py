"""What travels: a `Hello` opens a session, a `Frame` carries a numbered piece of it or only acknowledges.

Both begin with a `Route`, the only thing beside sizes and counters that is in the clear. Parsing is strict
and verifies nothing. The numbers of a frame are what its sender signs (`signed_part`), and those that say
what is encrypted are also what the encryption authenticates (`sealed_part`). Acknowledgements are signed
only: they differ between two transmissions of one frame, and associated data may not, under one nonce.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec

from cloister.crypto import Buffer
from cloister.errors import ProtocolError

__all__ = [
    "ACK",
    "ANNOUNCE",
    "CONFIRM",
    "FRAGMENT",
    "HELD_BITS",
    "HELLO_VERSION",
    "LABEL",
    "MAX_FRAGMENT",
    "MAX_PAYLOAD",
    "MAX_SMALL",
    "PROBE",
    "REORDERED",
    "WHOLE",
    "WINDOW_BYTES",
    "WINDOW_FRAMES",
    "Frame",
    "Hello",
    "Route",
    "encode",
    "fragment_bytes",
    "parse",
    "peek",
    "route_of",
    "sealed_part",
    "signed_part",
]

LABEL: Final = b"cloister/link/v1"
HELLO_VERSION: Final = (
    1  # of the route and the hello themselves; what a session speaks is agreed in the hellos
)
MAX_PAYLOAD: Final = 8 << 30
MAX_SMALL: Final = 16 << 10
MAX_FRAGMENT: Final = 1 << 20
MIN_FRAGMENT: Final = 64 << 10
WINDOW_BYTES: Final = 4 << 20
WINDOW_FRAMES: Final = 1024
HELD_BITS: Final = 62
REORDERED: Final = 3  # by how many stamps one transmission may overtake another before that counts as lost
_MAX_DATAGRAM: Final = MAX_FRAGMENT + 4096

ACK, PROBE, CONFIRM, WHOLE, ANNOUNCE, FRAGMENT = range(6)
"""What a frame is: an acknowledgement alone, one that asks for another, the initiator's first (empty), a
payload, the size of a large payload, a piece of it. The first two have no sequence and no ciphertext."""

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]{1,63}\Z")]
Version = Annotated[int, msgspec.Meta(ge=1, lt=2**16)]
Counter = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]
EncodedRoute = Annotated[bytes, msgspec.Meta(max_length=256)]


class Route(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Study and direction; the first thing in every datagram."""

    version: Version
    study: Bytes32
    sender: Name
    receiver: Name


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="hello"):
    """Asks for a session, or (`answers` holds the digest of such a hello) agrees to it.

    Fields: a fresh X25519 public key, a nonce, the versions its sender speaks, its term, and a signature over
    all of it.
    """

    route: EncodedRoute
    key: Bytes32
    nonce: Bytes32
    versions: Annotated[list[Version], msgspec.Meta(min_length=1, max_length=16)]
    term: Counter
    answers: Annotated[bytes, msgspec.Meta(max_length=32)]
    signature: Signature


class Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="frame"):
    """One datagram of a session.

    `sequence` numbers what is delivered; `stamp` grows with every transmission. `ack` is the first sequence
    that has not arrived, bit i of `held` says that ack + 1 + i has, `echo` is one more than the highest stamp
    that has; `grants` counts the large payloads that may be transferred. `size` is that of an announced one.
    """

    route: EncodedRoute
    session: Bytes32
    kind: Annotated[int, msgspec.Meta(ge=ACK, le=FRAGMENT)]
    sequence: Counter
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAYLOAD)]
    stamp: Counter
    ack: Counter
    echo: Counter
    held: Annotated[int, msgspec.Meta(ge=0, lt=2**HELD_BITS)]
    grants: Counter
    ciphertext: memoryview
    signature: Signature


encode = msgspec.msgpack.Encoder().encode
_decode_any: msgspec.msgpack.Decoder[Hello | Frame] = msgspec.msgpack.Decoder(Hello | Frame)
_decode_route: msgspec.msgpack.Decoder[Route] = msgspec.msgpack.Decoder(Route)
_SEALED: Final = struct.Struct(">BQQ")
_SIGNED: Final = struct.Struct(">BQQQQQQQ")


def sealed_part(kind: int, sequence: int, size: int) -> bytes:
    """Return the numbers that belong to the encryption of a frame, the same in every transmission."""
    return _SEALED.pack(kind, sequence, size)


def signed_part(frame: Frame) -> bytes:
    """Return all numbers of the frame, for its signature."""
    return _SIGNED.pack(
        frame.kind,
        frame.sequence,
        frame.size,
        frame.stamp,
        frame.ack,
        frame.echo,
        frame.held,
        frame.grants,
    )


def parse(datagram: Buffer) -> Hello | Frame:
    """Return what the datagram says. Nothing about it is verified.

    Raises:
        ProtocolError: it is no datagram of a link.
    """
    if len(datagram) > _MAX_DATAGRAM:
        raise ProtocolError(
            "sent a datagram above the size limit", fix="Install the same version at both ends"
        )
    try:
        return _decode_any.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            "sent bytes that are no datagram of a link", fix="Install the same version at both ends"
        ) from error


def route_of(message: Hello | Frame) -> Route:
    """Return the route inside a parsed message. Raises ProtocolError if it is none."""
    try:
        return _decode_route.decode(message.route)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            "sent bytes that are no datagram of a link", fix="Install the same version at both ends"
        ) from error


def peek(datagram: Buffer) -> Route:
    """Return where the datagram claims to come from and to belong. Nothing about it is verified.

    Raises:
        ProtocolError: it is no datagram of a link at all.
    """
    return route_of(parse(datagram))


def fragment_bytes(size: int) -> int:
    """Return the length of every fragment but the last of a payload of `size` bytes; both ends compute it."""
    return min(MAX_FRAGMENT, max(MIN_FRAGMENT, -(-size // 4)))
