"""What a service and its worker say to each other before the first request.

    service                   worker
    Meet                  ->                  in the clear: an identity made for this one service
                          <-  an identity     made for this process
    (a session of `runtime.link` opens between the two; what follows travels in it)
    Prepare               ->                  what to import and to read; then the walls go up
                          <-  Confined        those that stand, by name
    Boot                  ->                  what to serve, and to whom
                          <-  KeyWanted       or BrokerAsk, EvidenceWanted: while a sealed model is opened
    Key                   ->                  or BrokerSays, EvidenceGiven
                          <-  Ready, or Failed
    (from then on only the pipe is used)

Parsing is strict; an error of ours travels as class and text, any other as its class's name alone.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import Buffer, sha256
from cloister.errors import (
    CloisterError,
    ProtocolError,
)
from cloister.inference.service.credentials import MAX_CLIENTS, Client
from cloister.inference.service.limits import Limits
from cloister.inference.tensors import MODEL_LIMIT, TENSORS_LIMIT
from cloister.runtime.workers.messages import (
    MAX_TEXT,
    BrokerAsk,
    Confined,
    EvidenceWanted,
    Failed,
    KeyWanted,
)

__all__ = [
    "HANDED",
    "MAX_BOOT",
    "PIPE",
    "PROTOCOL",
    "Adapter",
    "Boot",
    "Engine",
    "Language",
    "Prepare",
    "Ready",
    "Said",
    "Sealed",
    "Table",
    "Told",
    "decode_said",
    "decode_told",
    "failed",
]

PROTOCOL: Final = sha256(b"cloister inference service v1")
"""What the session is bound to, 32 bytes."""
PIPE: Final = 5
"""The worker's descriptor of the pipe to the front."""
HANDED: Final = 6
"""The worker's descriptor over which it is handed sockets to an engine on loopback; open only then."""
MAX_BOOT: Final = TENSORS_LIMIT + (8 << 20)
"""Bytes of the longest message to the worker."""

_MAX_CODE: Final = 1 << 20
_MAX_MANIFEST: Final = 4 << 20
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[ -~]+\Z")]
_Identity = Annotated[bytes, msgspec.Meta(max_length=16 << 10)]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
_Code = Annotated[bytes, msgspec.Meta(max_length=_MAX_CODE)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message. What is in it is not shown."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Prepare(_Message, frozen=True, tag=True):
    """What must be there before the walls go up: folders and files to read; libraries to import; whether
    sockets will be handed to the worker."""

    read: Annotated[list[_Path], msgspec.Meta(max_length=16)]
    imports: Literal["table", "torch", "language", "adapter", "loopback"]
    handed: bool


class Table(_Message, frozen=True, tag=True):
    """A released model: the bytes of its file, and of its module's, where it is code that was allowed."""

    model: Annotated[memoryview, msgspec.Meta(max_length=MODEL_LIMIT)]
    code: _Code | None


class Language(_Message, frozen=True, tag=True):
    """A language model in a folder, and how many tokens its cache holds, of all requests together."""

    folder: _Path
    kv_tokens: _Tokens


class Adapter(_Message, frozen=True, tag=True):
    """A released language model: the bytes of its file, the folder of its base, and, where it writes text,
    how many tokens its cache holds, of all requests together."""

    model: Annotated[memoryview, msgspec.Meta(max_length=TENSORS_LIMIT)]
    base: _Path
    kv_tokens: _Tokens


class Sealed(_Message, frozen=True, tag=True):
    """A sealed model of any kind: its folder, its signed manifest, whose it must be, and which broker keeps
    its key; None where the home does. `base` is the folder of the base that a released language model
    needs."""

    folder: _Path
    envelope: Annotated[bytes, msgspec.Meta(max_length=_MAX_MANIFEST)]
    owner: _Identity
    broker: _Identity | None
    code: _Code | None
    kv_tokens: _Tokens
    base: _Path | None = None


class Engine(_Message, frozen=True, tag=True):
    """An engine on this machine's loopback: what its sockets' peer must be, and which models may be asked
    for; none named: all that it has."""

    peer: _Path
    names: Annotated[list[_Name], msgspec.Meta(max_length=64)]


class Boot(_Message, frozen=True, tag=True):
    """What to serve, under which name, to whom (None: to anybody), within which limits, with how many
    threads, and for how many seconds under one key set."""

    model: Table | Language | Adapter | Sealed | Engine
    name: _Name
    clients: Annotated[list[Client], msgspec.Meta(max_length=MAX_CLIENTS)] | None
    limits: Limits
    lifetime: Annotated[float, msgspec.Meta(ge=1.0)]
    overlap: Annotated[float, msgspec.Meta(ge=0.0)]
    accelerators: Annotated[int, msgspec.Meta(ge=0, le=64)]
    threads: Annotated[int, msgspec.Meta(ge=1, le=4096)]


class Ready(_Message, frozen=True, tag=True):
    """What answers now: its name, its digest and that of the first key set (64 hexadecimal digits each), and
    what kind of model it is. An engine on loopback is another process's: its digest is 64 zeros, for nothing
    here vouches for it."""

    model: _Name
    model_digest: _Hex32
    kind: Literal["table", "language", "loopback"]
    keys: _Hex32


Told = Prepare | Boot
Said = Confined | KeyWanted | BrokerAsk | EvidenceWanted | Ready | Failed

_told: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)
_said: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def decode_told(data: Buffer) -> Told:
    """Return what a worker is told. Raises ProtocolError where it is nothing it is told."""
    try:
        return _told.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError("told a worker what it does not understand") from error


def decode_said(data: Buffer) -> Said:
    """Return what a worker says. Raises ProtocolError where it is nothing it says."""
    try:
        return _said.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError("the worker said what nobody understands") from error


def failed(error: Exception) -> Failed:
    """Return what a worker says of an error."""
    if isinstance(error, CloisterError):
        return Failed(
            type(error).__name__, *(text[:MAX_TEXT] for text in (error.what, error.where, error.fix))
        )
    return Failed(type(error).__name__[:64], "the model could not be loaded", "", "")
