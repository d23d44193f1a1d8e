"""What a site and its worker say to each other: the site asks, the worker answers, one thing at a time.

    site                      worker
    Meet                  ->                  in the clear, before there is a session: who the site is
                          <-  an identity     made for this process; evidence can vouch for it
    (a session of `runtime.link` opens between the two; what follows travels in it)
    Prepare               ->                  what to import, what to read
                          <-  Confined        the walls that stand, by name
    Open                  ->                  the plan, the model's code, the datasets' manifests
                          <-  Facts
    Train, ... Evaluate   ->                  or, instead of Open and these: Inspect, or Count
                          <-  KeyWanted       any number of times, while rows are opened
    Key                   ->
                          <-  BrokerAsk       the same where a key broker keeps the key: the site carries
    BrokerSays            ->                  what worker and broker say, and cannot read the keys in it
                          <-  EvidenceWanted  of this machine, for a key of the worker's own; what else it
                                              commits to is for the site to say
    EvidenceGiven         ->
                          <-  Vector, Integers, Sums, or Failed

Parsing is strict. How large a message may be is decided before it comes (`Channel`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Buffer
from cloister.errors import ProtocolError
from cloister.learning.facts import ModelFacts
from cloister.privacy.statistics import Query
from cloister.runtime.bodies import Joined, as_field, encode_around

__all__ = [
    "MAX_BROKERED",
    "MAX_TEXT",
    "Answer",
    "BrokerAsk",
    "BrokerSays",
    "Confined",
    "Count",
    "Evaluate",
    "EvidenceGiven",
    "EvidenceWanted",
    "Facts",
    "Failed",
    "Imports",
    "Inspect",
    "Integers",
    "Key",
    "KeyWanted",
    "Meet",
    "Open",
    "Place",
    "Prepare",
    "PrivateSum",
    "Question",
    "Sums",
    "Terms",
    "Train",
    "TrainPrivately",
    "Vector",
    "as_bytes",
    "decode_answer",
    "decode_question",
    "encode",
    "encode_large",
]

MAX_TEXT: Final = 600
MAX_BROKERED: Final = 10 << 20
"""Bytes of what worker and broker say to each other, evidence included."""
_MAX_CODE: Final = 1 << 20
_MAX_PLAN: Final = 4 << 20
_MAX_MANIFEST: Final = 32 << 20

_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Manifest = Annotated[bytes, msgspec.Meta(max_length=_MAX_MANIFEST)]
_Wrapped = Annotated[bytes, msgspec.Meta(max_length=4096)]
_DataKey = Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
_Identity = Annotated[bytes, msgspec.Meta(max_length=16 << 10)]
_Brokered = Annotated[bytes, msgspec.Meta(max_length=MAX_BROKERED)]
_Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
_Window = tuple[_Offset, _Offset]
_Positive = Annotated[float, msgspec.Meta(gt=0.0)]

Imports = Literal["nothing", "torch", "language"]
"""What a worker imports that takes long, or lies where it cannot read later."""


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message; its tag is its class's name. What is in it, keys and parameters, is not shown."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Meet(_Message, frozen=True, tag=True):
    """Who the site is, and the digest that the session is bound to."""

    site: _Identity
    study: _Bytes32


# --- the site asks ----------------------------------------------------------------------------------------


class Prepare(_Message, frozen=True, tag=True):
    """What must be readable and imported before the walls go up: folders of datasets, and of a base model.
    `threads` is how many a library may compute with afterwards."""

    read: Annotated[list[_Path], msgspec.Meta(max_length=64)]
    imports: Imports
    threads: Annotated[int, msgspec.Meta(ge=1, le=4096)]


class Place(_Message, frozen=True, tag=True):
    """A dataset: its folder, its manifest as the site read it, and the identity (JSON) of the broker that
    keeps its key; None where the site does."""

    folder: _Path
    envelope: _Manifest
    broker: _Identity | None = None


class Inspect(_Message, frozen=True, tag=True):
    """Build a plan's model and state its facts; there are no rows. `plan` is TOML, `schema` is JSON; `base`
    is the folder of the base that a language model starts from."""

    plan: Annotated[str, msgspec.Meta(max_length=_MAX_PLAN)]
    schema: _Manifest
    code: Annotated[bytes, msgspec.Meta(max_length=_MAX_CODE)] | None
    base: _Path | None = None


class Open(_Message, frozen=True, tag=True):
    """Build a plan's model and be ready to read rows; `base` as of `Inspect`. A seed of the worker's
    randomness is for tests."""

    plan: Annotated[str, msgspec.Meta(max_length=_MAX_PLAN)]
    code: Annotated[bytes, msgspec.Meta(max_length=_MAX_CODE)] | None
    rows: Place
    held_out: Place | None
    insecure_test_seed: _Bytes32 | None
    base: _Path | None = None


class Count(_Message, frozen=True, tag=True):
    """Add up what queries ask, each on its grid, over some columns of a dataset. There is no plan."""

    rows: Place
    purpose: Annotated[str, msgspec.Meta(max_length=200)]
    columns: Annotated[list[str], msgspec.Meta(max_length=1 << 16)]
    queries: list[Query]
    grids: list[int]


class Terms(_Message, frozen=True):
    """Of an epoch's `PrivacyTerms`, what a worker needs beside the plan."""

    bits: int
    clip_units: int
    coordinates: int
    sensitivity: _Positive
    noise_multiplier: _Positive
    share_variance: _Positive


