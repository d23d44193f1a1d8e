"""`cloister seal`, `cloister open`, `cloister hash`: files encrypted to people, and hashes of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit
from cloister.errors import InputError, VerificationError

if TYPE_CHECKING:
    from cloister.crypto import Identity

__all__ = ["hash_", "open_", "seal"]

_Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


def _target(source: Path, target: Path, force: bool) -> Path:
    if target.exists() and (target.samefile(source) or not force):
        raise InputError(
            "the target exists", where=str(target), fix="Choose another one with --out, or use --force"
        )
    return target


def seal(
    file: Annotated[Path, typer.Argument(help="The file to encrypt.")],
    to: Annotated[
        list[str], typer.Option(help="A trusted name, or the path of an exported identity. May be repeated.")
    ],
    out: Annotated[Path | None, typer.Option(help="The encrypted file; FILE.sealed without it.")] = None,
    force: _Force = False,
    as_json: JsonOption = False,
) -> None:
    """Encrypt a file to one or more recipients.

    Only they can open it: not even you, unless you name yourself. It is encrypted with AES-256-GCM under a
    fresh key, which is sealed to each recipient with ML-KEM-768 and X25519.
    """
    from cloister.crypto import seal_file

    recipients = [common.resolve_identity(name) for name in to]
    target = _target(file, out or file.with_name(file.name + ".sealed"), force)
    seal_file(file, target, recipients)
    people = [{"name": person.name, "fingerprint": person.fingerprint} for person in recipients]
    names = ", ".join(person.name for person in recipients)
    emit({"path": str(target), "recipients": people}, as_json=as_json, text=f"{target} is sealed to {names}.")


def open_(
    file: Annotated[Path, typer.Argument(help="A sealed file.")],
    out: Annotated[
        Path | None, typer.Option(help="The plain file; FILE without .sealed, or FILE.opened.")
    ] = None,
    force: _Force = False,
    as_json: JsonOption = False,
) -> None:
    """Open a file that was sealed to you.

    The plain file appears only when all of it has been verified. Keys from before a rotation are tried too.
    """
    from cloister.crypto import open_file

    default = file.with_suffix("") if file.suffix == ".sealed" else file.with_name(file.name + ".opened")
    identity = _addressee(file)
    target = _target(file, out or default, force)
    open_file(file, target, identity)
    emit(
        {"path": str(target), "identity": identity.fingerprint}, as_json=as_json, text=f"Opened as {target}."
    )


def _addressee(file: Path) -> Identity:
    """Return the identity of this home, present or former, that the file is sealed to."""
    from cloister.crypto import Identity, sealed_recipients

    recipients = sealed_recipients(file)
    current = common.identity_path()
    for path in (current, *sorted(current.parent.glob("identity-*.json"))):
        if Identity.read_public(path).fingerprint in recipients:
            return Identity.load(path, common.passphrase())
    raise InputError(
        "the file is not sealed to you", where=str(file), fix="Ask its sender to seal it to your identity"
    )


def hash_(
    file: Annotated[Path, typer.Argument(help="The file to hash.")],
    algorithm: Annotated[str, typer.Option(help="sha256, sha384, sha512, sha3-256 or sha3-512.")] = "sha256",
    check: Annotated[str | None, typer.Option(help="The hash it should have, in hexadecimal.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hash a file, or check its hash."""
    from cloister.crypto import digest_file

    digest = digest_file(file, algorithm).hex()
    if check is not None and "".join(check.split()).lower() != digest:
        raise VerificationError(
            f"the file's {algorithm} is another one", where=str(file), fix="Get the file again"
        )
    emit(
        {"path": str(file), "algorithm": algorithm, "digest": digest},
        as_json=as_json,
        text=f"{digest}  {file}",
    )
