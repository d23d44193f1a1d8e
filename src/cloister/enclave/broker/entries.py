"""What a key broker enters in its log: canonical JSON, one entry a release, a refusal or an owner's order.

`sequence` numbers the changes of the store; it is null where nothing changed. An entry names digests,
permissions and reasons, and holds no key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from cloister.crypto import canonical_bytes
from cloister.enclave.broker.grant import Grant, Permission, Wanted
from cloister.enclave.claims import Claims, Protection
from cloister.errors import IntegrityError

__all__ = [
    "Allowed",
    "Anchored",
    "Appraised",
    "Entry",
    "Interrupted",
    "KekGone",
    "KekMade",
    "Refusal",
    "ReleaseMade",
    "Revoked",
    "appraised",
    "decode_entry",
    "encode_entry",
    "short_reasons",
]

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_MAX_NAMES = 64


class Appraised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What evidence showed, as far as it is kept.

    Attributes:
        kind: of the evidence.
        protection: "hardware", or "not hardware-protected".
        debug, measurement_match, self_reported: the claims of these names.
        measurements: the first 64, by name.
        platform: identifier of the machine, where there is one.
    """

    kind: str
    protection: Protection
    debug: bool | None
    measurement_match: bool | None
    self_reported: bool | None
    measurements: Mapping[str, str]
    platform: str | None


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="entry"):
    at: _Moment
    sequence: int | None


class KekMade(_Entry, frozen=True, tag="created"):
    """An owner made a KEK."""

    kek_id: str
    owner: str


class KekGone(_Entry, frozen=True, tag="destroyed"):
    """An owner destroyed one."""

    kek_id: str
    owner: str


class Allowed(_Entry, frozen=True, tag="allowed"):
    """An owner entered a permission."""

    permission: Permission
    owner: str


class Revoked(_Entry, frozen=True, tag="revoked"):
    """An owner ended one, or destroyed its key."""

    permission: str
    owner: str


class ReleaseMade(_Entry, frozen=True, tag="released"):
    """Data keys were sealed to a worker; entered before they left.

    Attributes:
        grant: what they are bound to.
        count: how many.
        more: whether it was under a grant that an earlier entry made; then `sequence` is null.
        appraised: what the evidence showed.
    """

    grant: Grant
    count: int
    more: bool
    appraised: Appraised


class Refusal(_Entry, frozen=True, tag="refused"):
    """A request was refused.

    Attributes:
        what: "release", "more" or an owner's order.
        reasons: why.
        wanted: what was asked for, where it could be read.
        worker: SHA-256 of the worker's key.
        evidence: digest of the evidence.
        appraised: what it showed, where it came so far.
    """

    what: str
    reasons: tuple[str, ...]
    wanted: Wanted | None = None
    worker: str | None = None
    evidence: str | None = None
    appraised: Appraised | None = None


class Anchored(_Entry, frozen=True, tag="anchored"):
    """From here on every change is counted by a hardware counter too."""


class Interrupted(_Entry, frozen=True, tag="interrupted"):
    """The change of this number is durable and its entry is missing: the broker ended before it wrote it, and
    then nothing was released; or somebody cut the log."""


Entry = KekMade | KekGone | Allowed | Revoked | ReleaseMade | Refusal | Anchored | Interrupted


def appraised(claims: Claims) -> Appraised:
    """Return what is kept of claims."""
    return Appraised(
        kind=claims.kind,
        protection=claims.protection,
        debug=claims.debug,
        measurement_match=claims.measurement_match,
        self_reported=claims.self_reported,
        measurements={name: value[:256] for name, value in list(claims.measurements.items())[:_MAX_NAMES]},
        platform=claims.platform[:256] if claims.platform else None,
    )


def short_reasons(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return reasons in lengths that fit an entry and an answer."""
    return tuple(reason[:400] for reason in reasons[:40])


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes that are logged."""
    return canonical_bytes(entry)


def decode_entry(data: bytes) -> Entry:
    """Return an entry. Raises IntegrityError where it is none."""
    try:
        entry: Entry = msgspec.json.decode(data, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntegrityError(
            "an entry of the broker's log cannot be read", fix="Use the same version"
        ) from None
    return entry
