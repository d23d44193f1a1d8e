"""What commands share: the home folder, the passphrase, identities, and how results are printed.

Results go to stdout, as text or with `--json` as one JSON object; everything else goes to stderr. Passphrases
come from a prompt or a file, never from the command line, where other users of the machine could read them.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.errors import InputError, PassphraseError, PolicyRefused
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity, TrustStore
    from cloister.privacy.ledger import Ledger
    from cloister.vault import Manifest

__all__ = [
    "JsonOption",
    "as_home",
    "at_home",
    "emit",
    "home",
    "identity_path",
    "load_identity",
    "member",
    "new_study",
    "open_ledger",
    "passphrase",
    "resolve_identity",
    "say",
    "successions",
    "successions_path",
    "trust_store",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
_MAX_EXPORT: Final = 8 << 20
_MAX_PASSPHRASE_FILE: Final = 4096


def home() -> Path:
    """Return $CLOISTER_HOME, or ~/.cloister."""
    return Path(os.environ.get("CLOISTER_HOME") or Path.home() / ".cloister")


def as_home(folder: Path) -> str:
    """Return what a command line begins with to be that of a home: nothing where it is this one."""
    return "" if folder == home() else f"CLOISTER_HOME={shlex.quote(str(folder))} "


def identity_path() -> Path:
    """Return where this home's identity is."""
    return home() / "identity.json"


def say(message: str) -> None:
    """Tell the user something that is not the result."""
    print(message, file=sys.stderr, flush=True)


def emit(result: Mapping[str, Any], *, as_json: bool, text: str | None = None) -> None:
    """Print a result on stdout.

    Args:
        result: what there is to know; JSON types only.
        as_json: whether to print it as one JSON object.
        text: what people get; None for the result's items, one a line.
    """
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items()) if text is None else text)


@functools.cache
def passphrase(*, confirm: bool = False, what: str = "Passphrase") -> str:
    """Return the passphrase; asked for once a process.

    1. From the file that $CLOISTER_PASSPHRASE_FILE names, without its last line break.
    2. Else from the terminal, twice where a new one is made.

    Raises:
        PassphraseError: there is neither, they differ, or it is empty.
    """
    named = os.environ.get("CLOISTER_PASSPHRASE_FILE")
    text = _from_file(Path(named)) if named else _from_terminal(confirm, what)
    if not text:
        raise PassphraseError(
            "the passphrase is empty", fix="Give at least one character; six random words are good"
        )
    return text


def _from_file(path: Path) -> str:
    data = read_bytes(path, limit=_MAX_PASSPHRASE_FILE, what="passphrase file")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        say(f"Others on this machine may read {path}; chmod 600 keeps it to you.")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise PassphraseError(
            "the passphrase file is not UTF-8 text", where=str(path), fix="Save it as text"
        ) from None


def _from_terminal(confirm: bool, what: str) -> str:
    import getpass

    if not sys.stdin.isatty():
        raise PassphraseError(
            "a passphrase is needed and there is no terminal", fix="Set CLOISTER_PASSPHRASE_FILE"
        )
    try:
        text = getpass.getpass(f"{what}: ")
        if confirm and getpass.getpass(f"{what} again: ") != text:
            raise PassphraseError("the two passphrases differ", fix="Run it again")
    except EOFError:
        raise PassphraseError("no passphrase was given", fix="Run it again") from None
    return text


def new_study(name: str) -> Path:
    """Return the folder of studies. Raises InputError where it has one of this name already."""
    studies = home() / "studies"
    if (studies / name).exists():
        raise InputError(
            f"a study {name!r} is kept here already",
            where=str(studies),
            fix="Give the plan another name, or remove the old folder",
        )
    return studies


def load_identity(folder: Path | None = None) -> Identity:
    """Return the identity of a home, of this one where none is named.

    Raises InputError where there is none, PassphraseError where it does not open.
    """
    from cloister.crypto import Identity

    path = identity_path() if folder is None else folder / "identity.json"
    Identity.read_public(path)  # a missing or broken file is told before a passphrase is asked for
    return Identity.load(path, passphrase())


def successions_path() -> Path:
    """Return where this home keeps the envelopes in which its former identities named their successors."""
    return home() / "successions.json"


def successions(folder: Path | None = None) -> list[bytes]:
    """Return those envelopes, oldest first; of another home where one is given. Empty where keys were never
    rotated."""
    import msgspec

    path = successions_path() if folder is None else folder / successions_path().name
    if not path.exists():
        return []
    data = read_bytes(path, limit=_MAX_EXPORT, what="list of successions")
    try:
        return msgspec.json.decode(data, type=list[bytes])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputError(
            "the list of successions cannot be read", where=str(path), fix="Restore it"
        ) from None


def open_ledger(folder: Path, identity: Identity, dataset: str = "DATASET") -> Ledger:
    """Return the ledger of a home; `dataset` is whose budget its messages speak of.

    Raises:
        PolicyRefused: there is none, so nothing has a budget; one is not begun by asking.
    """
    from cloister.cli.ledgercounter import counters
    from cloister.privacy.ledger import Ledger, ledger_exists

    if not ledger_exists(folder / "ledger"):
        raise PolicyRefused(
            "no budget was declared for any rows",
            where=str(folder),
            fix=f"Declare one with `{as_home(folder)}cloister budget {dataset} --epsilon ... --delta ...`",
        )
    return Ledger.open(
        folder / "ledger", identity, successions=successions(folder), counters=counters(folder)
    )


def member(folder: Path, dataset: str) -> tuple[PublicIdentity, Manifest]:
    """Return the public identity of a home on this machine and a dataset's manifest; needs no passphrase."""
    from cloister.crypto import Identity
    from cloister.vault import Catalog

    public = Identity.read_public(folder / "identity.json")
    with at_home(folder):
        return public, Catalog(folder / "vault", public).manifest(dataset)


@contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """Name the home in errors about a dataset: there are several."""
    try:
        yield
    except InputError as error:
        fix = f"See `CLOISTER_HOME={folder} cloister vault ls`"
        raise InputError(error.what, where=str(folder), fix=fix) from error


def trust_store() -> TrustStore:
    """Return the identities that this home trusts."""
    from cloister.crypto import TrustStore

    return TrustStore(home() / "trust")


def resolve_identity(text: str) -> PublicIdentity:
    """Return the public identity that a command line means.

    Args:
        text: the name of a trusted identity or of one's own, or else the path of an exported one. Names have
            neither dot nor slash: for a file `bob` write `./bob`.

    Raises:
        InputError: there is no such identity.
    """
    from cloister.crypto import Identity, read_export
    from cloister.types import check_name

    try:
        check_name(text)
    except InputError:
        return read_export(read_bytes(Path(text), limit=_MAX_EXPORT, what="exported identity"))[0]
    if identity_path().exists():
        own = Identity.read_public(identity_path())
        if own.name == text:
            return own
    return trust_store().get(text)
