"""`cloister enclave broker`: keys that are released to attested workers alone.

    cloister enclave broker serve                hold keys, and release them as your enclave policy says
    cloister vault add FILE ... --broker SOCKET  a dataset whose key is in it from the start
    cloister enclave broker grant DATASET        say for which plan and purpose, how often, until when
    cloister enclave broker ls|revoke|log        what is held and granted; end a grant; what happened

Owners' commands go to the socket. Where nobody serves your own broker they open it themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit
from cloister.errors import InputError, PolicyRefused, StorageError

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity
    from cloister.enclave.broker import Book, Broker, BrokerKeys, Permission
    from cloister.enclave.claims import Claims
    from cloister.enclave.evidence import Evidence

app = typer.Typer(no_args_is_help=True, help="Hold keys, and release them to attested workers alone.")

_HEX32: Final = re.compile(r"[0-9a-f]{64}\Z")
_SHOWN: Final = 20
_MAX_POLICY: Final = 1 << 20

SocketOption = Annotated[
    Path | None, typer.Option("--socket", help="Where the broker is served; in your home without it.")
]
IdentityOption = Annotated[
    str | None,
    typer.Option("--broker-identity", metavar="NAME", help="Whose broker it must be; yours without it."),
]


def _folder() -> Path:
    return common.home() / "broker"


@app.command()
def serve(
    socket: SocketOption = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="P.toml", help="A further enclave policy, which can only tighten; repeat for several."
        ),
    ] = None,
    owner: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose orders it takes besides yours; repeat for several."),
    ] = None,
    tpm: Annotated[
        bool,
        typer.Option("--tpm", help="Count uses in this machine's TPM too: older copies of the disk show."),
    ] = False,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Let other users of this machine connect; keys are safe either way."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold keys, and release them to workers whose evidence your enclave policy accepts. Ends with Ctrl-C."""
    from cloister.enclave.broker import SOCKET_NAME, BrokerServer

    identity = common.load_identity()
    appraise, digest, words = _policy(identity.public, policy or [])
    book = _book(identity, tpm=tpm)
    owners = [identity.public, *(common.resolve_identity(name) for name in owner or [])]
    broker = _broker(book, identity, appraise, digest, owners)
    path = socket or _folder() / SOCKET_NAME
    result = {"socket": str(path), "identity": identity.fingerprint, "policy": digest}
    text = f"The key broker of {identity.name} answers at {path}. {words}"

    def ready() -> None:
        emit(result, as_json=as_json, text=text)
        sys.stdout.flush()

    try:
        asyncio.run(_until_told(BrokerServer(broker, path, shared=shared).serve(ready)))
    finally:
        book.store.close()


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
        str, typer.Argument(metavar="DATASET", help="A dataset of your vault, or the id of a key.")
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
    """Let attested workers open a dataset: for one plan and purpose, so many times, until then."""
    import msgspec

    permission = _permission(name, purpose, plan, manifest, uses, days)
    with _owner(socket, broker_identity) as keys:
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

    book = read_log(_folder())
    entries = [decode_entry(book.entry(index)) for index in range(max(0, len(book) - last), len(book))]
    head = book.head()
    facts = {"entries": msgspec.to_builtins(entries), "size": head.size, "root": head.root.hex()}
    closing = f"{head.size} entries, root {head.root.hex()}"
    emit(facts, as_json=as_json, text="\n".join([*map(in_words, entries), closing]))


async def _until_told(serving: Any) -> None:
    """Serve until SIGTERM, which is a good end; Ctrl-C is Python's own."""
    task, told = asyncio.ensure_future(serving), asyncio.Event()

    def end() -> None:
        told.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    try:
        await task
    except asyncio.CancelledError:
        if not told.is_set():
            raise


