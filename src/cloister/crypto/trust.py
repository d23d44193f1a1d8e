"""Whose public identities are trusted, and how new keys follow old ones.

A trusted identity is a file NAME.json in one folder, put there by the owner of the folder after comparing
fingerprints. Under a name there is one identity. Another one replaces it only

- with a succession: for each change of keys a DSSE envelope {old, new}, signed by the old identity and by the
  new one, leading without a gap from the trusted identity to the offered one; or
- with `replace=True`, the owner's word.

A succession proves that whoever held the old keys wanted the new ones. Where the old keys were stolen, that
is the thief: then the owner compares fingerprints again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloister.crypto.canonical import canonical_bytes
from cloister.crypto.dsse import open_envelope, sign_envelope
from cloister.crypto.identity import Identity, PublicIdentity, keyring
from cloister.errors import InputError, IntegrityError
from cloister.files import read_bytes, write_atomic
from cloister.types import check_name

__all__ = ["SUCCESSION_TYPE", "TrustStore", "declare_successor", "export_identity", "follows", "read_export"]

SUCCESSION_TYPE: Final = "application/vnd.cloister.succession+json"
_MAX_EXPORT: Final = 8 << 20
_MAX_CHAIN: Final = 256


class _Succession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    old: PublicIdentity
    new: PublicIdentity


class _Export(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag="cloister/identity-export/v1",
    tag_field="type",
):
    """A public identity and the successions that led to it, oldest first."""

    identity: PublicIdentity
    successions: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=_MAX_CHAIN)]


def declare_successor(old: Identity, new: Identity) -> bytes:
    """Return the envelope saying that `new` follows `old`, signed by both. Raises InputError: two names."""
    if old.name != new.name:
        raise InputError("a successor keeps the name", fix="Make a new identity for a new name")
    payload = canonical_bytes(_Succession(old.public, new.public))
    return sign_envelope(SUCCESSION_TYPE, payload, [old, new])


def export_identity(identity: PublicIdentity, successions: Sequence[bytes] = ()) -> bytes:
    """Return the JSON that others import: the identity, with its successions where it has any."""
    if not successions:
        return identity.to_json()
    export = _Export(identity, tuple(successions[-_MAX_CHAIN:]))
    return msgspec.json.format(msgspec.json.encode(export), indent=2) + b"\n"


def read_export(data: bytes) -> tuple[PublicIdentity, tuple[bytes, ...]]:
    """Return the identity in an export, its own signature checked, and its successions, not yet checked.

    Raises:
        InputError: not an export.
        IntegrityError: the identity was altered.
    """
    try:
        found = msgspec.json.decode(data, type=PublicIdentity | _Export)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"this is not an exported identity: {error}", fix="Ask its owner to export it again"
        ) from None
    return (found, ()) if isinstance(found, PublicIdentity) else (found.identity, found.successions)


def _open_succession(envelope: bytes) -> _Succession:
    """Return the statement if both of the identities it names have signed it.

    The payload must be read to know who should have signed; it is read strictly, and believed only once both
    have.
    """
    try:
        claimed = msgspec.json.decode(_payload_of(envelope), type=_Succession)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntegrityError("a succession cannot be read", fix="Ask for the export again") from None
    open_envelope(envelope, SUCCESSION_TYPE, keyring([claimed.old, claimed.new]), required=2)
    if claimed.old.name != claimed.new.name:
        raise IntegrityError("a succession changes the name", fix="Ask for the export again")
    return claimed


def _payload_of(envelope: bytes) -> bytes:
    return msgspec.json.decode(envelope, type=_PayloadOnly).payload


class _PayloadOnly(msgspec.Struct, frozen=True):
    payload: bytes


def follows(trusted: PublicIdentity, offered: PublicIdentity, successions: Sequence[bytes]) -> bool:
    """Return whether successions lead without a gap from the trusted identity to the offered one.

    Raises:
        IntegrityError: a succession is not signed as it should be.
    """
    wanted = offered.fingerprint
    for envelope in reversed(successions):
        if wanted == trusted.fingerprint:
            break
        step = _open_succession(envelope)
        if step.new.fingerprint == wanted:
            wanted = step.old.fingerprint
    return wanted == trusted.fingerprint


class TrustStore:
    """The public identities trusted by the owner of `folder`, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder

    def add(
        self, public: PublicIdentity, successions: Sequence[bytes] = (), *, replace: bool = False
    ) -> None:
        """Trust `public` under its name.

        Args:
            public: the identity; compare its fingerprint with its owner over another channel first.
            successions: from its export.
            replace: whether it may replace a trusted one without a succession.

        Raises:
            InputError: another identity is trusted under this name, and nothing allows the change.
            IntegrityError: a succession is not signed as it should be.
            StorageError: it cannot be written.
        """
        known = self._find(public.name)
        if known is not None and not replace and not follows(known, public, successions):
            raise InputError(
                f"another identity is trusted as {public.name}, which declared no successor like this",
                where=f"trusted {known.fingerprint[:16]}, offered {public.fingerprint[:16]}",
                fix="Compare fingerprints with its owner, then use --replace",
            )
        write_atomic(self._path(public.name), public.to_json())

    def get(self, name: str) -> PublicIdentity:
        """Return the identity trusted as `name`. Raises InputError where there is none."""
        found = self._find(name)
        if found is None:
            raise InputError(
                f"no identity is trusted as {name}", where=str(self.folder), fix="Use `cloister keys trust`"
            )
        return found

    def by_fingerprint(self, fingerprint: str) -> PublicIdentity:
        """Return the trusted identity with this fingerprint. Raises InputError where there is none."""
        for public in self.list():
            if public.fingerprint == fingerprint:
                return public
        raise InputError(
            f"no trusted identity has the fingerprint {fingerprint[:16]}",
            where=str(self.folder),
            fix="Use `cloister keys trust`",
        )

    def list(self) -> list[PublicIdentity]:
        """Return all trusted identities by name."""
        return [self.get(path.stem) for path in sorted(self.folder.glob("*.json"))]

    def remove(self, name: str) -> None:
        """Trust `name` no more. Raises InputError where it was not trusted."""
        self.get(name)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name, 'an identity')}.json"

    def _find(self, name: str) -> PublicIdentity | None:
        path = self._path(name)
        if not path.exists():
            return None
        public = PublicIdentity.from_json(read_bytes(path, limit=_MAX_EXPORT, what="trusted identity"))
        if public.name != name:
            raise IntegrityError(
                "a trusted identity's file was renamed", where=str(path), fix="Remove it and trust it again"
            )
        return public
