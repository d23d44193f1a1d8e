"""Predictions from a walled worker, for a process that has keys and is to see neither rows nor answers.

    caller                    worker (`walledprocess`, behind the walls of `cloister.enclave.sandbox`)
    Meet                  ->                  in the clear: an identity made for this one task
                          <-  an identity     made for this process
    (a session of `runtime.link` opens between the two; what follows travels in it)
    Task                  ->
                          <-  Predicted, or Failed; then it ends

Sealed rows cross as they are in the file, with the key of that file's content; the home's own keys stay with
the caller. Rows of a file that is not sealed pass through the caller unread. The worker opens, predicts and
seals to the readers; what comes back must have the model's columns and be a sealed file that names exactly
those readers. That its content is what the model says, and is encrypted, is for the worker to get right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from cloister.crypto import Buffer, Identity, PublicIdentity, open_content_key, sealed_recipients, sha256
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
from cloister.files import read_bytes
from cloister.inference.artifact import ModelArtifact
from cloister.inference.predictor import Predictor
from cloister.inference.tensors import MODEL_LIMIT
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.messages import Meet, encode
from cloister.runtime.workers.session import Running, StartWorker

__all__ = [
    "MAX_ANSWER",
    "MAX_CONTENT",
    "MAX_TASK",
    "MODULE",
    "PROTOCOL",
    "Failed",
    "Plaintext",
    "Predicted",
    "Rows",
    "Task",
    "decode",
    "predict_walled",
    "rows_of",
    "start_worker",
]

MODULE: Final = "cloister.inference.walledprocess"
PROTOCOL: Final = sha256(b"cloister walled prediction v1")
"""What the session is bound to, 32 bytes."""
MAX_CONTENT: Final = 240 << 20
"""Bytes of rows in one file; they lie in the worker's scratch space, which has 256 MiB."""
MAX_ANSWER: Final = 1 << 30
"""Bytes of predictions."""
MAX_TASK: Final = 1 << 30
"""Bytes of a task: the model and two files of rows."""
_MAX_FILE: Final = MAX_CONTENT + (8 << 20)  # header and tags of a sealed file
_MAX_MESSAGE: Final = MAX_ANSWER + (4 << 20)
_MAX_IDENTITY: Final = 16 << 10
_START_SECONDS: Final = 120.0
_ERRORS: Final = {
    cls.__name__: cls
    for cls in (InputError, IntegrityError, PlanError, PolicyRefused, StorageError, VerificationError)
}

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


class Rows(_Message, frozen=True):
    """A file of rows: its bytes as they are, the key of its content where it is sealed, and its name, for
    what is said of it."""

    data: Annotated[memoryview, msgspec.Meta(max_length=_MAX_FILE)]
    content_key: _Bytes32 | None
    name: _Name


class Task(_Message, frozen=True, tag=True):
    """Predict `rows` with the model whose file is `model`, scaled by `reference` where that is given.
    `readers` are public identities (JSON)."""

    model: Annotated[memoryview, msgspec.Meta(max_length=MODEL_LIMIT)]
    rows: Rows
    reference: Rows | None
    format: Literal["csv", "parquet"]
    readers: Annotated[list[_Identity], msgspec.Meta(min_length=1, max_length=1000)] | Literal["plaintext"]


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


_answers: msgspec.msgpack.Decoder[Predicted | Failed] = msgspec.msgpack.Decoder(Predicted | Failed)


def rows_of(file: Path, identity: Callable[[], Identity]) -> Rows:
    """Return a file of rows as a task takes it; none of a sealed one is opened.

    Args:
        file: CSV, Parquet, or either sealed.
        identity: loads the recipient's keys; called where the file is sealed.

    Raises:
        InputError: it cannot be read, is too large, or is not sealed to this identity.
        IntegrityError: its header was altered.
    """
    if file.is_file() and file.stat().st_size > _MAX_FILE:
        raise InputError(
            f"a walled worker takes files of rows up to {MAX_CONTENT >> 20} MiB",
            where=str(file),
            fix="Split it; or, if you accept that rows are read beside your keys: --worker inside",
        )
    data = read_bytes(file, limit=_MAX_FILE, what="rows")
    name = str(file).encode("utf-8", "replace").decode()
    try:
        sealed_recipients(data)
    except InputError:
        return Rows(memoryview(data), None, name)
    return Rows(memoryview(data), open_content_key(data, identity()), name)


