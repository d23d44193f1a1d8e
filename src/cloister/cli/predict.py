"""`cloister predict MODEL FILE --to KEY`: sealed rows in, sealed predictions out.

1. The release is verified against the identities that this home trusts, unless `--unverified` is spelled out.
2. The model and the rows are opened in memory only, where they are sealed to this home's identity.
3. Every row is checked against the model's schema.
4. The predictions are sealed to their readers, unless `--plaintext` is spelled out, and written as one step.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.common import JsonOption, emit, load_identity, resolve_identity, say
from cloister.cli.verify import TrustOption, trust_anchors
from cloister.errors import InputError, SchemaError
from cloister.files import read_bytes, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from cloister.inference import ModelArtifact

__all__ = ["predict"]

_ROWS_LIMIT = 1 << 30


class Format(enum.StrEnum):
    """What the predictions are written as."""

    CSV = "csv"
    PARQUET = "parquet"


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
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict with a released model: sealed rows in, sealed answers out."""
    from cloister.crypto import seal_bytes
    from cloister.inference import Predictor

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
    predictor = Predictor.of(_model(model, trust, unverified))
    if reference is not None:
        with _rows(reference) as path:
            predictor = predictor.fit_file(path)
    with _rows(file) as path:
        predictions = predictor.predict_file(path)
    content = _encode(predictions, output_format)
    write_atomic(target, content if plaintext else seal_bytes(content, readers), mode=0o600)
    names = ", ".join(reader.name for reader in readers)
    result = {
        "out": str(target),
        "rows": predictions.num_rows,
        "columns": predictions.column_names,
        "sealed_to": [reader.fingerprint for reader in readers],
        "verified": not unverified,
    }
    where = f"in {target}, unencrypted" if plaintext else f"in {target}, sealed to {names}"
    emit(result, as_json=as_json, text=f"{predictions.num_rows} predictions are {where}.")


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


@contextlib.contextmanager
def _rows(file: Path) -> Iterator[Path]:
    """Yield a path to read the rows from: the file itself, or its opened content, which never touches a
    disk."""
    from cloister.crypto import open_bytes, sealed_recipients
    from cloister.inference import in_memory_file

    if not file.is_file():
        raise InputError("there is no such file of rows", where=str(file), fix="Check the path")
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


def _encode(table: pa.Table, output_format: Format) -> bytes:
    import io

    import pyarrow.csv
    import pyarrow.parquet

    buffer = io.BytesIO()
    if output_format is Format.CSV:
        pyarrow.csv.write_csv(table, buffer)
    else:
        pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
