"""What processes of one home say to the one that writes the ledger, over a Unix socket.

A message is 4 bytes of length, then msgpack. First both sides prove that they hold the owner's keys:

    writer   Greeting   a fresh nonce, the ledger's id, its process
    client   Hello      a fresh nonce; signature over label | "client" | both nonces | ledger
    writer   Welcome    signature over label | "writer" | both nonces | ledger;  or Refused

Then requests and replies alternate. A request that changes something is a row, complete with its id; the
answer to it is remembered under that id, so a request may be made again when no reply came.
"""

from __future__ import annotations

import socket
from typing import Annotated, Any, Final

import msgspec

from cloister.crypto import framed
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused, StorageError
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.rows import (
    Admit,
    Close,
    Commit,
    Declare,
    Hex32,
    Hex64,
    Names,
    Short,
    Spend,
    Start,
)

__all__ = [
    "MAX_MESSAGE",
    "AdmissionOf",
    "AnchorQuery",
    "AnchorRequest",
    "BindRequest",
    "BoundQuery",
    "Change",
    "DebitQuery",
    "Done",
    "Greeting",
    "HeadQuery",
    "Hello",
    "OrderQuery",
    "OverlapQuery",
    "PopulationsQuery",
    "Query",
    "Refused",
    "Reply",
    "Request",
    "StatusQuery",
    "Welcome",
    "challenge",
    "decode_reply",
    "encode",
    "frame",
    "frames",
    "receive",
    "refusal",
    "refused",
]

MAX_MESSAGE: Final = 512 << 20
_LABEL: Final = b"cloister ledger socket v1"
_Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="row"):
    pass


class Greeting(_Message, frozen=True, tag="greeting"):
    """The writer's first word."""

    nonce: _Nonce
    ledger: Hex32
    pid: int


class Hello(_Message, frozen=True, tag="hello"):
    """The client's: who it is, and proof."""

    nonce: _Nonce
    fingerprint: Short
    signature: bytes


class Welcome(_Message, frozen=True, tag="welcome"):
    """The writer's proof."""

    signature: bytes


class BindRequest(_Message, frozen=True, tag="bind-request"):
    """Bind a dataset; `content` is a stored `FingerprintSet`."""

    id: Hex32
    at: Short
    population: Short | None
    dataset: Short
    content: bytes


class AnchorRequest(_Message, frozen=True, tag="anchor-request"):
    """Keep the newest head in this file too."""

    id: Hex32
    at: Short
    path: str


class StatusQuery(_Message, frozen=True, tag="status"):
    """What is spent, held and left of a population."""

    population: Short


class PopulationsQuery(_Message, frozen=True, tag="populations"):
    """The names of all populations."""


class BoundQuery(_Message, frozen=True, tag="bound"):
    """The populations of a dataset."""

    dataset: Short


class HeadQuery(_Message, frozen=True, tag="head"):
    """The newest signed head."""


class AdmissionOf(_Message, frozen=True, tag="admission-of"):
    """The open admission of a study."""

    study: Hex64


class DebitQuery(_Message, frozen=True, tag="debit"):
    """What an admission has cost so far, for its owner to sign."""

    admission: int


class AnchorQuery(_Message, frozen=True, tag="anchor-query"):
    """Where the newest head is kept too."""


class OrderQuery(_Message, frozen=True, tag="order"):
    """The highest order of these populations' caps."""

    populations: Names


class OverlapQuery(_Message, frozen=True, tag="overlap"):
    """The populations that have recorded a row of a stored `FingerprintSet`."""

    content: bytes


Change = Declare | Admit | Start | Commit | Close | Spend | BindRequest | AnchorRequest
Query = (
    StatusQuery
    | PopulationsQuery
    | BoundQuery
    | HeadQuery
    | AdmissionOf
    | DebitQuery
    | AnchorQuery
    | OrderQuery
    | OverlapQuery
)
Request = Change | Query


class Done(_Message, frozen=True, tag="done"):
    """The request was carried out; what it changed is on the disk."""

    value: msgspec.Raw


class Refused(_Message, frozen=True, tag="refused"):
    """It was not; an error of `cloister.errors` in parts."""

    kind: Short
    what: str
    where: str
    fix: str


Reply = Done | Refused

_KINDS: Final[dict[str, type[CloisterError]]] = {
    kind.__name__: kind for kind in (LedgerInDoubt, PolicyRefused, InputError, StorageError, IntegrityError)
}
_REPLY: Final = msgspec.msgpack.Decoder(Reply)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(value: Any) -> bytes:
    """Return a value in msgpack."""
    return _ENCODER.encode(value)


def frame(message: bytes) -> bytes:
    """Return a message behind its length."""
    return len(message).to_bytes(4, "big") + message


def frames(buffer: bytearray, limit: int) -> list[bytes]:
    """Take the complete messages out of a buffer. Raises InputError for one beyond `limit` bytes."""
    found, begin = [], 0
    while len(buffer) - begin >= 4:
        length = int.from_bytes(buffer[begin : begin + 4], "big")
        if length > limit:
            raise InputError("a message to the ledger is too long", fix="Bind fewer rows at once")
        if len(buffer) - begin - 4 < length:
            break
        found.append(bytes(buffer[begin + 4 : begin + 4 + length]))
        begin += 4 + length
    del buffer[:begin]
    return found


def receive(link: socket.socket) -> bytes:
    """Return the next message from a blocking socket. Raises EOFError where the other side has gone."""
    length = int.from_bytes(_exactly(link, 4), "big")
    if length > MAX_MESSAGE:
        raise EOFError
    return _exactly(link, length)


def _exactly(link: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = link.recv(min(count - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def challenge(role: bytes, writers: bytes, clients: bytes, ledger: str) -> bytes:
    """Return what a side signs to prove itself: its role, both nonces, the ledger's id."""
    return framed(_LABEL, role, writers, clients, ledger.encode())


def refused(error: CloisterError) -> Refused:
    """Return an error as a reply."""
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "InputError")
    return Refused(kind, error.what, error.where, error.fix)


def refusal(reply: Refused) -> CloisterError:
    """Return the error that a reply means."""
    return _KINDS.get(reply.kind, StorageError)(reply.what, where=reply.where, fix=reply.fix)


def decode_reply(data: bytes) -> Reply:
    """Return a reply. Raises EOFError where it is none: then the link is of no use."""
    try:
        reply: Reply = _REPLY.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise EOFError from None
    return reply
