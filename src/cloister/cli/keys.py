"""`cloister keys`: your identity, the identities you trust, and signatures over files."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Final

import typer

from cloister.cli import common, network
from cloister.cli.common import JsonOption, emit, say
from cloister.errors import InputError, VerificationError
from cloister.files import read_bytes, write_atomic

app = typer.Typer(no_args_is_help=True, help="Make your identity, export it, trust those of others.")
app.add_typer(network.app, name="network")

_MAX_EXPORT: Final = 8 << 20
_SHORTEST_FINGERPRINT: Final = 32


def _write(path: Path, data: bytes, *, force: bool) -> None:
    if path.exists() and not force:
        raise InputError("the file exists", where=str(path), fix="Choose another name, or use --force")
    write_atomic(path, data)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Your name: a-z, 0-9, '-' and '_'.")],
    as_json: JsonOption = False,
) -> None:
    """Make your identity: keys for signing, for sessions and for sealing, under a passphrase."""
    from cloister.crypto import Identity
    from cloister.types import check_name

    check_name(name, "an identity's name")
    path = common.identity_path()
    if path.exists():
        raise InputError(
            "you have an identity", where=str(path), fix="Use `cloister keys rotate` for new keys"
        )
    identity = Identity.generate(name)
    common.home().mkdir(mode=0o700, parents=True, exist_ok=True)
    identity.save(path, common.passphrase(confirm=True))
    result = {"name": name, "fingerprint": identity.fingerprint, "path": str(path)}
    emit(
        result,
        as_json=as_json,
        text=f"{name}  {identity.fingerprint}\nKept in {path}. Without the passphrase it is lost.",
    )


@app.command()
def show(as_json: JsonOption = False) -> None:
    """Show your identity and those you trust, with their fingerprints."""
    from cloister.crypto import Identity

    path = common.identity_path()
    own = Identity.read_public(path) if path.exists() else None
    trusted = common.trust_store().list()
    lines = [
        f"you      {own.name}  {own.fingerprint}"
        if own
        else "You have no identity; make one with `cloister keys init NAME`."
    ]
    lines += [f"trusted  {person.name}  {person.fingerprint}" for person in trusted]
    result = {
        "identity": {"name": own.name, "fingerprint": own.fingerprint, "path": str(path)} if own else None,
        "trusted": [{"name": person.name, "fingerprint": person.fingerprint} for person in trusted],
    }
    emit(result, as_json=as_json, text="\n".join(lines))


@app.command()
def export(
    out: Annotated[Path | None, typer.Option(help="File to write; stdout without it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Export the public half of your identity, as JSON, for others to trust."""
    from cloister.crypto import Identity, export_identity

    own = Identity.read_public(common.identity_path())
    data = export_identity(own, common.successions())
    if out is None:
        typer.echo(data.decode(), nl=False)
    else:
        _write(out, data, force=force)
    say(f"Tell those who trust it your fingerprint over another channel: {own.fingerprint}")


