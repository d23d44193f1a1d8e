"""`cloister he`: scores under encryption. The server never sees rows, the client never sees the model.

    server   cloister he card MODEL --out card.json
    client   cloister he encrypt card.json FILE --out rows.ckks --key key.ckks
    server   cloister he score MODEL rows.ckks --out scores.ckks
    client   cloister he open scores.ckks --key key.ckks --out answers.csv

The key serves one file of rows and stays with the client, sealed to the identity of its home.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cloister.cli.common import (
    JsonOption,
    emit,
    identity_path,
    load_identity,
    resolve_identity,
    say,
)
from cloister.cli.heparts import Format, client_key, free, sources
from cloister.cli.releasedmodel import released_table
from cloister.cli.verify import TrustOption
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError
from cloister.files import read_bytes, write_atomic

__all__ = ["app"]

_CARD_LIMIT: Final = 16 << 20

app = typer.Typer(no_args_is_help=True, help="Scores under encryption: the server never sees rows.")

_Model = Annotated[Path, typer.Argument(help="The release.", show_default=False)]
_Rows = Annotated[
    Path, typer.Argument(help="Rows: CSV, Parquet, or either sealed to you.", show_default=False)
]
_Out = Annotated[Path, typer.Option("--out", help="File to write.", show_default=False)]
_Key = Annotated[Path, typer.Option("--key", help="The key to the scores.", show_default=False)]
_Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
_Unverified = Annotated[
    bool, typer.Option("--unverified", help="Use the model without verifying its release.")
]
_Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help='Rows to scale by, for a model trained with scaling = "local".',
        show_default=False,
    ),
]


@app.command("card")
def card_(
    model: _Model,
    out: _Out,
    trust: TrustOption = None,
    unverified: _Unverified = False,
    force: _Force = False,
    as_json: JsonOption = False,
) -> None:
    """Write what clients need to encrypt rows for a model; it holds no parameter."""
    from cloister.inference.encrypted import Card

    free(force, out)
    card = Card.of(released_table(model, trust, unverified=unverified))
    write_atomic(out, card.to_bytes())
    result = {
        "out": str(out),
        "card": card.digest,
        "model": card.model,
        "circuit": card.circuit,
        "features": card.features.width,
        "error": card.error,
    }
    text = f"{out} describes the model to clients: {card.features.width} numbers a row."
    if card.error:
        text += f" Polynomials in its hidden layer change a score by at most {card.error:g}."
    emit(result, as_json=as_json, text=text)


@app.command("encrypt")
def encrypt_(
    card: Annotated[Path, typer.Argument(help="The model's card.", show_default=False)],
    file: _Rows,
    out: _Out,
    key: _Key,
    reference: _Reference = None,
    unprotected_key: Annotated[
        bool, typer.Option("--unprotected-key", help="Write the key as it is, not sealed to you.")
    ] = False,
    force: _Force = False,
    as_json: JsonOption = False,
) -> None:
    """Encrypt rows for a model, under a fresh key that stays here."""
    from cloister.crypto import SECRET_ACCESS, Identity, seal_bytes
    from cloister.inference.encrypted import Card, encrypt_rows

    free(force, out, key)
    if out.absolute() == key.absolute():
        raise InputError("rows and key are two files", fix="Give --out and --key different names")
    if not unprotected_key and not identity_path().exists():
        raise InputError(
            "there is no identity to seal the key to",
            fix="Make one with `cloister keys init NAME`, or write --unprotected-key",
        )
    found = Card.from_bytes(read_bytes(card, limit=_CARD_LIMIT, what="card"))
    with sources(file, reference) as (source, scale_by):
        data, secret = encrypt_rows(found, source, scale_by)
    content = secret.to_bytes(SECRET_ACCESS)
    if not unprotected_key:
        content = seal_bytes(content, [Identity.read_public(identity_path())])
    write_atomic(key, content, mode=0o600)
    write_atomic(out, data)
    result = {
        "out": str(out),
        "key": str(key),
        "key_sealed": not unprotected_key,
        "rows": secret.rows,
        "bytes": len(data),
        "plain_bytes": 8 * found.features.width * secret.rows,
    }
    each, plain = len(data) / secret.rows, 8 * found.features.width
    guarded = "NOT protected: whoever reads it reads the scores" if unprotected_key else "sealed to you"
    text = (
        f"{secret.rows} rows are in {out}, encrypted: {each:,.0f} bytes a row, {plain} in the clear. "
        f"The key to their scores is in {key}, {guarded}."
    )
    emit(result, as_json=as_json, text=text)


@app.command("score")
def score_(
    model: _Model,
    rows: Annotated[Path, typer.Argument(help="Encrypted rows.", show_default=False)],
    out: _Out,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Do not sign the scores with this home's identity.")
    ] = False,
    trust: TrustOption = None,
    unverified: _Unverified = False,
    worker: WorkerOption = Where.SANDBOXED,
    force: _Force = False,
    as_json: JsonOption = False,
) -> None:
    """Score encrypted rows. Neither rows nor scores can be read here."""
    from cloister.inference.encrypted import FILE_LIMIT, score_rows, score_rows_walled

    free(force, out)
    if not unsigned and not identity_path().exists():
        raise InputError(
            "there is no identity to sign the scores with",
            fix="Make one with `cloister keys init NAME`, or write --unsigned",
        )
    artifact = released_table(model, trust, unverified=unverified)
    data = read_bytes(rows, limit=FILE_LIMIT, what="encrypted rows")
    signer = None if unsigned else load_identity()
    begin = time.perf_counter()
    scores = (score_rows_walled if is_sandboxed(worker) else score_rows)(artifact, data, signer)
    seconds = time.perf_counter() - begin
    write_atomic(out, scores)
    result = {"out": str(out), "signed": not unsigned, "seconds": seconds, "bytes": len(scores)}
    emit(result, as_json=as_json, text=f"{out} holds the encrypted scores, made in {seconds:.2f} seconds.")


@app.command("open")
def open_(
    scores: Annotated[Path, typer.Argument(help="Encrypted scores.", show_default=False)],
    key: _Key,
    out: Annotated[Path | None, typer.Option("--out", help="File to write.", show_default=False)] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", help="Seal the answers to a trusted name or an exported identity; may be repeated."
        ),
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option("--from", help="Whose signature the scores must have: a trusted name or an identity."),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="What the answers are written as.")
    ] = Format.CSV,
    force: _Force = False,
    as_json: JsonOption = False,
) -> None:
    """Decrypt scores with the key that was made with the rows, and write the answers."""
    from cloister.crypto import seal_bytes
    from cloister.inference.encrypted import FILE_LIMIT
    from cloister.inference.predictor import encoded

    target = out or scores.with_name(f"{scores.name}.{output_format}{'.sealed' if to else ''}")
    free(force, target)
    readers = [resolve_identity(name) for name in to or []]
    vouching = resolve_identity(signer) if signer else None
    found = client_key(key)
    opened = found.open(read_bytes(scores, limit=FILE_LIMIT, what="encrypted scores"), vouching)
    if vouching is None:
        say("Nobody's signature was asked for: give --from to know who computed these scores.")
    content = encoded(opened.answers, output_format.value)
    write_atomic(target, seal_bytes(content, readers) if readers else content, mode=0o600)
    result = {
        "out": str(target),
        "rows": opened.answers.num_rows,
        "columns": opened.answers.column_names,
        "sealed_to": [reader.fingerprint for reader in readers],
        "signed_by": vouching.fingerprint if vouching else None,
        "noise": float(f"{opened.noise:.0e}"),
        "error": float(f"{opened.error:.1e}"),
        "doubtful": opened.doubtful,
    }
    names = ", ".join(reader.name for reader in readers)
    where = f"in {target}, sealed to {names}" if readers else f"in {target}, unencrypted"
    text = (
        f"{opened.answers.num_rows} answers are {where}.\n"
        f"A score differs from the model's own by at most {opened.error:.1e}"
        f" (noise measured: {opened.noise:.0e}; polynomials: {found.card.error:g})."
    )
    if found.card.head != "value":
        text += f" Within that, {opened.doubtful} rows could have another class."
    emit(result, as_json=as_json, text=text)


@app.command("report")
def report_(
    model: _Model,
    file: _Rows,
    reference: _Reference = None,
    trust: TrustOption = None,
    unverified: _Unverified = False,
    as_json: JsonOption = False,
) -> None:
    """Measure on rows of your own what encryption costs, and what it changes in the answers."""
    import dataclasses

    from cloister.inference.encrypted import compare

    artifact = released_table(model, trust, unverified=unverified)
    with sources(file, reference) as (source, scale_by):
        found = compare(artifact, source, scale_by)
    encrypted = found.encrypt_ms + found.score_ms + found.open_ms
    lines = [
        f"rows: {found.rows} of {found.features} numbers",
        f"largest difference of an answer: {found.max_error:.1e}",
        f"classes that differ: {found.label_flips}; said to be in doubt: {found.doubtful}",
        f"bound of a score's error: {found.bound:.1e}; noise: {found.noise:.0e}",
        f"milliseconds a row: {encrypted:.4f} (encrypt {found.encrypt_ms:.4f}, score {found.score_ms:.4f}, "
        f"open {found.open_ms:.4f}); in the clear {found.plain_ms:.4f}",
        f"bytes a row: {found.up_bytes:,.0f} up, {found.down_bytes:,.0f} down; "
        f"in the clear {found.plain_bytes:.0f} up",
    ]
    emit(dataclasses.asdict(found), as_json=as_json, text="\n".join(lines))
