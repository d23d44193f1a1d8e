"""`cloister enclave broker`: keys that are released to attested workers alone.

    cloister enclave broker serve                hold keys, and release them as your enclave policy says
    cloister vault add FILE ... --broker SOCKET  a dataset whose key is in it from the start
    cloister enclave broker grant DATASET        say for which plan and purpose, how often, until when
    cloister enclave broker ls|revoke|log        what is held and granted; end a grant; what happened

Owners' commands go to the socket. Where nobody serves your own broker they open it themselves.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.brokergrant import broker_of, granted_model, is_model, permission_of
from cloister.cli.brokerserve import broker_folder, home_book, home_broker, serve
from cloister.cli.common import JsonOption, emit
from cloister.errors import InputError, PolicyRefused, StorageError

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.enclave.broker import BrokerKeys
    from cloister.enclave.claims import Claims
    from cloister.enclave.evidence import Evidence

app = typer.Typer(no_args_is_help=True, help="Hold keys, and release them to attested workers alone.")

_SHOWN: Final = 20

SocketOption = Annotated[
    Path | None, typer.Option("--socket", help="Where the broker is served; in your home without it.")
]
IdentityOption = Annotated[
    str | None,
    typer.Option("--broker-identity", metavar="NAME", help="Whose broker it must be; yours without it."),
]

app.command("serve")(serve)


@app.command()
def add(
    kek_id: Annotated[str, typer.Argument(metavar="KEY", help="An id: a-z, 0-9 and . _ -")],
    socket: SocketOption = None,
    broker_identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a fresh key in the broker, such as a model's; `vault add --broker` makes a dataset's by itself."""
    with _owner(socket, broker_identity) as keys:
        keys.create(kek_id)
    emit(
        {"key": kek_id, "made": True},
        as_json=as_json,
        text=f"{kek_id} is in the broker. Until you grant it, no worker gets anything under it.",
    )


@app.command()
def grant(
    name: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="A dataset of your vault, a sealed model's folder, or the id of a key."
        ),
    ],
    purpose: Annotated[
        str | None, typer.Option(help="What it may be opened for; a dataset's only purpose without it.")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="The study's plan, or its digest; without it, no study."),
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="For a key without a dataset: of what it opens.")
    ] = None,
    uses: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many workers may open it.")] = 1,
    days: Annotated[int, typer.Option(min=1, max=3650, help="For how long.")] = 7,
    socket: SocketOption = None,
    broker_identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let attested workers open a dataset or a sealed model: for one plan and purpose, so often, until then.

    For a sealed model nothing more needs to be said: its purpose is "inference", and its folder says where
    its broker is.
    """
    import msgspec

    permission = permission_of(name, purpose, plan, manifest, uses, days)
    model = granted_model(name) if manifest is None and is_model(permission) else None
    place, whose = (socket, broker_identity) if model is None else broker_of(model, socket, broker_identity)
    with _owner(place, whose) as keys:
        keys.allow(permission)
    wanted = permission.wanted
    study = f"plan {wanted.plan[:16]}" if wanted.plan else "no plan"
    emit(
        msgspec.to_builtins(permission),
        as_json=as_json,
        text=f"{permission.id}  {wanted.kek_id} for {wanted.purpose!r}, {study}, {uses} "
        f"{'use' if uses == 1 else 'uses'} until {permission.expires:%Y-%m-%d %H:%M} UTC.",
    )


@app.command()
def revoke(
    permission: Annotated[str, typer.Argument(metavar="GRANT", help="Its id, as `ls` shows it.")],
    socket: SocketOption = None,
    broker_identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a grant at once. What a worker has opened it keeps."""
    if not re.fullmatch(r"[0-9a-f]{32}", permission):
        raise InputError("a grant's id is 32 hexadecimal digits", fix="See `cloister enclave broker ls`")
    with _owner(socket, broker_identity) as keys:
        keys.revoke(permission)
    emit({"grant": permission, "revoked": True}, as_json=as_json, text=f"{permission} is revoked.")


@app.command()
def ls(
    socket: SocketOption = None, broker_identity: IdentityOption = None, as_json: JsonOption = False
) -> None:
    """List your keys in the broker, and what you granted about them."""
    import msgspec

    with _owner(socket, broker_identity) as keys:
        found = keys.inventory()
    now, lines = datetime.now(UTC), []
    for kek in found.keks:
        lines.append(f"{kek.kek_id}  since {kek.created}")
        for each in found.permissions:
            if each.permission.wanted.kek_id == kek.kek_id:
                ended = each.revoked or each.permission.expires <= now or each.used >= each.permission.uses
                why = (
                    "revoked"
                    if each.revoked
                    else "over"
                    if ended
                    else f"until {each.permission.expires:%Y-%m-%d}"
                )
                lines.append(
                    f"  {each.permission.id}  {each.permission.wanted.purpose!r}, "
                    f"{each.used} of {each.permission.uses} used, {why}"
                )
    facts: dict[str, Any] = msgspec.to_builtins(found)
    emit(facts, as_json=as_json, text="\n".join(lines or ["You have no keys in this broker."]))


@app.command()
def log(
    last: Annotated[int, typer.Option(min=1, help="How many entries, the newest.")] = _SHOWN,
    as_json: JsonOption = False,
) -> None:
    """Show what your broker released and refused, and why. Needs no passphrase."""
    import msgspec

    from cloister.cli.brokerwords import in_words
    from cloister.enclave.broker import decode_entry, read_log

    book = read_log(broker_folder())
    entries = [decode_entry(book.entry(index)) for index in range(max(0, len(book) - last), len(book))]
    head = book.head()
    facts = {"entries": msgspec.to_builtins(entries), "size": head.size, "root": head.root.hex()}
    closing = f"{head.size} entries, root {head.root.hex()}"
    emit(facts, as_json=as_json, text="\n".join([*map(in_words, entries), closing]))


def _releases_nothing(
    _evidence: Evidence, _at: datetime, _expected: bytes | None, /
) -> tuple[Claims, list[str]]:
    raise PolicyRefused("nothing is released by a broker that is not served")


@contextlib.contextmanager
def _owner(socket: Path | None, broker_identity: str | PublicIdentity | None) -> Iterator[BrokerKeys]:
    """Yield the owner's side of a broker; one's own is opened where nobody serves it."""
    from cloister.enclave.broker import SOCKET_NAME, BrokerKeys, Direct, SocketLink

    identity = common.load_identity()
    if isinstance(broker_identity, str):
        broker_identity = common.resolve_identity(broker_identity)
    named = broker_identity or identity.public
    path = socket or broker_folder() / SOCKET_NAME
    if socket is None and named == identity.public and not _served(path):
        book = home_book(identity)
        try:
            broker = home_broker(book, identity, _releases_nothing, "0" * 64, [identity.public])
            yield BrokerKeys(lambda: Direct(broker), named, owner=identity)
        finally:
            book.store.close()
        return
    keys = BrokerKeys(lambda: SocketLink(path), named, owner=identity)
    try:
        yield keys
    finally:
        keys.close()


def _served(path: Path) -> bool:
    from cloister.enclave.broker import SocketLink

    try:
        SocketLink(path).close()
    except StorageError:
        return False
    return True
