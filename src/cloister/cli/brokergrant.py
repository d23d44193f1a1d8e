"""What `cloister enclave broker grant` allows, from what was written on the command line: a dataset of this
home's vault, the folder of a sealed model, or a key's id with the digest of what it opens.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli import common
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.enclave.broker import Permission
    from cloister.inference.models.keys import ModelHandover

__all__ = ["broker_of", "granted_model", "is_model", "permission_of"]

_HEX32: Final = re.compile(r"[0-9a-f]{64}\Z")


def permission_of(
    name: str, purpose: str | None, plan: str | None, manifest: str | None, uses: int, days: int
) -> Permission:
    """Return the permission for a dataset of this home's vault, for a sealed model of this home's identity,
    or for a key and the digest of what it opens.

    Raises:
        InputError: there is no such dataset, model, purpose or plan.
        IntegrityError: the manifest is not as this home's identity signed it.
    """
    from cloister.enclave.broker import Permission, Wanted

    kek_id, digest, purposes = _subject(name, manifest)
    if purpose is None and len(purposes) == 1:
        purpose = purposes[0]
    if purpose is None or (purposes and purpose not in purposes):
        said = f"It is for {', '.join(map(repr, purposes))}" if purposes else "Give it with --purpose"
        raise InputError("a grant needs one of the purposes of what it opens", where=name, fix=said)
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
        handed = granted_model(name)
        if handed is not None:
            return handed.wanted.kek_id, handed.wanted.manifest, (handed.wanted.purpose,)
        raise InputError(
            f"there is no dataset {name!r} in your vault, and no sealed model of that path",
            fix="For a key without either, give --manifest",
        )
    found = catalog.manifest(name)
    return found.kek_id, sha256(catalog.envelope(name)).hex(), found.purposes


def granted_model(name: str) -> ModelHandover | None:
    """Return the sealed model in the folder `name`, whose key is with a broker; None where it is no folder.

    Raises:
        InputError: it is no sealed model, or its key is with no broker.
        IntegrityError: it is not as this home's identity signed it.
    """
    from cloister.cli.modelkeys import owned_model

    if not Path(name).is_dir():
        return None
    handed = owned_model(Path(name))
    if handed.broker is None:
        raise InputError(
            "the model's key is in your keystore, which needs no grant",
            where=name,
            fix="To have a broker keep it, seal the model again with --broker SOCKET",
        )
    return handed


def is_model(permission: Permission) -> bool:
    """Tell whether a permission is for a sealed model's key."""
    return permission.wanted.kek_id.startswith("model.")


def broker_of(
    handed: ModelHandover, socket: Path | None, identity: str | None
) -> tuple[Path | None, str | PublicIdentity | None]:
    """Return socket and identity of a model's broker, unless the command line names others. The socket is
    None for the broker of this home, which is opened where nobody serves it.
    """
    from cloister.cli.brokerserve import broker_folder
    from cloister.cli.modelkeys import noted_socket
    from cloister.enclave.broker import SOCKET_NAME

    whose = identity or handed.broker
    if socket is not None or identity is not None:
        return socket, whose
    place = noted_socket(handed)
    return None if place.absolute() == (broker_folder() / SOCKET_NAME).absolute() else place, whose


def _plan(text: str | None) -> str | None:
    if text is None or _HEX32.match(text):
        return text
    from cloister.learning import load_plan

    return load_plan(Path(text)).digest.hex()
