"""The caller's side of a walled prediction: what is sent when, what is lent, what is believed of an error.

Keys are lent for the one dataset that was asked about, as often as its columns can need; a worker that asks
for others, or for any where its rows are a file, has ended the session. Where a user's code ran in it, that
code may have chosen what it says, so words of an error are not passed on: of a row that breaks the schema
line and column are told, of anything else its kind.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.crypto import Buffer, Identity
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    SchemaError,
)
from cloister.inference.artifact import ModelArtifact
from cloister.inference.walledmessages import (
    MAX_ANSWER,
    PROTOCOL,
    Failed,
    Predicted,
    Ready,
    Said,
    decode,
)
from cloister.runtime.workers import asking
from cloister.runtime.workers.asking import Lends, given, meet
from cloister.runtime.workers.channel import Channel, Gone
from cloister.runtime.workers.messages import (
    Prepare,
    encode,
)
from cloister.runtime.workers.session import Running
from cloister.text import printable

__all__ = ["answered", "error_of", "met", "silent_error_of"]

_MAX_MESSAGE: Final = MAX_ANSWER + (4 << 20)
_MAX_LINE: Final = 1 << 53
_SILENT: Final[dict[str, tuple[type[CloisterError], str, str]]] = {
    "InputError": (
        InputError,
        "the model's file does not run as its plan needs, or the rows cannot be read",
        "Try the file on rows of your own making",
    ),
    "IntegrityError": (
        IntegrityError,
        "the module does not start as the plan pinned it, or the rows are not as they were signed or sealed",
        "Use the version of torch, and the files, that the study was run with",
    ),
    "PolicyRefused": (PolicyRefused, "the rows may not be opened", "See what they were added for"),
}
_ANYTHING: Final = (PlanError, "the model's code failed", "Try the file on rows of your own making")

_said: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def met(running: Running, identity: Identity, prepare: Prepare) -> Channel:
    """Return the channel to a worker whose walls stand. Raises Gone, PolicyRefused, ProtocolError."""
    try:
        _, channel = meet(running.socket, identity, PROTOCOL)
        channel.send(encode(prepare))
        ready = decode(_said, _received(channel))
    except Gone:
        raise running.refusal() from None
    except (InputError, IntegrityError) as error:
        raise ProtocolError(f"no session with the worker: {error.what}") from error
    if not isinstance(ready, Ready):
        raise ProtocolError("the worker answered before its walls stood")
    return channel


def answered(channel: Channel, task: bytes, lender: Lends | None) -> Predicted | Failed:
    """Return the answer, having lent what keys it takes. Raises Gone, ProtocolError, and as the lender."""
    channel.send(task)
    while True:
        said = decode(_said, _received(channel))
        if isinstance(said, Predicted | Failed):
            return said
        if isinstance(said, Ready) or lender is None or said.dataset != 0:
            raise ProtocolError("the worker asked for a key that nothing it was asked needs")
        channel.send(encode(given(lender, said)))


def _received(channel: Channel) -> Buffer:
    try:
        return channel.receive(_MAX_MESSAGE)
    except IntegrityError as error:
        raise ProtocolError(f"the worker's answer does not verify: {error.what}") from error


def error_of(failed: Failed) -> CloisterError:
    """Return what a worker without a user's code ran into, in its words."""
    if failed.kind == SchemaError.__name__:
        column = None if failed.column is None else printable(failed.column)
        return SchemaError(printable(failed.what), line=failed.line, column=column, fix=printable(failed.fix))
    return asking.error_of(failed.kind, failed.what, failed.where, failed.fix)


def silent_error_of(failed: Failed, artifact: ModelArtifact) -> CloisterError:
    """Return an error in words of this side's own: a user's code may have chosen the worker's."""
    columns = artifact.card.features.columns
    if failed.kind == SchemaError.__name__ and (failed.line or 0) <= _MAX_LINE:
        column = failed.column if failed.column in columns else None
        return SchemaError("a row breaks the schema", line=failed.line, column=column, fix="Correct the row")
    kind, what, fix = _SILENT.get(failed.kind, _ANYTHING)
    return kind(what, where="worker; its own words could hold values and are not shown", fix=fix)
