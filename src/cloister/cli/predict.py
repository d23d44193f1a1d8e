"""`cloister predict MODEL FILE --to KEY`: sealed rows in, sealed predictions out.

1. The release is verified against the identities that this home trusts, unless `--unverified` is spelled out.
2. The model is opened in memory only, where it is sealed to this home's identity.
3. A walled worker, which gets the key of a sealed file's content and no other, opens the rows in memory,
   checks every one against the model's schema, predicts, and seals the predictions to their readers, unless
   `--plaintext` is spelled out. This process has the home's keys and opens neither.
4. What came back is written as one step.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cloister.cli.common import JsonOption, emit, load_identity, resolve_identity, say
from cloister.cli.verify import TrustOption, trust_anchors
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError, SchemaError
from cloister.files import read_bytes, write_atomic

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.inference import ModelArtifact

__all__ = ["predict"]

_ROWS_LIMIT = 1 << 30


class Format(enum.StrEnum):
    """What the predictions are written as."""

    CSV = "csv"
    PARQUET = "parquet"


class _Answer(NamedTuple):
    """The predictions' bytes, sealed where they have readers; how many, and their columns' names."""

    content: bytes
    rows: int
    columns: list[str]


def predict(
    model: Annotated[Path, typer.Argument(help="The release.", show_default=False)],
    file: Annotated[
        Path, typer.Argument(help="Rows: CSV, Parquet, or either sealed to you.", show_default=False)
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="Who shall read the predictions: a trusted name or an exported identity; may be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write.", show_default=False)] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="What the predictions are written as.")
    ] = Format.CSV,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help='Rows to scale by, for a model trained with scaling = "local".',
            show_default=False,
        ),
    ] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Write the predictions unencrypted.")
    ] = False,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Use the model without verifying its release.")
    ] = False,
    trust: TrustOption = None,
    worker: WorkerOption = Where.SANDBOXED,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict with a released model: sealed rows in, sealed answers out."""
    if bool(to) == plaintext:
        raise InputError(
            "predictions are sealed or unencrypted, not both" if plaintext else "predictions need a reader",
            fix="Name one with --to, or write --plaintext to have them unencrypted",
        )
    target = out or file.with_name(f"{file.name}.predictions.{output_format}{'' if plaintext else '.sealed'}")
    if target.exists() and (not force or (file.exists() and target.samefile(file))):
        raise InputError(
            "the target exists", where=str(target), fix="Choose another one with --out, or use --force"
        )
    readers = [resolve_identity(name) for name in to or []]
    artifact = _model(model, trust, unverified)
    work = _walled if is_sandboxed(worker) else _inside
    answer = work(artifact, file, reference, output_format, None if plaintext else readers)
    write_atomic(target, answer.content, mode=0o600)
    names = ", ".join(reader.name for reader in readers)
    result = {
        "out": str(target),
        "rows": answer.rows,
        "columns": answer.columns,
        "sealed_to": [reader.fingerprint for reader in readers],
        "verified": not unverified,
    }
    where = f"in {target}, unencrypted" if plaintext else f"in {target}, sealed to {names}"
    emit(result, as_json=as_json, text=f"{answer.rows} predictions are {where}.")


def _model(folder: Path, trust: list[Path] | None, unverified: bool) -> ModelArtifact:
    """Return the model, from the very bytes that were verified."""
    from cloister.crypto import open_bytes
    from cloister.governance import verify_release
    from cloister.governance.folder import MODEL, SEALED_MODEL, read_release
    from cloister.inference import ModelArtifact

    if unverified:
        say(
            "The release is NOT verified: nothing says who made this model, "
            "or that it is the one that was released."
        )
        files = read_release(folder)
        if MODEL not in files and SEALED_MODEL not in files:
            raise InputError(
                "the folder holds no model", where=str(folder), fix="Give the folder of a release"
            )
        reader = load_identity() if SEALED_MODEL in files else None
    else:
        reader = load_identity() if (folder / SEALED_MODEL).exists() else None
        verdict = verify_release(folder, trust_anchors(trust), reader=reader)
        verdict.require()
        files = dict(verdict.files)
    data = files[MODEL] if reader is None else open_bytes(files[SEALED_MODEL], reader)
    return ModelArtifact.from_bytes(data)


def _walled(
    artifact: ModelArtifact,
    file: Path,
    reference: Path | None,
    output_format: Format,
    readers: list[PublicIdentity] | None,
) -> _Answer:
    """Have a walled worker predict."""
    from cloister.inference.walled import predict_walled, rows_of

    given = [rows_of(_existing(each), load_identity) for each in (reference, file) if each is not None]
    answer = predict_walled(
        artifact,
        given[-1],
        reference=given[0] if reference is not None else None,
        output_format=output_format.value,
        readers=readers,
    )
    return _Answer(bytes(answer.content), answer.rows, answer.columns)


def _inside(
    artifact: ModelArtifact,
    file: Path,
    reference: Path | None,
    output_format: Format,
    readers: list[PublicIdentity] | None,
) -> _Answer:
    """Predict in this process."""
    from cloister.crypto import seal_bytes
    from cloister.inference import Predictor
    from cloister.inference.predictor import encoded

    predictor = Predictor.of(artifact)
    if reference is not None:
        with _rows(reference) as path:
            predictor = predictor.fit_file(path)
    with _rows(file) as path:
        predictions = predictor.predict_file(path)
    content = encoded(predictions, output_format.value)
    sealed = content if readers is None else seal_bytes(content, readers)
    return _Answer(sealed, predictions.num_rows, predictions.column_names)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise InputError("there is no such file of rows", where=str(file), fix="Check the path")
    return file


@contextlib.contextmanager
def _rows(file: Path) -> Iterator[Path]:
    """Yield a path to read the rows from: the file itself, or its opened content, which never touches a
    disk."""
    from cloister.crypto import open_bytes, sealed_recipients
    from cloister.inference import in_memory_file

    _existing(file)
    try:
        sealed_recipients(file)
    except InputError:
        yield file
        return
    opened = open_bytes(read_bytes(file, limit=_ROWS_LIMIT, what="sealed rows"), load_identity())
    with in_memory_file(opened) as path:
        try:
            yield path
        except SchemaError:
            raise
        except InputError as error:
            raise InputError(error.what, where=f"in {file}", fix=error.fix) from error
