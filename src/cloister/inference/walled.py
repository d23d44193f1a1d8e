"""Predictions in a walled worker: rows are opened, and answers sealed, in a process of their own.

What goes in: the model that was verified here; rows as they lie on the disk, with, where they are sealed, the
key of that file's content and no other, or a dataset's folder, whose data keys are lent one by one; to whom
the answers go; of a model that is code of a user's own, that file; and where a language model's base lies,
which the worker can read and not write. What comes back: the answers, sealed.
The process that has the home's keys opens neither. Rows given unsealed pass through it, and so do answers
that are asked for with `--plaintext`.

The worker is believed no more than it must be: its answer has a bound, is parsed strictly, must be of the
model's columns, and must be a file that is sealed to exactly the readers. That the answers are right, and the
file encrypted, is for the worker to get right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from cloister.crypto import Identity, PublicIdentity, open_content_key, sealed_recipients
from cloister.errors import InputError, IntegrityError, ProtocolError
from cloister.files import read_bytes
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.released import Artifact, columns_of, needed_base
from cloister.inference.torchpredict import allowed_code
from cloister.inference.walledmessages import (
    MAX_CONTENT,
    MAX_FILE,
    DatasetRows,
    Failed,
    Plaintext,
    Predicted,
    Rows,
    Task,
)
from cloister.inference.walledtalk import answered, error_of, met, silent_error_of
from cloister.runtime.workers.asking import Lends, ended
from cloister.runtime.workers.channel import Gone
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.messages import Imports, Prepare, encode
from cloister.runtime.workers.session import Running, StartWorker, threads

__all__ = ["MODULE", "MOST_TOKENS", "asked", "predict_walled", "rows_of", "start_worker"]

MODULE: Final = "cloister.inference.walledprocess"
MOST_TOKENS: Final = 128
"""Tokens of an answer, unless told otherwise."""


def rows_of(file: Path, identity: Callable[[], Identity]) -> Rows:
    """Return a file of rows as a task takes it; none of a sealed one is opened.

    Args:
        file: CSV, Parquet, or either sealed.
        identity: loads the recipient's keys; called where the file is sealed.

    Raises:
        InputError: it cannot be read, is too large, or is not sealed to this identity.
        IntegrityError: its header was altered.
    """
    if file.is_file() and file.stat().st_size > MAX_FILE:
        raise InputError(
            f"a walled worker takes files of rows up to {MAX_CONTENT >> 20} MiB",
            where=str(file),
            fix="Split it, or add it to your vault and use --dataset; or, if you accept that rows are read "
            "beside your keys: --worker inside",
        )
    data = read_bytes(file, limit=MAX_FILE, what="rows")
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
    artifact: Artifact,
    rows: Rows,
    *,
    reference: Rows | None = None,
    output_format: Literal["csv", "parquet"],
    readers: Sequence[PublicIdentity] | None,
    code: bytes | None = None,
    base: Path | None = None,
    tokens: int = MOST_TOKENS,
    start: StartWorker = start_worker,
) -> Predicted:
    """Have a walled worker predict; it lives for this call.

    Args:
        artifact: the model, as it was verified.
        rows: what to predict.
        reference: rows to scale by.
        output_format: what the predictions are written as.
        readers: to whom the worker seals them; None: nobody, they come back in the open.
        code: the file of a model that is a module of a user's own, who has read and allows it.
        base: folder of a language model's base; None for other models.
        tokens: of an answer at most, where the model writes.
        start: starts the worker.

    Raises:
        PolicyRefused: the machine lacks a wall; or the model is code that was not allowed.
        IntegrityError: the code is not the plan's.
        ProtocolError: the worker ended, or answered what it was not asked.
        CloisterError: what the worker ran into: `SchemaError` with line and column, and its like.
    """
    return asked(
        artifact, rows, reference, output_format, readers, code, base=base, tokens=tokens, start=start
    )


def asked(
    artifact: Artifact,
    rows: Rows | DatasetRows,
    reference: Rows | None,
    output_format: Literal["csv", "parquet"],
    readers: Sequence[PublicIdentity] | None,
    code: bytes | None,
    *,
    base: Path | None = None,
    tokens: int = MOST_TOKENS,
    identity: Identity | None = None,
    lender: Lends | None = None,
    start: StartWorker,
) -> Predicted:
    """Have a worker predict rows of either kind: of a dataset with its owner's identity, and who lends keys.

    Raises:
        CloisterError: as `predict_walled`; of a dataset also what its lender raises.
    """
    code = allowed_code(artifact, code)
    names = list(columns_of(artifact))
    people: list[bytes] | Literal["plaintext"] = (
        Plaintext if readers is None else [each.to_json() for each in readers]
    )
    model = memoryview(artifact.to_bytes())
    folders = [rows.place.folder] if isinstance(rows, DatasetRows) else []
    imports: Imports = "nothing" if code is None else "torch"
    place: str | None = None
    if isinstance(artifact, AdapterArtifact):
        place, imports = str(needed_base(artifact, base).resolve()), "language"
        folders.append(place)
    task = encode(Task(model, rows, reference, output_format, people, code, place, tokens))
    prepare = Prepare(folders, imports, 1 if imports == "nothing" else threads())
    running = start()
    try:
        channel = met(running, identity or Identity.generate("caller"), prepare)
        answer = answered(channel, task, lender)
    except Gone:
        raise ended("its work was done", running.why()) from None
    finally:
        running.close()
    if isinstance(answer, Failed):
        if code is None or isinstance(artifact, AdapterArtifact):
            raise error_of(answer)
        raise silent_error_of(answer, artifact)
    if answer.columns != names:
        raise ProtocolError("the worker answered with other columns than the model has")
    if readers is not None:
        _check_sealed(answer.content, readers)
    return answer


def _check_sealed(content: memoryview, readers: Sequence[PublicIdentity]) -> None:
    """Raise ProtocolError unless these bytes are a file sealed to these readers and nobody else."""
    try:
        named = sealed_recipients(bytes(content))
    except (InputError, IntegrityError):
        named = ()
    if named != tuple(dict.fromkeys(each.fingerprint for each in readers)):
        raise ProtocolError("the worker's answer is not sealed to the readers")
