"""What runs in the process of a walled prediction: `spawn` isolates it and starts this module.

1. What is needed is imported; then every wall goes up. No row and no key was here before.
2. One `Task` is taken: rows opened, answers computed, encoded, and sealed to their readers.
3. One answer goes back, and the process ends, its memory with it.

Rows lie as a file in the scratch space, which is memory of this process's own and ends with it. An error of
ours goes back as class and text, any other as its class's name alone: its text may hold values.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import Buffer, Identity, PublicIdentity, open_with_content_key, seal_bytes
from cloister.enclave.sandbox import confine
from cloister.errors import CloisterError, InputError, ProtocolError, SchemaError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.predictor import Predictor, encoded
from cloister.inference.walled import (
    MAX_ANSWER,
    MAX_CONTENT,
    MAX_TASK,
    PROTOCOL,
    Failed,
    Plaintext,
    Predicted,
    Rows,
    Task,
    decode,
)
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.messages import Meet, encode

__all__ = ["main", "serve"]

_CHANNEL: Final = 3  # where `spawn` puts this end of the pair
_MAX_MEET: Final = 64 << 10
_MAX_TEXT: Final = 6000

_meet: msgspec.msgpack.Decoder[Meet] = msgspec.msgpack.Decoder(Meet)
_task: msgspec.msgpack.Decoder[Task] = msgspec.msgpack.Decoder(Task)


def main() -> None:
    """Put the walls up and serve one task. Raises PolicyRefused where the machine lacks a wall."""
    scratch = confine(read=[]).scratch  # 1
    serve(socket.socket(fileno=_CHANNEL), scratch)


def serve(sock: socket.socket, scratch: Path) -> None:
    """Answer one task.

    Args:
        sock: the caller's channel.
        scratch: a folder for rows.

    Raises:
        ProtocolError, IntegrityError: the other end does not speak this protocol.
    """
    try:
        meet = decode(_meet, recv_clear(sock, _MAX_MEET, None))
        if meet.study != PROTOCOL:
            raise ProtocolError("asked a worker for something else than predictions")
        identity, caller = Identity.generate("worker"), PublicIdentity.from_json(meet.site)
        send_clear(sock, identity.public.to_json())
        link = Link(identity, caller, PROTOCOL, initiator=False, auto_grant=False)
        channel = Channel(link, sock)
        channel.send(encode(_answer(channel.receive(MAX_TASK), scratch)))  # 2, 3
        channel.receive()  # the answer travels meanwhile; the caller ends this
    except Gone:
        return


def _answer(data: Buffer, scratch: Path) -> Predicted | Failed:
    try:
        return _predicted(decode(_task, data), scratch)
    except SchemaError as error:
        column = None if error.column is None else _short(error.column)
        texts = (_short(error.what), _short(error.where), _short(error.fix))
        return Failed("SchemaError", *texts, error.line, column)
    except CloisterError as error:
        texts = (_short(error.what), _short(error.where), _short(error.fix))
        return Failed(type(error).__name__, *texts)
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends here, without its text
        return Failed(type(error).__name__[:64], "the work failed inside the worker", "", "")


def _predicted(task: Task, scratch: Path) -> Predicted:
    predictor = Predictor.of(ModelArtifact.from_bytes(bytes(task.model)))
    if task.reference is not None:
        with _file(task.reference, scratch) as path:
            predictor = predictor.fit_file(path)
    with _file(task.rows, scratch) as path:
        predictions = predictor.predict_file(path)
    content = encoded(predictions, task.format)
    if task.readers != Plaintext:
        content = seal_bytes(content, [PublicIdentity.from_json(each) for each in task.readers])
    if len(content) > MAX_ANSWER:
        raise InputError(
            f"the predictions are larger than {MAX_ANSWER >> 20} MiB", fix="Split the file of rows"
        )
    return Predicted(memoryview(content), predictions.num_rows, predictions.column_names)


@contextlib.contextmanager
def _file(rows: Rows, scratch: Path) -> Iterator[Path]:
    """Yield a path to read rows from, gone afterwards; what is said of it names the caller's file."""
    key = rows.content_key
    data = rows.data if key is None else open_with_content_key(bytes(rows.data), key)
    if len(data) > MAX_CONTENT:
        raise InputError(
            f"a walled worker takes rows up to {MAX_CONTENT >> 20} MiB",
            where=f"in {rows.name}",
            fix="Split the file; or, if you accept that rows are read beside your keys: --worker inside",
        )
    path = scratch / "rows"
    try:
        path.write_bytes(data)
        yield path
    except SchemaError:
        raise
    except InputError as error:
        where = error.where.replace(str(path), rows.name) if key is None else f"in {rows.name}"
        raise InputError(error.what, where=where, fix=error.fix) from error
    finally:
        path.unlink(missing_ok=True)


def _short(text: str) -> str:
    return text[:_MAX_TEXT]


if __name__ == "__main__":
    main()