def start_worker() -> Running:
    """Start the walled worker's process."""
    return sandbox(MODULE)()


def predict_walled(
    artifact: ModelArtifact,
    rows: Rows,
    *,
    reference: Rows | None = None,
    output_format: Literal["csv", "parquet"],
    readers: Sequence[PublicIdentity] | None,
    start: StartWorker = start_worker,
) -> Predicted:
    """Have a walled worker predict; it lives for this call.

    Args:
        artifact: the model, as it was verified.
        rows: what to predict.
        reference: rows to scale by.
        output_format: what the predictions are written as.
        readers: to whom the worker seals them; None: nobody, they come back in the open.
        start: starts the worker.

    Raises:
        PolicyRefused: the machine lacks a wall.
        ProtocolError: the worker ended, or answered what it was not asked.
        CloisterError: what the worker ran into: `SchemaError` with line and column, and its like.
    """
    names = list(Predictor.of(artifact).columns)
    people: list[bytes] | Literal["plaintext"] = (
        Plaintext if readers is None else [each.to_json() for each in readers]
    )
    model = memoryview(artifact.to_bytes())
    task = encode(Task(model, rows, reference, output_format, people))
    running = start()
    try:
        answer: Predicted | Failed = decode(_answers, _asked(running, task))
    except Gone:
        why = running.why()
        raise ProtocolError(
            f"the worker ended before its work was done{f' ({why})' if why else ''}",
            fix="See whether the machine ran out of memory; start again",
        ) from None
    finally:
        running.close()
    if isinstance(answer, Failed):
        raise _error(answer)
    if answer.columns != names:
        raise ProtocolError("the worker answered with other columns than the model has")
    if readers is not None:
        _check_sealed(answer.content, readers)
    return answer


def decode(decoder: msgspec.msgpack.Decoder[Any], data: Buffer) -> Any:
    """Return a message. Raises ProtocolError where it is none of the decoder's."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError("the other process said what nobody understands") from error


def _asked(running: Running, task: bytes) -> Buffer:
    """Return the worker's answer, undecoded. Raises Gone, PolicyRefused, ProtocolError."""
    identity = Identity.generate("caller")
    try:
        send_clear(running.socket, encode(Meet(identity.public.to_json(), PROTOCOL)))
        worker = PublicIdentity.from_json(recv_clear(running.socket, _MAX_IDENTITY, _START_SECONDS))
        link = Link(identity, worker, PROTOCOL, initiator=True, auto_grant=False)
        channel = Channel(link, running.socket)
        channel.open(_START_SECONDS)
    except Gone:
        raise running.refusal() from None
    except (InputError, IntegrityError) as error:
        raise ProtocolError(f"no session with the worker: {error.what}") from error
    channel.send(task)
    try:
        return channel.receive(_MAX_MESSAGE)
    except IntegrityError as error:
        raise ProtocolError(f"the worker's answer does not verify: {error.what}") from error


def _check_sealed(content: memoryview, readers: Sequence[PublicIdentity]) -> None:
    """Raise ProtocolError unless these bytes are a file sealed to these readers and nobody else."""
    try:
        named = sealed_recipients(bytes(content))
    except (InputError, IntegrityError):
        named = ()
    if named != tuple(dict.fromkeys(each.fingerprint for each in readers)):
        raise ProtocolError("the worker's answer is not sealed to the readers")


def _error(failed: Failed) -> CloisterError:
    what, where, fix = (_line(text) for text in (failed.what, failed.where, failed.fix))
    if failed.kind == SchemaError.__name__:
        column = None if failed.column is None else _line(failed.column)
        return SchemaError(what, line=failed.line, column=column, fix=fix)
    if failed.kind not in _ERRORS:
        return ProtocolError(f"{what} ({_line(failed.kind)})", fix=fix)
    return _ERRORS[failed.kind](what, where=where, fix=fix)


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
