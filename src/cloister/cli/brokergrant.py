"""What `cloister enclave broker grant` allows, from what was written on the command line."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli import common
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.enclave.broker import Permission

__all__ = ["permission_of"]

_HEX32: Final = re.compile(r"[0-9a-f]{64}\Z")


def permission_of(
    name: str, purpose: str | None, plan: str | None, manifest: str | None, uses: int, days: int
) -> Permission:
    """Return the permission for a dataset of this home's vault, or for a key and the digest of what it opens.

    Raises:
        InputError: there is no such dataset, purpose or plan.
    """
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
