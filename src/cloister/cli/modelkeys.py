"""A sealed model at home: whose it is, where its key is, and what a worker is told to open it.

The key is in the home's keystore (VAULT/keystore.json), or in the key broker whose identity the model's
manifest names. At which socket that broker is, the folder notes in `broker.json`, unsigned: whoever changes
it names another socket, where the same broker must answer. Without a note it is the home's own broker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cloister.cli import common
from cloister.errors import InputError, IntegrityError
from cloister.files import read_bytes, write_atomic

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.enclave.broker import Attests
    from cloister.inference.models.keys import ModelHandover
    from cloister.runtime.workers.asking import Lends
    from cloister.vault import LocalKeystore

__all__ = [
    "handed_model",
    "home_keystore",
    "is_owned",
    "model_lender",
    "model_to_serve",
    "note_broker",
    "noted_socket",
    "owned_model",
]

_MAX_NOTE: Final = 8192


class _Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model's broker is served."""

    socket: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


def home_keystore(owner: PublicIdentity) -> LocalKeystore:
    """Return this home's keystore, made where there is none and the vault is empty.

    Raises:
        InputError: the vault has datasets and has lost it.
        PassphraseError, IntegrityError: it does not open.
    """
    from cloister.vault import Catalog, LocalKeystore

    path = common.home() / "vault" / "keystore.json"
    if path.exists():
        return LocalKeystore.open(path, common.passphrase())
    if Catalog(path.parent, owner).names():
        raise InputError("the vault has lost its keystore", where=str(path), fix="Restore it from a backup")
    return LocalKeystore.initialise(path, common.passphrase())


def owned_model(folder: Path) -> ModelHandover:
    """Return a sealed model of this home's own identity, the present one or a former one of it.

    Raises:
        InputError: it is no sealed model.
        IntegrityError: it is somebody else's, or its manifest is not as it was signed.
    """
    return _handed(folder, _own())


def handed_model(folder: Path) -> ModelHandover:
    """Return a sealed model of anybody whom this home trusts, itself first; needs no passphrase.

    Raises:
        InputError: it is no sealed model.
        IntegrityError: nobody whom this home trusts has sealed it, or its manifest is not as it was signed.
    """
    return _handed(folder, [*_own(), *common.trust_store().list()])


def is_owned(handed: ModelHandover) -> bool:
    """Tell whether a sealed model is this home's own."""
    return handed.owner in _own()


def model_to_serve(
    folder: Path, attester: Attests | None = None, *, socket: Path | None = None
) -> tuple[ModelHandover, Lends]:
    """Return what a worker is told to open a model, and what answers it while it does.

    Args:
        folder: the sealed model.
        attester: makes evidence of this machine, for a model whose key is with a broker.
        socket: where that broker is served; the folder's note, or the home's own, without it.

    Raises:
        InputError: it is no sealed model, or its broker is nowhere named.
        IntegrityError: it is nobody's whom this home trusts; or, with its key here, not this home's own.
        PassphraseError: the keystore does not open.
    """
    handed = handed_model(folder)
    if handed.broker is None:
        handed = owned_model(folder)
    return handed, model_lender(handed, attester, socket=socket)


def model_lender(
    handed: ModelHandover, attester: Attests | None = None, *, socket: Path | None = None
) -> Lends:
    """Return what answers a worker that opens a model; see `model_to_serve`."""
    from cloister.crypto import Identity
    from cloister.enclave.broker import SocketLink
    from cloister.inference.models.keys import lender
    from cloister.runtime.workers.brokered import BrokerAccess

    if handed.broker is None:
        return lender(handed, keys=home_keystore(Identity.read_public(common.identity_path())))
    place, kek_id = socket or noted_socket(handed), handed.manifest.kek_id
    if attester is None:
        raise InputError("a key broker wants evidence of this machine", fix="Give an attester")
    access = BrokerAccess(
        connect=lambda: SocketLink(place),
        identity=handed.broker,
        attester=attester,
        holds=lambda asked: asked == kek_id,
    )
    return lender(handed, access=access)


def note_broker(folder: Path, socket: Path) -> None:
    """Note in a sealed model's folder where its broker is served."""
    from cloister.inference.models.verify import BROKER_NOTE

    write_atomic(folder / BROKER_NOTE, msgspec.json.encode(_Note(str(socket.absolute()))))


def noted_socket(handed: ModelHandover) -> Path:
    """Return where a model's broker is served.

    Raises InputError where the note cannot be read, or there is none and the broker is not this home's own.
    """
    from cloister.crypto import Identity
    from cloister.enclave.broker import SOCKET_NAME
    from cloister.inference.models.verify import BROKER_NOTE

    path = handed.folder / BROKER_NOTE
    if path.exists():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            data = read_bytes(path, limit=_MAX_NOTE, what="note on the model's broker")
            return Path(msgspec.json.decode(data, type=_Note).socket)
        raise InputError(
            "the note on the model's broker cannot be read",
            where=str(path),
            fix="Remove it, or name a socket",
        )
    own = common.identity_path()
    if own.exists() and handed.broker == Identity.read_public(own):
        return common.home() / "broker" / SOCKET_NAME
    raise InputError(
        "nothing says where the model's key broker is served",
        where=str(handed.folder),
        fix=f'Write {{"socket": "..."}} into {BROKER_NOTE} there',
    )


def _own() -> list[PublicIdentity]:
    """Return this home's identity and its former ones, which it still answers for."""
    from cloister.crypto import Identity, follows

    own = common.identity_path()
    if not own.exists():
        return []
    present, chain = Identity.read_public(own), common.successions()
    kept = [Identity.read_public(path) for path in sorted(common.home().glob("identity-*.json"))]
    return [present, *(each for each in kept if follows(each, present, chain))]


def _handed(folder: Path, owners: Iterable[PublicIdentity]) -> ModelHandover:
    from cloister.crypto import envelope_signers
    from cloister.inference.models.keys import ModelHandover
    from cloister.inference.models.sealed import read_envelope

    signers = envelope_signers(read_envelope(folder))
    owner = next((each for each in owners if each.fingerprint in signers), None)
    if owner is None:
        raise IntegrityError(
            "the model was sealed by nobody whose it may be here",
            where=f"{folder}, signed by {', '.join(each[:16] for each in signers)}"[:400],
            fix="Get it from its owner; trust an owner with `cloister keys trust`",
        )
    handed = ModelHandover.of(folder, owner)
    if handed.broker is None:
        return handed
    return ModelHandover.of(folder, owner, _present(handed.broker))


def _present(broker: PublicIdentity) -> PublicIdentity:
    """Return the identity that a broker has now: the home's own, where its keys were rotated with them."""
    own = _own()
    return own[0] if broker in own else broker
