"""`cloister model`: encrypt a model's folder, so that its weights are never on a disk in clear.

    cloister model seal DIR --out OUT       a folder of safetensors, or a release; its key in your keystore
    cloister model seal RELEASE --base DIR  what was trained of a public base: the base stays as it is
    cloister model seal ... --broker SOCKET the same, its key in a key broker, for attested workers alone
    cloister model show OUT                 what its signed manifest says; needs no passphrase
    cloister model verify OUT               every check, to the last byte; exit code 1 if it is not whole
    cloister model rm OUT                   destroy its key: no copy of it opens afterwards
    cloister model export RELEASE --out DIR a released language model for peft or transformers (`modelexport`)

There is no command that writes a sealed model in clear: a worker opens it in memory (`cloister serve`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.baseoption import BaseOption
from cloister.cli.common import JsonOption, emit
from cloister.cli.modelexport import export, fits_its_base
from cloister.cli.modelkeys import (
    handed_model,
    home_keystore,
    is_owned,
    note_broker,
    noted_socket,
    owned_model,
)
from cloister.cli.modelprogress import Told
from cloister.cli.releasedmodel import Released, released_model
from cloister.cli.verify import TrustOption
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity
    from cloister.inference.models.keys import ModelHandover
    from cloister.inference.models.manifest import Kind
    from cloister.inference.models.sealed import OpenDataKey
    from cloister.learning.modelfiles.files import ModelFiles
    from cloister.types import KeyService

app = typer.Typer(no_args_is_help=True, help="Encrypt models, show and check encrypted ones.")

app.command("export")(export)

_CERTIFICATE: Final = "certificate.dsse.json"  # what every release has and no other model

FolderArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a sealed model.")]


@app.command()
def seal(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model's folder, or a release; it is left as it is.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    name: Annotated[
        str | None,
        typer.Option(help="Under which it is asked for; a release's name, or the folder's, without it."),
    ] = None,
    broker: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="Keep the key in this key broker, for attested workers."),
    ] = None,
    broker_identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose broker it must be; yours without it.")
    ] = None,
    base: BaseOption = None,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model and encrypt it into a new folder, signed by you."""
    from cloister.inference.models.sealed import is_sealed_model
    from cloister.inference.models.sealing import seal_model

    if is_sealed_model(folder):
        raise InputError("this model is sealed already", where=str(folder), fix="Give one in the clear")
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(
            "the sealed model would lie within its source", where=str(out), fix="Choose another place"
        )
    files, kind, released = _checked(folder, trust, base)
    own = folder.resolve().name if released is None else released.artifact.card.name
    called = name or _plain_name(own)
    release = None if released is None else released.certificate
    owner = common.load_identity()
    named = None
    if broker is not None:
        named = common.resolve_identity(broker_identity) if broker_identity else owner.public
    elif broker_identity is not None:
        raise InputError(
            "--broker-identity says whose broker it is", fix="Say where it is with --broker SOCKET"
        )
    with _keys(owner, broker, named) as keys:
        told = Told(files, "sealed")
        manifest = seal_model(
            told, out, owner, name=called, kind=kind, keys=keys, broker=named, release=release
        )
    if broker is not None:
        note_broker(out, broker)
    handed = owned_model(out)
    count, are = (f"{len(manifest.files)} files", "are") if len(manifest.files) != 1 else ("1 file", "is")
    text = [
        f"{manifest.name}: {count}, {_bytes(manifest.size)}, {are} sealed in {out}.",
        f"manifest {handed.wanted.manifest}",
        f"{folder} is still in the clear; delete it when you need it no more.",
    ]
    if named is not None:
        text.insert(
            2, f"Its key is with {named.name}'s broker: `cloister enclave broker grant {out}` releases it."
        )
    emit(_facts(handed), as_json=as_json, text="\n".join(text))


