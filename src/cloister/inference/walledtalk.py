"""The caller's side of a walled prediction: what is sent when, what is lent, what is believed of an error.

Keys are lent for the one dataset that was asked about, as often as its columns can need; a worker that asks
for others, or for any where its rows are a file, has ended the session. Where a user's code ran in it, that
code may have chosen what it says, so words of an error are not passed on: of a row that breaks the schema
line and column are told, of anything else its kind.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.crypto import Buffer, Identity, PublicIdentity
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    SchemaError,
    StorageError,
    VerificationError,
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
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.messages import (
    BrokerAsk,
    EvidenceWanted,
    Key,
    KeyWanted,
    Meet,
    Prepare,
    Question,
    encode,
)
from cloister.runtime.workers.session import Lends, Running

__all__ = ["answered", "error_of", "met", "silent_error_of"]

_MAX_MESSAGE: Final = MAX_ANSWER + (4 << 20)
_MAX_IDENTITY: Final = 16 << 10
_MAX_LINE: Final = 1 << 53
_START_SECONDS: Final = 120.0
_ERRORS: Final = {
    cls.__name__: cls
    for cls in (InputError, IntegrityError, PlanError, PolicyRefused, StorageError, VerificationError)
}
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
        send_clear(running.socket, encode(Meet(identity.public.to_json(), PROTOCOL)))
        worker = PublicIdentity.from_json(recv_clear(running.socket, _MAX_IDENTITY, _START_SECONDS))
        link = Link(identity, worker, PROTOCOL, initiator=True, auto_grant=False)
        channel = Channel(link, running.socket)
        channel.open(_START_SECONDS)
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
        channel.send(encode(_lent(lender, said)))


def _received(channel: Channel) -> Buffer:
    try:
        return channel.receive(_MAX_MESSAGE)
    except IntegrityError as error:
        raise ProtocolError(f"the worker's answer does not verify: {error.what}") from error


def _lent(lender: Lends, said: KeyWanted | BrokerAsk | EvidenceWanted) -> Question:
    match said:
        case KeyWanted():
            return Key(lender.lend(said.wrapped))
        case BrokerAsk():
            return lender.carry(said)
        case EvidenceWanted():
            return lender.attest(said)


def error_of(failed: Failed) -> CloisterError:
    """Return what a worker without a user's code ran into, in its words."""
    what, where, fix = (_line(text) for text in (failed.what, failed.where, failed.fix))
    if failed.kind == SchemaError.__name__:
        column = None if failed.column is None else _line(failed.column)
        return SchemaError(what, line=failed.line, column=column, fix=fix)
    if failed.kind not in _ERRORS:
        return ProtocolError(f"{what} ({_line(failed.kind)})", fix=fix)
    return _ERRORS[failed.kind](what, where=where, fix=fix)


def silent_error_of(failed: Failed, artifact: ModelArtifact) -> CloisterError:
    """Return an error in words of this side's own: a user's code may have chosen the worker's."""
    columns = artifact.card.features.columns
    if failed.kind == SchemaError.__name__ and (failed.line or 0) <= _MAX_LINE:
        column = failed.column if failed.column in columns else None
        return SchemaError("a row breaks the schema", line=failed.line, column=column, fix="Correct the row")
    kind, what, fix = _SILENT.get(failed.kind, _ANYTHING)
    return kind(what, where="worker; its own words could hold values and are not shown", fix=fix)


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