@app.command()
def trust(
    file: Annotated[Path, typer.Argument(help="An exported identity.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="What its owner told you; at least 32 digits of it.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the identity trusted under this name.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Trust an exported identity under its name.

    Compare its fingerprint with its owner over another channel: --fingerprint checks what the owner told you.
    """
    from cloister.crypto import read_export

    public, successions = read_export(read_bytes(file, limit=_MAX_EXPORT, what="exported identity"))
    if fingerprint is not None:
        _compare(fingerprint, public.fingerprint, file)
    common.trust_store().add(public, successions, replace=replace)
    result = {"name": public.name, "fingerprint": public.fingerprint, "compared": fingerprint is not None}
    emit(result, as_json=as_json, text=f"trusted  {public.name}  {public.fingerprint}")
    if fingerprint is None:
        say(f"Compare this fingerprint with {public.name} over another channel before you rely on it.")


def _compare(given: str, actual: str, file: Path) -> None:
    plain = "".join(given.split()).lower()
    if len(plain) < _SHORTEST_FINGERPRINT:
        raise InputError(
            "the fingerprint is too short to compare", fix=f"Give at least {_SHORTEST_FINGERPRINT} digits"
        )
    if not actual.startswith(plain):
        raise VerificationError(
            "the fingerprint is another one", where=str(file), fix="Do not trust this file; ask its owner"
        )


@app.command()
def untrust(name: Annotated[str, typer.Argument(help="A trusted name.")]) -> None:
    """Trust a name no more."""
    common.trust_store().remove(name)
    say(f"{name} is no longer trusted.")


@app.command()
def rotate(as_json: JsonOption = False) -> None:
    """Make new keys under the same name and passphrase, and declare them the successor of the old ones.

    The old keys stay beside the new ones, to open what was sealed to them. The manifests of your datasets are
    signed anew.
    """
    from cloister.crypto import Identity, declare_successor
    from cloister.vault import Catalog

    path = common.identity_path()
    old = common.load_identity()
    kept = path.with_name(f"identity-{old.fingerprint[:8]}.json")
    new = Identity.generate(old.name)
    successions = [*common.successions(), declare_successor(old, new)]
    # A crash between two of these steps leaves the old identity in force; after the last of them
    # `cloister vault resign` does what is left.
    write_atomic(kept, read_bytes(path, limit=_MAX_EXPORT, what="identity"), mode=0o600)
    _save_successions(successions)
    new.save(path, common.passphrase(), replace=True)
    resigned = Catalog(common.home() / "vault", new.public).resign([old.public], new)
    result = {
        "name": new.name,
        "fingerprint": new.fingerprint,
        "previous": old.fingerprint,
        "kept": str(kept),
        "resigned": list(resigned),
    }
    text = f"{new.name}  {new.fingerprint}\nExport it again: who trusts the old keys can now trust these."
    emit(result, as_json=as_json, text=text)
    policy = common.home() / "policy" / "release.toml"
    if policy.exists():
        say(f"Your release policy bears the old signature: cloister keys sign-policy {policy}")


def _save_successions(successions: list[bytes]) -> None:
    import msgspec

    write_atomic(common.successions_path(), msgspec.json.encode(successions))


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="The file to sign.")],
    out: Annotated[Path | None, typer.Option(help="Where the signature goes; FILE.sig without it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing signature.")] = False,
) -> None:
    """Sign a file; the signature is a file beside it."""
    from cloister.crypto import sign_file

    target = out or file.with_name(file.name + ".sig")
    _write(target, sign_file(file, [common.load_identity()]), force=force)
    say(f"Signed in {target}.")


class PolicyKind(enum.StrEnum):
    """What a policy is about."""

    RELEASE = "release"
    SITE = "site"


@app.command()
def sign_policy(
    file: Annotated[Path, typer.Argument(help="A policy in TOML.")],
    kind: Annotated[
        PolicyKind, typer.Option(help="What it is about: what may leave, or which studies to take part in.")
    ] = PolicyKind.RELEASE,
) -> None:
    """Sign a policy, after checking that it is one; the signature lies beside it as FILE.dsse."""
    from cloister.policy import sign_toml

    if kind is PolicyKind.SITE:
        from cloister.runtime.sitepolicy import SITE_POLICY, SitePolicy

        say(f"Signed: {sign_toml(file, SitePolicy, SITE_POLICY, [common.load_identity()])}")
    else:
        from cloister.governance import ReleasePolicy

        say(f"Signed: {sign_toml(file, ReleasePolicy, 'release policy', [common.load_identity()])}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The signed file.")],
    signature: Annotated[Path, typer.Argument(help="Its signature.")],
    by: Annotated[
        str,
        typer.Option(help="Who must have signed it: a trusted name, or an exported identity."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a file's signature."""
    from cloister.crypto import keyring, verify_file

    signer = common.resolve_identity(by)
    verify_file(file, read_bytes(signature, limit=_MAX_EXPORT, what="signature"), keyring([signer]))
    emit(
        {"signed_by": signer.name, "fingerprint": signer.fingerprint},
        as_json=as_json,
        text=f"Signed by {signer.name}.",
    )
