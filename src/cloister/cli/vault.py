"""`cloister vault`: rows into an encrypted dataset, what is there, whether it is whole, and rows out again.

`ls` and `show` need no passphrase: they read signed manifests and no row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit
from cloister.cli.releaselocal import estimate_local, release_local
from cloister.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from cloister.vault import Catalog, Manifest, Quarantined, Vault

app = typer.Typer(no_args_is_help=True, help="Bring rows into an encrypted vault, check and export them.")

_SHOWN: Final = 20
NameArgument = Annotated[str, typer.Argument(help="The dataset.")]


def _root() -> Path:
    return common.home() / "vault"


def _vault(broker: Path | None = None, broker_identity: str | None = None) -> Vault:
    """Return the vault; keys of new datasets go to the broker at a socket, where one is given."""
    from cloister.cli.brokerkeys import open_vault

    identity = common.load_identity()
    if broker is None:
        return open_vault(_root(), identity, common.passphrase())
    named = common.resolve_identity(broker_identity) if broker_identity else identity.public
    return open_vault(_root(), identity, common.passphrase(), new_to=(broker, named))


def _catalog() -> Catalog:
    from cloister.crypto import Identity
    from cloister.vault import Catalog

    return Catalog(_root(), Identity.read_public(common.identity_path()))


@app.command()
def draft(
    file: Annotated[Path, typer.Argument(help="A CSV or Parquet file.")],
    as_json: JsonOption = False,
) -> None:
    """Print a first schema for a file: types guessed, bounds left for you to fill in."""
    from cloister.vault import draft_schema

    text = draft_schema(file)
    emit({"schema": text}, as_json=as_json, text=text.rstrip("\n"))


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A CSV or Parquet file; it is left as it is.")],
    name: Annotated[str, typer.Option(help="The dataset's name: a-z, 0-9, '-' and '_'.")],
    schema: Annotated[Path, typer.Option(help="The schema, as `draft` prints one.")],
    purpose: Annotated[list[str], typer.Option(help="What the rows may be used for; repeat for several.")],
    consent: Annotated[str, typer.Option(help="On what basis, in your words.")] = "",
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Leave out rows that break the schema, and list them.")
    ] = False,
    broker: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="Keep the key in this key broker, for attested workers."),
    ] = None,
    broker_identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose broker it must be; yours without it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check rows against a schema and encrypt them into a new dataset."""
    from cloister.vault import load_schema

    declared = load_schema(schema)
    declared.require_complete()
    vault = _vault(broker, broker_identity)
    left_out: list[Quarantined] = []
    with _progress(shown=not as_json) as progress:
        manifest = vault.add(
            file,
            name=name,
            schema=declared,
            purposes=purpose,
            consent=consent,
            quarantine=quarantine,
            on_quarantined=left_out.append,
            progress=progress,
        )
    listed = [{"line": row.line, "column": row.column, "reason": row.reason} for row in left_out]
    emit(
        {**_as_json(manifest), "quarantined_rows": listed},
        as_json=as_json,
        text="\n".join([_added(manifest), *map(_quarantined, left_out[:_SHOWN]), *_more(len(left_out))]),
    )


@app.command()
def ls(as_json: JsonOption = False) -> None:
    """List the datasets."""
    catalog = _catalog()
    datasets: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in catalog.names():
        try:
            manifest = catalog.manifest(name)
        except IntegrityError as error:
            datasets.append({"name": name, "problem": str(error)})
            lines.append(f"{name}  DAMAGED: {error}")
        else:
            datasets.append(_as_json(manifest))
            lines.append(
                f"{name}  {manifest.rows} rows, {len(manifest.schema.stored)} columns, {manifest.created}, "
                f"for {', '.join(manifest.purposes)}"
            )
    emit({"datasets": datasets}, as_json=as_json, text="\n".join(lines or ["The vault is empty."]))


