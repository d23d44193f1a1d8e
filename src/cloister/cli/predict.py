"""`cloister predict MODEL FILE --to KEY`: sealed rows in, sealed predictions out.

1. The release is verified against the identities that this home trusts, unless `--unverified` is spelled out.
2. The model is opened in memory only, where it is sealed to this home's identity. Of a model that is code the
   file must have been allowed, and have the hash that the plan named.
3. A walled worker, which gets the key of a sealed file's content and no other, opens the rows in memory,
   checks every one against the model's schema, predicts, and seals the predictions to their readers, unless
   `--plaintext` is spelled out. This process has the home's keys and opens neither.
4. What came back is written as one step.

A language model needs its base beside it (`--base DIR`), which the worker can read and not write: one that
tells classes answers as a model of tables does, one that writes gives a column of answers, each the most
probable one of at most `--tokens`.

With `--dataset NAME` the rows are those of the home's vault (`predictdataset`); with the address of a service
in the release's place a model is asked that is served there (`predictservice`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli.baseoption import BaseOption
from cloister.cli.common import JsonOption, emit, resolve_identity
from cloister.cli.modelexport import needs_base
from cloister.cli.predictfile import Answer, Asked, Format, of_file
from cloister.cli.predictservice import Service, is_service, of_service
from cloister.cli.releasedmodel import released_model
from cloister.cli.serviceoptions import (
    CaOption,
    ModelDigestOption,
    PolicyOption,
    ReceiptsOption,
    RelayOption,
    TokenOption,
)
from cloister.cli.verify import TrustOption
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError, PolicyRefused
from cloister.files import read_bytes, write_atomic
from cloister.types import check_name

if TYPE_CHECKING:
    from cloister.inference import Artifact

__all__ = ["predict"]

_CODE_LIMIT: Final = 1 << 20


def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="The release; or a service that serves one, such as https://models.example.",
            show_default=False,
        ),
    ],
    file: Annotated[
        Path | None, typer.Argument(help="Rows: CSV, Parquet, or either sealed to you.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Rows: a dataset of your vault, however large.", show_default=False),
    ] = None,
    purpose: Annotated[
        str | None,
        typer.Option(help="With --dataset: what for; needed where it has several purposes."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="Who shall read the predictions: a trusted name or an exported identity; may be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write.", show_default=False)] = None,
    output_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="What the predictions are written as. A spreadsheet computes a CSV's text after an =.",
        ),
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
    allow_user_code: Annotated[
        Path | None,
        typer.Option(
            "--allow-user-code",
            help="The Python file of a model that is code, which you have read and trust.",
            show_default=False,
        ),
    ] = None,
    base: BaseOption = None,
    tokens: Annotated[
        int,
        typer.Option("--tokens", min=1, max=1 << 20, help="Of an answer at most, where the model writes."),
    ] = 128,
    trust: TrustOption = None,
    policy: PolicyOption = None,
    token_file: TokenOption = None,
    relay: RelayOption = None,
    receipts: ReceiptsOption = None,
    model_digest: ModelDigestOption = "",
    tls_ca: CaOption = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="With a service: a column to send; repeat. Default: a file's, or a dataset's features.",
        ),
    ] = None,
    worker: WorkerOption = Where.SANDBOXED,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict with a released model, here or served: sealed rows in, sealed answers out."""
    if (file is None) == (dataset is None):
        raise InputError("predictions need rows", fix="Give either a file, or --dataset NAME")
    if dataset is None and purpose is not None:
        raise InputError("a file of rows has no purposes", fix="Leave --purpose out")
    _check_readers(to, plaintext=plaintext, dataset=dataset)
    service = Service(model, policy, token_file, relay, receipts, model_digest, tls_ca, tuple(column or ()))
    _check_options(
        service,
        here=bool(reference or unverified or allow_user_code or base or trust or worker is Where.INSIDE),
    )
    target = _target(out, file, dataset, output_format, plaintext=plaintext, force=force)
    people = [resolve_identity(name) for name in to or []]
    readers = None if plaintext else people
    rows = file if dataset is None else dataset
    assert rows is not None  # noqa: S101 - one of them is there
    if is_service(model):
        answer, about = of_service(service, rows, purpose, readers, output_format)
    else:
        artifact = released_model(Path(model), trust, unverified=unverified).artifact
        code = _allowed(artifact, allow_user_code)
        needs_base(artifact, base)
        asked = Asked(artifact, readers, output_format, reference, code, base, tokens)
        answer, about = _here(asked, rows, purpose, sandboxed=is_sandboxed(worker))
    write_atomic(target, answer.content, mode=0o600)
    names = ", ".join(reader.name for reader in people)
    result = {
        **about,
        "out": str(target),
        "rows": answer.rows,
        "columns": answer.columns,
        "sealed_to": [reader.fingerprint for reader in people],
        "verified": not unverified,
    }
    where = f"in {target}, unencrypted" if plaintext else f"in {target}, sealed to {names}"
    emit(result, as_json=as_json, text=f"{answer.rows} predictions are {where}.")