@app.command()
def show(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show what a sealed model's signed manifest says. Needs no passphrase."""
    handed = handed_model(folder)
    manifest = handed.manifest
    facts = {
        "name": manifest.name,
        "kind": manifest.kind,
        "owner": f"{handed.owner.name} {manifest.owner}",
        "created": manifest.created,
        "digest": manifest.digest,
        "manifest": handed.wanted.manifest,
        "key": f"{manifest.kek_id}, in {_where(handed)}",
        "release": manifest.release or "none",
        "files": f"{len(manifest.files)}, {_bytes(manifest.size)} in the clear",
    }
    lines = [f"{key:<9} {value}" for key, value in facts.items()]
    lines += [f"  {file.name}  {file.size}" for file in manifest.files]
    emit(_facts(handed), as_json=as_json, text="\n".join(lines))


@app.command()
def verify(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Check a sealed model from its signature to its last byte. Exit code 1 if it is not whole."""
    from cloister.crypto import Identity
    from cloister.inference.models.keys import kept_elsewhere
    from cloister.inference.models.verify import verify_model

    handed = handed_model(folder)
    key: OpenDataKey = kept_elsewhere
    if handed.broker is None and is_owned(handed):
        keystore = home_keystore(Identity.read_public(common.identity_path()))
        key = partial(keystore.unwrap, handed.manifest.kek_id)
    checks = tuple(verify_model(folder, handed.envelope, handed.owner, key))
    whole = all(check.ok for check in checks)
    lines = [
        f"{check.number}  {check.name:<15} {'holds' if check.ok else 'FAILS'}  {check.detail}"
        for check in checks
    ]
    lines.append(f"The model {handed.manifest.name!r} is {'whole' if whole else 'NOT whole'}.")
    listed = [{"number": c.number, "name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]
    facts = {"name": handed.manifest.name, "verified": whole, "checks": listed}
    emit(facts, as_json=as_json, text="\n".join(lines))
    if not whole:
        raise typer.Exit(1)


@app.command()
def rm(
    folder: FolderArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: it cannot be opened afterwards.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Destroy a sealed model's key: no copy of the folder opens afterwards. The folder is left to you."""
    handed = owned_model(folder)
    if not yes:
        raise InputError(
            f"no copy of {handed.manifest.name!r} could be opened afterwards",
            fix="Add --yes to destroy its key",
        )
    owner = common.load_identity()
    socket = None if handed.broker is None else noted_socket(handed)
    with _keys(owner, socket, handed.broker) as keys:
        sentence = keys.destroy(handed.manifest.kek_id).replace("this copy of the data", "the model")
    facts = {"name": handed.manifest.name, "key": handed.manifest.kek_id, "destroyed": True, "note": sentence}
    emit(facts, as_json=as_json, text=sentence)


def _checked(
    folder: Path, trust: list[Path] | None, base: Path | None
) -> tuple[ModelFiles, Kind, Released | None]:
    """Return a model's files, checked; what serves it; and its release, if it is one."""
    if (folder / _CERTIFICATE).exists():
        return _released(folder, trust, base)
    if base is not None:
        raise InputError("--base is for releases, and this is none", where=str(folder), fix="Leave it out")
    if trust:
        raise InputError("--trust is for releases, and this is none", where=str(folder), fix="Leave it out")
    from cloister.learning.modelfiles.files import PlainFolder
    from cloister.learning.modelfiles.folder import check_language_model

    files = PlainFolder(folder)
    check_language_model(files)
    return files, "language", None


def _released(folder: Path, trust: list[Path] | None, base: Path | None) -> tuple[ModelFiles, Kind, Released]:
    """Return the model of a release, from the very bytes that were verified."""
    from cloister.inference.models.manifest import TABLE_FILE
    from cloister.inference.models.sealing import MemoryFiles

    released = released_model(folder, trust)
    kind: Kind = "adapter" if fits_its_base(released.artifact, base) else "table"
    return MemoryFiles({TABLE_FILE: released.data}), kind, released


@contextmanager
def _keys(owner: Identity, socket: Path | None, broker: PublicIdentity | None) -> Iterator[KeyService]:
    """Yield what keeps keys: the broker at a socket, which must answer, or the home's keystore."""
    if socket is None or broker is None:
        yield home_keystore(owner.public)
        return
    from cloister.cli.brokerkeys import broker_keys

    keys = broker_keys(socket, broker, owner)
    try:
        keys.inventory()  # before anything is read: it answers, is the one that was meant, and takes orders
        yield keys
    finally:
        keys.close()


def _plain_name(name: str) -> str:
    """Return a folder's or a study's name as a model's: "Qwen2.5-0.5B" is "qwen2-5-0-5b"."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower())[:63].strip("-_")


def _where(handed: ModelHandover) -> str:
    where = "keystore" if handed.broker is None else "key broker"
    return f"the {where} of {(handed.broker or handed.owner).name}"


def _facts(handed: ModelHandover) -> dict[str, Any]:
    manifest = handed.manifest
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "owner": manifest.owner,
        "created": manifest.created,
        "digest": manifest.digest,
        "manifest": handed.wanted.manifest,
        "key": manifest.kek_id,
        "broker": None if handed.broker is None else handed.broker.fingerprint,
        "release": manifest.release,
        "bytes": manifest.size,
        "files": [{"name": file.name, "bytes": file.size} for file in manifest.files],
    }


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