class Train(_Message, frozen=True, tag=True):
    """Train from these parameters, float64[d], or float32[d] of a model in single precision. `window` is what
    may move, None for all."""

    params: memoryview
    window: _Window | None = None


class TrainPrivately(_Message, frozen=True, tag=True):
    """Take local private steps from these parameters, in this window."""

    params: memoryview
    terms: Terms
    window: _Window | None = None


class PrivateSum(_Message, frozen=True, tag=True):
    """Sum clipped gradients at these parameters, in this window."""

    params: memoryview
    clip: float
    terms: Terms
    window: _Window | None = None


class Evaluate(_Message, frozen=True, tag=True):
    """Evaluate these parameters on the held-out rows."""

    params: memoryview


class Key(_Message, frozen=True, tag=True):
    """A data key."""

    data_key: _DataKey


class BrokerSays(_Message, frozen=True, tag=True):
    """A broker's answer, as it came."""

    message: _Brokered


class EvidenceGiven(_Message, frozen=True, tag=True):
    """Evidence of the machine, a JSON document."""

    document: _Brokered


# --- the worker answers -----------------------------------------------------------------------------------


class Confined(_Message, frozen=True, tag=True):
    """The walls around the worker: True where one stands, None where the machine has none of its kind."""

    walls: Annotated[dict[str, bool | None], msgspec.Meta(max_length=64)]


class Facts(_Message, frozen=True, tag=True):
    """What the model is."""

    facts: ModelFacts


class KeyWanted(_Message, frozen=True, tag=True):
    """A data key of the training rows (0) or of the held-out ones (1), as the key material has it."""

    dataset: Annotated[int, msgspec.Meta(ge=0, le=1)]
    wrapped: _Wrapped


class BrokerAsk(_Message, frozen=True, tag=True):
    """A message for the broker that keeps the key of a dataset; on a fresh connection, or the open one."""

    dataset: Annotated[int, msgspec.Meta(ge=0, le=1)]
    message: _Brokered
    fresh: bool


class EvidenceWanted(_Message, frozen=True, tag=True):
    """Evidence that a dataset's broker is to accept for a public HPKE key, by its last challenge. Nothing
    else that evidence commits to is in the worker's hand: it would have the machine vouch for anything."""

    dataset: Annotated[int, msgspec.Meta(ge=0, le=1)]
    key: Annotated[bytes, msgspec.Meta(min_length=1216, max_length=1216)]


class Vector(_Message, frozen=True, tag=True):
    """Trained parameters, float64[d] or float32[d]."""

    values: memoryview


class Integers(_Message, frozen=True, tag=True):
    """A clipped sum on the grid, int64, one more element under an adaptive clip; or the sums of queries."""

    values: memoryview


class Sums(_Message, frozen=True, tag=True):
    """Evaluation sums; None where nothing is held out."""

    sums: Annotated[list[float], msgspec.Meta(max_length=16)] | None


class Failed(_Message, frozen=True, tag=True):
    """Why there is no answer: the name of an error's class, and its text."""

    kind: Annotated[str, msgspec.Meta(max_length=64)]
    what: _Text
    where: _Text
    fix: _Text


Question = (
    Prepare
    | Inspect
    | Open
    | Train
    | TrainPrivately
    | PrivateSum
    | Evaluate
    | Count
    | Key
    | BrokerSays
    | EvidenceGiven
)
Answer = Confined | Facts | KeyWanted | BrokerAsk | EvidenceWanted | Vector | Integers | Sums | Failed

encode = msgspec.msgpack.Encoder().encode
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def as_bytes(values: NDArray[Any]) -> memoryview:
    """Return an array of float64, float32 or int64 as a message carries it, little-endian, where it lies."""
    whole = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return as_field(memoryview(whole.data).cast("B"))


def encode_large(message: Question | Answer) -> bytes | Joined:
    """Return the msgpack bytes of a message; a large array in it stays where it lies until it has travelled,
    and must not change."""
    return encode_around(message)


def decode_question(data: Buffer) -> Question:
    """Return what a site asks. Raises ProtocolError where it is nothing a site asks."""
    try:
        return _questions.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("sent a worker what it does not understand") from error


def decode_answer(data: Buffer) -> Answer:
    """Return what a worker answers. Raises ProtocolError where it is nothing a worker answers."""
    try:
        return _answers.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError("the worker answered what nobody understands") from error
