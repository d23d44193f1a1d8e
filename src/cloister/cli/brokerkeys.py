"""Where a vault's keys are: in its local keystore, and, for datasets that were added with `--broker`, in a
key broker. VAULT/broker.json remembers which one, so that `rm` destroys a key where it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cloister.cli import common
from cloister.errors import InputError
from cloister.files import read_bytes, write_atomic

if TYPE_CHECKING:
    from cloister.cli.evidence import HomeEvidence
    from cloister.crypto import Identity, PublicIdentity
    from cloister.enclave.broker import BrokerKeys
    from cloister.runtime.workers.brokered import BrokerAccess
    from cloister.vault import Vault

__all__ = ["broker_keys", "keep_broker", "kept_broker", "open_vault", "vault_and_broker"]

_FILE: Final = "broker.json"
_MAX_FILE: Final = 64 << 10


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which broker holds keys of this vault."""

    socket: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    identity: Annotated[bytes, msgspec.Meta(max_length=8192)]


def broker_keys(socket: Path, broker: PublicIdentity, owner: Identity) -> BrokerKeys:
    """Return the owner's side of the broker that serves a socket; it connects when it is first used."""
    from cloister.enclave.broker import BrokerKeys, SocketLink

    return BrokerKeys(lambda: SocketLink(socket), broker, owner=owner)


def kept_broker(root: Path) -> tuple[Path, PublicIdentity] | None:
    """Return socket and identity of the broker that holds keys of a vault; None where none does.

    Raises:
        InputError: the file that says so cannot be read.
    """
    from cloister.crypto import Identity, PublicIdentity, follows

    path = root / _FILE
    if not path.exists():
        return None
    try:
        kept = msgspec.json.decode(read_bytes(path, limit=_MAX_FILE, what="note on the broker"), type=_Kept)
    except (msgspec.DecodeError, UnicodeDecodeError):
        what = "the vault's note on its key broker cannot be read"
        raise InputError(what, where=str(path), fix="Restore it") from None
    broker = PublicIdentity.from_json(kept.identity)
    own = common.identity_path()
    if own.exists() and follows(broker, present := Identity.read_public(own), common.successions()):
        broker = present  # the owner's own broker, whose keys were rotated with the owner's
    return Path(kept.socket), broker


def keep_broker(root: Path, socket: Path, broker: PublicIdentity) -> None:
    """Remember the broker of a vault. Raises InputError where it has another: a vault has one."""
    kept = kept_broker(root)
    if kept is not None and kept[1] != broker:
        raise InputError(
            f"keys of this vault are with another key broker, {kept[1].name}",
            where=str(kept[0]),
            fix="Add the dataset there, or to the vault of another home",
        )
    note = _Kept(str(socket.absolute()), broker.to_json())
    write_atomic(root / _FILE, msgspec.json.encode(note), mode=0o600)


def open_vault(
    root: Path, owner: Identity, passphrase: str, *, new_to: tuple[Path, PublicIdentity] | None = None
) -> Vault:
    """Return a vault whose keys are where they are.

    Args:
        root: the vault's folder.
        owner: its owner.
        passphrase: of its keystore.
        new_to: socket and identity of the broker that gets the keys of new datasets; None for the keystore.

    Raises:
        PassphraseError, InputError, IntegrityError: as `Vault.unlock`.
        StorageError: no broker answers there.
    """
    from cloister.vault import LocalKeystore, SplitKeys, Vault

    if new_to is not None:
        probe = broker_keys(*new_to, owner)
        probe.inventory()  # before a row is read: it answers, is the one that was meant, and takes orders
        probe.close()
        keep_broker(root, *new_to)
    kept = kept_broker(root)
    if kept is None or not (root / "keystore.json").exists():
        plain = Vault.unlock(root, owner, passphrase)
        if kept is None:
            return plain
    local = LocalKeystore.open(root / "keystore.json", passphrase)
    keys = SplitKeys(local, broker_keys(*kept, owner), new=new_to is not None)
    return Vault(root, owner, keys)


def vault_and_broker(
    home: Path, owner: Identity, passphrase: str, evidence: HomeEvidence
) -> tuple[Vault, BrokerAccess | None]:
    """Return a home's vault, and how its workers reach the broker that keeps keys of it; None without one.

    Args:
        home: the home.
        owner: its identity.
        passphrase: of its keystore.
        evidence: gives what the broker is shown, when a worker first asks it for a key.

    Raises:
        PassphraseError, InputError, IntegrityError: as `Vault.unlock`.
    """
    from cloister.enclave.broker import SocketLink
    from cloister.runtime.workers.brokered import BrokerAccess
    from cloister.vault import LocalKeystore, SplitKeys, Vault

    root = home / "vault"
    kept = kept_broker(root)
    if kept is None or not (root / "keystore.json").exists():
        return Vault.unlock(root, owner, passphrase), None
    socket, identity = kept
    local = LocalKeystore.open(root / "keystore.json", passphrase)
    keys = SplitKeys(local, broker_keys(*kept, owner), new=False)
    access = BrokerAccess(
        connect=lambda: SocketLink(socket), identity=identity, attester=evidence, holds=keys.elsewhere
    )
    return Vault(root, owner, keys), access
