"""What a broker and its clients say to each other: msgpack, strict and bounded.

    client   Hello      a fresh nonce
    broker   Welcome    its identity, a fresh nonce, its signature over both

    worker   Ask        for a challenge
    broker   Challenge  a fresh nonce, for one request on this connection
    worker   Release    what it wants, the wrapped keys, its key, evidence that binds all of that to the nonce
    broker   Released   the grant, the data keys sealed to the worker's key under it, the log's signed head
    worker   More       further wrapped keys under a grant of this connection
    broker   Released

    owner    Act        what it orders, signed over both nonces and the order's number
    broker   Done       the answer, signed over the same and the order

    broker   Refused    instead of any answer

Nothing in these messages is secret where a data key is not sealed: data keys travel under HPKE in both
directions. So it does not matter who carries them, and a site may forward its worker's.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from cloister.crypto import framed, sha256
from cloister.enclave.broker.grant import Digest, PermissionId, Wanted, Wrapped
from cloister.enclave.evidence import MAX_EVIDENCE
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PolicyRefused,
    ProtocolError,
    StorageError,
    VerificationError,
)

__all__ = [
    "MAX_MESSAGE",
    "MAX_SMALL",
    "Act",
    "Ask",
    "Challenge",
    "Done",
    "Hello",
    "Message",
    "More",
    "Refused",
    "Release",
    "Released",
    "Reply",
    "Request",
    "Welcome",
    "act_bytes",
    "decode",
    "decode_reply",
    "decode_request",
    "done_bytes",
    "encode",
    "refusal",
    "refused",
    "welcome_bytes",
]

MAX_MESSAGE: Final = MAX_EVIDENCE + (2 << 20)
"""Bytes of a request that brings evidence."""
MAX_SMALL: Final = 1 << 20
"""Bytes of every other message."""
_LABEL: Final = b"cloister broker v1"

_Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_WorkerKey = Annotated[bytes, msgspec.Meta(min_length=1216, max_length=1216)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
_Text = Annotated[str, msgspec.Meta(max_length=20_000)]
_Fingerprint = Annotated[str, msgspec.Meta(max_length=64)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    """What every message has in common: its name in a field, nothing unknown beside it, nothing shown."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Hello(Message, frozen=True, tag="hello"):
    """A client's first word."""

    nonce: _Nonce


class Welcome(Message, frozen=True, tag="welcome"):
    """The broker's: its public identity in JSON, and proof that it holds its keys."""

    identity: Annotated[bytes, msgspec.Meta(max_length=8192)]
    nonce: _Nonce
    signature: _Signature


class Ask(Message, frozen=True, tag="ask"):
    """A worker wants to be challenged."""


class Challenge(Message, frozen=True, tag="challenge"):
    """A nonce for one request on this connection, and for how many seconds."""

    nonce: _Nonce
    seconds: int


class Release(Message, frozen=True, tag="release"):
    """A worker's request, with its evidence as JSON."""

    wanted: Wanted
    wrapped: Wrapped
    worker: _WorkerKey
    evidence: Annotated[bytes, msgspec.Meta(max_length=MAX_EVIDENCE)]


class More(Message, frozen=True, tag="more"):
    """Further keys under a grant that was made on this connection, for the same worker's key."""

    permission: PermissionId
    worker: Digest
    wrapped: Wrapped


class Released(Message, frozen=True, tag="released"):
    """What was released, and where the log says so.

    Attributes:
        grant: canonical bytes.
        sealed: the data keys, msgpack, under HPKE to the worker's key; info and associated data are the
            grant's.
        index: of the log's entry.
        head: the log's head after it, signed by the broker.
        hardware: whether hardware vouches for the worker.
    """

    grant: Annotated[bytes, msgspec.Meta(max_length=8192)]
    sealed: Annotated[bytes, msgspec.Meta(max_length=MAX_SMALL)]
    index: int
    head: Annotated[bytes, msgspec.Meta(max_length=8192)]
    hardware: bool


class Act(Message, frozen=True, tag="act"):
    """An owner's order: `order` is an `Order` in msgpack."""

    order: Annotated[bytes, msgspec.Meta(max_length=16384)]
    owner: _Fingerprint
    signature: _Signature


class Done(Message, frozen=True, tag="done"):
    """An order was carried out; what it changed is on the disk and in the log."""

    value: Annotated[bytes, msgspec.Meta(max_length=MAX_SMALL)]
    signature: _Signature


class Refused(Message, frozen=True, tag="refused"):
    """No; an error of `cloister.errors` in parts.

    Attributes:
        index: of the log's entry that says so; None for what is not logged.
    """

    error: Annotated[str, msgspec.Meta(max_length=64)]
    what: _Text
    where: _Text
    fix: _Text
    index: int | None = None


Request = Hello | Ask | Release | More | Act
Reply = Welcome | Challenge | Released | Done | Refused

_REQUEST: Final = msgspec.msgpack.Decoder(Request)
_REPLY: Final = msgspec.msgpack.Decoder(Reply)
_ENCODER: Final = msgspec.msgpack.Encoder()
_KINDS: Final[dict[str, type[CloisterError]]] = {
    kind.__name__: kind
    for kind in (PolicyRefused, VerificationError, IntegrityError, ProtocolError, InputError, StorageError)
}


def encode(value: Any) -> bytes:
    """Return a value in msgpack."""
    return _ENCODER.encode(value)


def decode(decoder: Any, data: bytes, what: str) -> Any:
    """Return what a decoder reads. Raises InputError, without any of the bytes, where it reads nothing."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError):
        pass  # the text might hold bytes of a message
    raise InputError(
        f"this is not {what} of a key broker", fix="Use the same version of Cloister on both sides"
    )


def decode_request(data: bytes) -> Request:
    """Return a request. Raises InputError where it is none."""
    request: Request = decode(_REQUEST, data, "a request")
    return request


def decode_reply(data: bytes) -> Reply:
    """Return a reply. Raises InputError where it is none."""
    reply: Reply = decode(_REPLY, data, "an answer")
    return reply


def welcome_bytes(client: bytes, broker: bytes) -> bytes:
    """Return what the broker signs to be believed: both nonces."""
    return framed(_LABEL, b"welcome", client, broker)


def act_bytes(client: bytes, broker: bytes, number: int, order: bytes) -> bytes:
    """Return what an owner signs: both nonces, the order's number on this connection, the order."""
    return framed(_LABEL, b"act", client, broker, number.to_bytes(8, "big"), order)


def done_bytes(client: bytes, broker: bytes, number: int, order: bytes, value: bytes) -> bytes:
    """Return what the broker signs of an answer to an order."""
    return framed(_LABEL, b"done", client, broker, number.to_bytes(8, "big"), sha256(order), value)


def refused(error: CloisterError, index: int | None = None) -> Refused:
    """Return an error as a reply."""
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "InputError")
    return Refused(kind, error.what[:20_000], error.where[:20_000], error.fix[:20_000], index)


def refusal(reply: Refused) -> CloisterError:
    """Return the error that a reply means."""
    kind = _KINDS.get(reply.error, StorageError)
    if kind is ProtocolError:
        return ProtocolError(reply.what, fix=reply.fix)
    return kind(reply.what, where=reply.where, fix=reply.fix)
