"""`cloister enclave broker serve`, and how a home's broker is opened."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, say

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity
    from cloister.enclave.broker import Book, Broker

__all__ = ["broker_folder", "home_book", "home_broker", "policy_in_force", "serve"]

_MAX_POLICY: Final = 1 << 20


def broker_folder() -> Path:
    """Return where this home's broker is."""
    return common.home() / "broker"


def serve(
    socket: Annotated[Path | None, typer.Option(help="Where to answer; in your home without it.")] = None,
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
    from cloister.enclave.sandbox.limits import shut_readers

    shut_readers()  # before the first secret
    identity = common.load_identity()
    appraise, digest, words = policy_in_force(identity.public, policy or [])
    book = home_book(identity, tpm=tpm)
    owners = [identity.public, *(common.resolve_identity(name) for name in owner or [])]
    broker = home_broker(book, identity, appraise, digest, owners)
    path = socket or broker_folder() / SOCKET_NAME
    result = {"socket": str(path), "identity": identity.fingerprint, "policy": digest}
    text = f"The key broker of {identity.name} answers at {path}. {words}"

    def ready() -> None:
        emit(result, as_json=as_json, text=text)
        sys.stdout.flush()

    try:
        asyncio.run(_until_told(BrokerServer(broker, path, shared=shared, say=say).serve(ready)))
    finally:
        book.store.close()


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


def policy_in_force(owner: PublicIdentity, further: list[Path]) -> tuple[Any, str, str]:
    """Return what appraises, the policies' digest, and a sentence about them."""
    from cloister.enclave.appraise import appraiser
    from cloister.enclave.policy import Policies
    from cloister.enclave.policyfile import load_enclave_policy, read_enclave_policy
    from cloister.files import read_bytes

    parts = [load_enclave_policy(common.home(), owner)]
    parts += [
        read_enclave_policy(read_bytes(path, limit=_MAX_POLICY, what="enclave policy")) for path in further
    ]
    words = "Only hardware is accepted."
    if all(part.allow_software_tee for part in parts):
        words = "Your policy accepts software TPMs: what it releases is not hardware-protected."
    return appraiser(*parts), Policies(tuple(parts)).digest, words


def home_book(identity: Identity, *, tpm: bool = False) -> Book:
    """Return store and log of this home's broker, made where there are none; errors as `open_book`."""
    from cloister.enclave.broker import open_book

    counter = None
    if tpm:
        from cloister.enclave.attester.nv import NvCounter
        from cloister.enclave.attester.tpm import Tpm

        device = Tpm.device()

        def counter(store: str) -> NvCounter:
            return NvCounter(device, f"cloister broker {store}")

    return open_book(
        broker_folder(), common.passphrase(), identity.fingerprint, datetime.now(UTC), counter=counter
    )


def home_broker(
    book: Book, identity: Identity, appraise: Any, digest: str, owners: list[PublicIdentity]
) -> Broker:
    """Return this home's broker; keys of its owner's former identities obey the present one."""
    from cloister.crypto import Identity as Known
    from cloister.crypto import follows
    from cloister.enclave.broker import Broker

    chain = common.successions()
    kept = [Known.read_public(path) for path in sorted(common.home().glob("identity-*.json"))]
    former = {
        each.fingerprint: identity.fingerprint for each in kept if follows(each, identity.public, chain)
    }
    return Broker(book, identity, appraise, policy=digest, owners=owners, former=former)