def _policy(owner: PublicIdentity, further: list[Path]) -> tuple[Any, str, str]:
    """Return what appraises, the policies' digest, and a sentence about them."""
    from cloister.enclave.appraise import appraiser
    from cloister.enclave.policy import Policies, load_enclave_policy, read_enclave_policy
    from cloister.files import read_bytes

    parts = [load_enclave_policy(common.home(), owner)]
    parts += [
        read_enclave_policy(read_bytes(path, limit=_MAX_POLICY, what="enclave policy")) for path in further
    ]
    words = "Only hardware is accepted."
    if all(part.allow_software_tee for part in parts):
        words = "Your policy accepts software TPMs: what it releases is not hardware-protected."
    return appraiser(*parts), Policies(tuple(parts)).digest, words


def _book(identity: Identity, *, tpm: bool = False) -> Book:
    from cloister.enclave.broker import open_book

    counter = None
    if tpm:
        from cloister.enclave.attester.nv import NvCounter
        from cloister.enclave.attester.tpm import Tpm

        device = Tpm.device()

        def counter(store: str) -> NvCounter:
            return NvCounter(device, f"cloister broker {store}")

    return open_book(_folder(), common.passphrase(), identity.fingerprint, datetime.now(UTC), counter=counter)


def _broker(
    book: Book, identity: Identity, appraise: Any, digest: str, owners: list[PublicIdentity]
) -> Broker:
    from cloister.crypto import Identity as Known
    from cloister.crypto import follows
    from cloister.enclave.broker import Broker

    chain = common.successions()
    kept = [Known.read_public(path) for path in sorted(common.home().glob("identity-*.json"))]
    former = {
        each.fingerprint: identity.fingerprint for each in kept if follows(each, identity.public, chain)
    }
    return Broker(book, identity, appraise, policy=digest, owners=owners, former=former)


def _releases_nothing(
    _evidence: Evidence, _at: datetime, _expected: bytes | None, /
) -> tuple[Claims, list[str]]:
    raise PolicyRefused("nothing is released by a broker that is not served")


@contextlib.contextmanager
def _owner(socket: Path | None, broker_identity: str | None) -> Iterator[BrokerKeys]:
    """Yield the owner's side of a broker; one's own is opened where nobody serves it."""
    from cloister.enclave.broker import SOCKET_NAME, BrokerKeys, Direct, SocketLink

    identity = common.load_identity()
    named = common.resolve_identity(broker_identity) if broker_identity else identity.public
    path = socket or _folder() / SOCKET_NAME
    if socket is None and named == identity.public and not _served(path):
        book = _book(identity)
        try:
            broker = _broker(book, identity, _releases_nothing, "0" * 64, [identity.public])
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


def _permission(
    name: str, purpose: str | None, plan: str | None, manifest: str | None, uses: int, days: int
) -> Permission:
    from cloister.enclave.broker import Permission, Wanted

    kek_id, digest, purposes = _subject(name, manifest)
    if purpose is None and len(purposes) == 1:
        purpose = purposes[0]
    if purpose is None or (purposes and purpose not in purposes):
        said = f"It was added for {', '.join(map(repr, purposes))}" if purposes else "Give it with --purpose"
        raise InputError("a grant needs one of the dataset's purposes", where=name, fix=said)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    return Permission(secrets.token_hex(16), Wanted(kek_id, digest, _plan(plan), purpose), expires, uses)


def _subject(name: str, manifest: str | None) -> tuple[str, str, tuple[str, ...]]:
    """Return the key's id, the digest of what it opens, and what that may be used for (nothing: anything)."""
    from cloister.crypto import Identity, sha256
    from cloister.vault import Catalog

    if manifest is not None:
        if not _HEX32.match(manifest):
            raise InputError("--manifest is 64 hexadecimal digits", fix="Give a SHA-256")
        return name, manifest, ()
    catalog = Catalog(common.home() / "vault", Identity.read_public(common.identity_path()))
    if name not in catalog.names():
        raise InputError(
            f"there is no dataset {name!r} in your vault", fix="For a key without one, give --manifest"
        )
    found = catalog.manifest(name)
    return found.kek_id, sha256(catalog.envelope(name)).hex(), found.purposes


def _plan(text: str | None) -> str | None:
    if text is None or _HEX32.match(text):
        return text
    from cloister.learning import load_plan

    return load_plan(Path(text)).digest.hex()
