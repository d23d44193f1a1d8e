"""What runs in the process of a walled prediction: `spawn` isolates it and starts this module.

1. A session opens; what is needed is imported, torch too where it will be; then every wall goes up. No row,
   no key and no code of a user's was here before.
2. One `Task` is taken: a user's code, if there is any, is run, a language model's base is read where it lies;
   rows are opened, a file in the scratch space
   or a dataset where it lies; answers are computed, encoded, and sealed to their readers.
3. One answer goes back, and the process ends, its memory with it.

The scratch space is memory of this process's own and ends with it. An error of ours goes back as class and
text, any other as its class's name alone: its text may hold values. Whether a user's code chose the words is
for the other side to think of.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import PublicIdentity, open_with_content_key, seal_bytes, sha256
from cloister.enclave.broker import Wanted
from cloister.enclave.sandbox import confine
from cloister.errors import CloisterError, InputError, SchemaError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.predictor import Predictor, RowPredictor, encoded
from cloister.inference.released import artifact_from_bytes, needed_base
from cloister.inference.rowgroups import scored
from cloister.inference.torchpredict import torch_predictor
from cloister.inference.walledmessages import (
    MAX_ANSWER,
    MAX_CONTENT,
    MAX_TASK,
    PROTOCOL,
    DatasetRows,
    Failed,
    Plaintext,
    Predicted,
    Ready,
    Rows,
    Task,
    decode,
)
from cloister.runtime.workers.answering import brokered, lent, met
from cloister.runtime.workers.channel import Channel, Gone
from cloister.runtime.workers.messages import Prepare, encode
from cloister.vault import open_manifest
from cloister.vault.handover import OpenDataKey, open_handed

__all__ = ["main", "serve"]

_CHANNEL: Final = 3  # where `spawn` puts this end of the pair
_MAX_TEXT: Final = 6000

_prepare: msgspec.msgpack.Decoder[Prepare] = msgspec.msgpack.Decoder(Prepare)
_task: msgspec.msgpack.Decoder[Task] = msgspec.msgpack.Decoder(Task)


def main() -> None:
    """Serve one task behind walls. Raises PolicyRefused where the machine lacks one."""
    serve(socket.socket(fileno=_CHANNEL), lambda read: confine(read=read).scratch)


def serve(sock: socket.socket, wall: Callable[[list[Path]], Path]) -> None:
    """Answer one task.

    Args:
        sock: the caller's channel.
        wall: puts the walls up around this process, but for folders to read; returns the one folder it may
            write to.

    Raises:
        ProtocolError, IntegrityError: the other end does not speak this protocol.
        PolicyRefused: as `wall`.
    """
    try:
        caller, _, channel = met(sock, PROTOCOL)
        scratch = _prepared(decode(_prepare, channel.receive()), wall)  # 1
        channel.send(encode(Ready()))
        channel.send(encode(_Work(channel, caller, scratch).answer()))  # 2, 3
        channel.receive()  # the answer travels meanwhile; the caller ends this
    except Gone:
        return


def _prepared(prepare: Prepare, wall: Callable[[list[Path]], Path]) -> Path:
    """Return the scratch space, once the walls stand."""
    if prepare.imports == "torch":
        with contextlib.suppress(ImportError):  # `torch_predictor` says so
            import cloister.learning.torch  # noqa: F401  # later its files may be out of reach
    elif prepare.imports == "language":
        from cloister.inference.language.load import preload_adapted

        with contextlib.suppress(InputError):  # `LanguagePredictor` says so
            preload_adapted()
    scratch = wall([Path(each) for each in prepare.read])
    if prepare.imports != "nothing":
        with contextlib.suppress(ImportError):
            from cloister.learning.torch import use_threads

            use_threads(prepare.threads)
    return scratch


class _Work:
    """One task.

    Args:
        channel: to the caller.
        owner: the caller, whose signature on a dataset's manifest counts.
        scratch: a folder to write to.
    """

    def __init__(self, channel: Channel, owner: PublicIdentity, scratch: Path) -> None:
        self._channel, self._owner, self._scratch = channel, owner, scratch

    def answer(self) -> Predicted | Failed:
        """Take the task; return what comes of it. Raises Gone."""
        try:
            return self.predicted(decode(_task, self._channel.receive(MAX_TASK)))
        except Gone:
            raise
        except SchemaError as error:
            column = None if error.column is None else _short(error.column)
            texts = (_short(error.what), _short(error.where), _short(error.fix))
            return Failed("SchemaError", *texts, error.line, column)
        except CloisterError as error:
            texts = (_short(error.what), _short(error.where), _short(error.fix))
            return Failed(type(error).__name__, *texts)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends here, without its text
            return Failed(type(error).__name__[:64], "the work failed inside the worker", "", "")

    def predicted(self, task: Task) -> Predicted:
        """Return the answers to a task. Raises CloisterError."""
        predictor = self._predictor(task)
        if task.reference is not None:
            with _file(task.reference, self._scratch) as path:
                predictor = predictor.fit_file(path)
        if isinstance(task.rows, DatasetRows):
            content, rows = self._of_dataset(task.rows, predictor, task)
        else:
            with _file(task.rows, self._scratch) as path:
                predictions = predictor.predict_file(path)
            content, rows = encoded(predictions, task.format), predictions.num_rows
        if task.readers != Plaintext:
            content = seal_bytes(content, [PublicIdentity.from_json(each) for each in task.readers])
        if len(content) > MAX_ANSWER:
            raise InputError(
                f"the predictions are larger than {MAX_ANSWER >> 20} MiB", fix="Split the file of rows"
            )
        return Predicted(memoryview(content), rows, list(predictor.columns))

    def _predictor(self, task: Task) -> RowPredictor:
        artifact = artifact_from_bytes(bytes(task.model))
        if isinstance(artifact, AdapterArtifact):
            from cloister.inference.language.answers import LanguagePredictor
            from cloister.learning.modelfiles.files import PlainFolder

            most, scratch = task.tokens, self._scratch
            with contextlib.closing(PlainFolder(Path(needed_base(artifact, task.base)))) as files:
                return LanguagePredictor.of(artifact, files, most=most, scratch=scratch, device="cpu")
        if task.code is None:
            return Predictor.of(artifact)
        return torch_predictor(artifact, task.code, scratch=self._scratch)

    def _of_dataset(self, rows: DatasetRows, predictor: RowPredictor, task: Task) -> tuple[bytes, int]:
        place = rows.place
        data_key = lent(self._channel) if place.broker is None else self._brokered(rows, place.broker)
        folder = Path(place.folder)
        with open_handed(
            folder, place.envelope, self._owner, purpose=rows.purpose, data_key=data_key
        ) as dataset:
            return scored(dataset, predictor, task.format)

    def _brokered(self, rows: DatasetRows, broker: bytes) -> OpenDataKey:
        """Return what asks a broker for data keys, which are sealed to this process."""
        envelope = rows.place.envelope
        kek_id = open_manifest(envelope, self._owner).kek_id
        wanted = Wanted(kek_id, sha256(envelope).hex(), None, rows.purpose)
        return brokered(self._channel, PublicIdentity.from_json(broker), wanted)


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