def _here(
    asked: Asked, rows: Path | str, purpose: str | None, *, sandboxed: bool
) -> tuple[Answer, dict[str, Any]]:
    """Return predictions with a release, and what there is to know of a dataset."""
    if isinstance(rows, Path):
        return of_file(asked, rows, sandboxed=sandboxed), {}
    from cloister.cli.predictdataset import of_dataset

    answer, wanted = of_dataset(asked, rows, purpose, sandboxed=sandboxed)
    return answer, {"dataset": rows, "purpose": wanted}


def _check_options(service: Service, *, here: bool) -> None:
    """Raise InputError where options of a release are given for a service, or the other way round."""
    if is_service(service.url):
        if here:
            raise InputError(
                "a service has verified its model, and computes in a worker of its own",
                fix="Leave --reference, --unverified, --allow-user-code, --base, --trust and --worker out",
            )
    elif service != Service(service.url):
        raise InputError(
            "options of a service are given, and the model is a folder's",
            where=service.url,
            fix="Leave them out, or give the service's address: https://...",
        )


def _check_readers(to: list[str] | None, *, plaintext: bool, dataset: str | None) -> None:
    """Raise unless the predictions have readers, or are meant to have none and may."""
    if plaintext and dataset is not None:
        raise PolicyRefused(
            "predictions about a dataset are not written unencrypted: nobody could say who reads them",
            where=f"dataset {dataset!r}",
            fix="Seal them to yourself with --to, and open them with `cloister open`",
        )
    if bool(to) == plaintext:
        raise InputError(
            "predictions are sealed or unencrypted, not both" if plaintext else "predictions need a reader",
            fix="Name one with --to, or write --plaintext to have them unencrypted",
        )


def _target(
    out: Path | None,
    file: Path | None,
    dataset: str | None,
    output_format: Format,
    *,
    plaintext: bool,
    force: bool,
) -> Path:
    """Return the file to write. Raises InputError where it is there and may not be replaced."""
    rows = Path(check_name(dataset or "rows", "a dataset's name")) if file is None else file
    ending = f"predictions.{output_format}{'' if plaintext else '.sealed'}"
    target = out or rows.with_name(f"{rows.name}.{ending}")
    if target.exists() and (not force or (rows.exists() and target.samefile(rows))):
        raise InputError(
            "the target exists", where=str(target), fix="Choose another one with --out, or use --force"
        )
    return target


def _allowed(artifact: Artifact, path: Path | None) -> bytes | None:
    """Return the file of a model that is code. Raises PolicyRefused where it was not allowed."""
    from cloister.inference.torchpredict import allowed_code

    data = None if path is None else read_bytes(path, limit=_CODE_LIMIT, what="model's file")
    return allowed_code(artifact, data)
