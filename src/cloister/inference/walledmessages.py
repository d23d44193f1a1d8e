"""What a walled prediction's two processes say to each other.

    caller                    worker
    Meet                  ->                  in the clear, before there is a session: who asks
                          <-  an identity     made for this process
    (a session of `runtime.link` opens between the two; what follows travels in it)
    Prepare               ->                  folders to read, what to import first
                          <-  Ready           the walls stand
    Task                  ->                  the model, the rows and their readers
                          <-  KeyWanted       while a dataset is opened, any number of times; or BrokerAsk and
    Key                   ->                  EvidenceWanted, as `runtime.workers.messages` has them
                          <-  Predicted, or Failed

Parsing is strict. How large a message may be is decided before it comes (`Channel`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from cloister.crypto import Buffer, sha256
from cloister.errors import ProtocolError
from cloister.inference.tensors import TENSORS_LIMIT
from cloister.runtime.workers.messages import BrokerAsk, EvidenceWanted, KeyWanted, Place

__all__ = [
    "MAX_ANSWER",
    "MAX_CODE",
    "MAX_CONTENT",
    "MAX_FILE",
    "MAX_TASK",
    "PROTOCOL",
    "DatasetRows",
    "Failed",
    "Plaintext",
    "Predicted",
    "Ready",
    "Rows",
    "Said",
    "Task",
    "decode",
]

PROTOCOL: Final = sha256(b"cloister walled prediction v3")
"""What the session is bound to, 32 bytes."""
MAX_CONTENT: Final = 240 << 20
"""Bytes of rows in one file; they lie in the worker's scratch space, which has 256 MiB."""
MAX_FILE: Final = MAX_CONTENT + (8 << 20)
"""Bytes of a file of rows: header and tags of a sealed one included."""
MAX_ANSWER: Final = 1 << 30
"""Bytes of predictions."""
MAX_TASK: Final = TENSORS_LIMIT + 2 * MAX_FILE + (8 << 20)
"""Bytes of a task: the model and two files of rows."""
MAX_CODE: Final = 1 << 20
"""Bytes of a user's file."""
_MAX_IDENTITY: Final = 16 << 10

Plaintext: Final = "plaintext"
"""Instead of readers: the predictions come back unencrypted."""

_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Identity = Annotated[bytes, msgspec.Meta(max_length=_MAX_IDENTITY)]
_Name = Annotated[str, msgspec.Meta(max_length=4096)]
_Text = Annotated[str, msgspec.Meta(max_length=6000)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message. What is in it, keys and rows, is not shown."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Ready(_Message, frozen=True, tag=True):
    """The walls stand."""


class Rows(_Message, frozen=True, tag=True):
    """A file of rows: its bytes as they are, the key of its content where it is sealed, and its name, for
    what is said of it."""

    data: Annotated[memoryview, msgspec.Meta(max_length=MAX_FILE)]
    content_key: _Bytes32 | None
    name: _Name


class DatasetRows(_Message, frozen=True, tag=True):
    """A dataset of the caller's vault, which it opens for one of its purposes; keys are asked for."""

    place: Place
    purpose: Annotated[str, msgspec.Meta(max_length=200)]


class Task(_Message, frozen=True, tag=True):
    """Predict `rows` with the model whose file is `model`, scaled by `reference` where that is given.
    `readers` are public identities (JSON); `code` is the module's file, of a model that is one. `base` is the
    folder of a language model's base, and `tokens` what an answer of one that writes may have."""

    model: Annotated[memoryview, msgspec.Meta(max_length=TENSORS_LIMIT)]
    rows: Rows | DatasetRows
    reference: Rows | None
    format: Literal["csv", "parquet"]
    readers: Annotated[list[_Identity], msgspec.Meta(min_length=1, max_length=1000)] | Literal["plaintext"]
    code: Annotated[bytes, msgspec.Meta(max_length=MAX_CODE)] | None
    base: _Name | None = None
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1


class Predicted(_Message, frozen=True, tag=True):
    """The predictions, sealed unless the task said otherwise; how many, and their columns' names."""

    content: Annotated[memoryview, msgspec.Meta(max_length=MAX_ANSWER)]
    rows: _Count
    columns: Annotated[list[_Name], msgspec.Meta(max_length=1 << 16)]


class Failed(_Message, frozen=True, tag=True):
    """Why there are none: the name of an error's class, and its text; of a SchemaError, line and column."""

    kind: Annotated[str, msgspec.Meta(max_length=64)]
    what: _Text
    where: _Text
    fix: _Text
    line: _Count | None = None
    column: _Text | None = None


Said = Ready | KeyWanted | BrokerAsk | EvidenceWanted | Predicted | Failed
"""What a worker says."""


def decode(decoder: msgspec.msgpack.Decoder[Any], data: Buffer) -> Any:
    """Return a message. Raises ProtocolError where it is none of the decoder's."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError("the other process said what nobody understands") from error