@app.command()
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show what a dataset's signed manifest says."""
    manifest = _catalog().manifest(name)
    columns = [
        f"  {column}  {declared.type}, {declared.role}{', pseudonym' if declared.pseudonym else ''}"
        for column, declared in manifest.schema.columns.items()
    ]
    facts = {
        "name": manifest.name,
        "rows": manifest.rows,
        "left out": f"{manifest.without_consent} without consent, {manifest.quarantined} in quarantine",
        "purposes": ", ".join(manifest.purposes),
        "consent": manifest.consent or "not stated",
        "created": manifest.created,
        "owner": manifest.owner,
        "schema": manifest.schema_sha256,
        "fingerprints": manifest.fingerprints_root,
        "file": f"{manifest.file.size} bytes, SHA-256 {manifest.file.sha256}",
    }
    text = [f"{key:<13} {value}" for key, value in facts.items()]
    emit(_as_json(manifest), as_json=as_json, text="\n".join([*text, "columns", *columns]))


@app.command()
def verify(name: NameArgument, as_json: JsonOption = False) -> None:
    """Check a dataset from its signature to its last row. Exit code 1 if it is not whole."""
    checks = _vault().verify(name)
    whole = all(check.ok for check in checks)
    lines = [
        f"{check.number}  {check.name:<11} {'holds' if check.ok else 'FAILS'}  {check.detail}"
        for check in checks
    ]
    lines.append(f"The dataset {name!r} is {'whole' if whole else 'NOT what was stored'}.")
    listed = [{"number": c.number, "name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]
    emit({"name": name, "verified": whole, "checks": listed}, as_json=as_json, text="\n".join(lines))
    if not whole:
        raise typer.Exit(1)


@app.command()
def export(
    name: NameArgument,
    out: Annotated[Path, typer.Option(help="The file to write, .csv or .parquet.")],
    as_json: JsonOption = False,
) -> None:
    """Write a dataset's rows to a new file, in the clear, readable by you alone."""
    rows = _vault().export(name, out)
    emit(
        {"name": name, "rows": rows, "out": str(out), "encrypted": False},
        as_json=as_json,
        text=f"{rows} rows are in {out}, unencrypted.",
    )


@app.command()
def rm(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: the rows cannot be read afterwards.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Destroy a dataset's key and delete its files."""
    _catalog().require(name)
    if not yes:
        raise InputError(f"the rows of {name!r} could not be read afterwards", fix="Add --yes to remove it")
    sentence = _vault().remove(name)
    emit({"name": name, "removed": True, "note": sentence}, as_json=as_json, text=sentence)


@app.command()
def resign(as_json: JsonOption = False) -> None:
    """Sign the manifests of your former identities anew; `keys rotate` does it unless it is interrupted."""
    from cloister.crypto import Identity, follows

    owner = common.load_identity()
    chain = common.successions()
    kept = [Identity.read_public(path) for path in sorted(common.home().glob("identity-*.json"))]
    former = [each for each in kept if follows(each, owner.public, chain)]
    names = _catalog().resign(former, owner)
    text = f"Signed anew: {', '.join(names)}." if names else "All are signed by your present identity."
    emit({"resigned": list(names)}, as_json=as_json, text=text)


def _as_json(manifest: Manifest) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(manifest)
    return fields


def _added(manifest: Manifest) -> str:
    left = [
        f"{count} {why}"
        for count, why in (
            (manifest.without_consent, "without consent"),
            (manifest.quarantined, "in quarantine"),
        )
        if count
    ]
    return f"{manifest.name}: {manifest.rows} rows stored{', left out: ' if left else ''}{', '.join(left)}."


def _quarantined(row: Quarantined) -> str:
    column = f", column {row.column}" if row.column else ""
    return f"  line {row.line}{column}: {row.reason}"


def _more(count: int) -> list[str]:
    return [f"  and {count - _SHOWN} more; --json lists all"] if count > _SHOWN else []


@contextlib.contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what tells how far a read is, as a bar on stderr where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("encrypting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


app.command("release-local")(release_local)
app.command("estimate-local")(estimate_local)
