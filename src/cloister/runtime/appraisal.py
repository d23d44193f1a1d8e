"""What is kept of an appraisal: verdicts by name, whose evidence, who judged it, and when.

The evidence itself stays with who appraised it; its digest stands here. Neither the machine's identifier nor
what was measured is in it, since it travels with a release. A site signs its appraisal of the hub's
aggregator, so that a reader of the release need not take the hub's word for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cloister.crypto import Identity, PublicIdentity, canonical_bytes, keyring, open_envelope, sign_envelope
from cloister.enclave.claims import VERDICTS, Claims, Protection, protection_by
from cloister.enclave.evidence import Evidence, Kind
from cloister.errors import IntegrityError

__all__ = [
    "AGGREGATOR",
    "APPRAISAL_TYPE",
    "WORKER",
    "Appraisal",
    "Appraised",
    "appraisal_of",
    "open_appraisal",
    "sign_appraisal",
]

WORKER: Final = "cloister/worker/v1"
"""Purpose of the evidence of a site's worker; its key is the worker's own identity."""
AGGREGATOR: Final = "cloister/aggregator/v1"
"""Purpose of the evidence of a hub's aggregator; its key is the hub's identity."""
APPRAISAL_TYPE: Final = "application/vnd.cloister.appraisal+json"

_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z", max_length=63)]
_Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", max_length=20)]
_Text = Annotated[str, Meta(min_length=1, max_length=100)]


class Appraisal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence that was accepted.

    Attributes:
        plan: digest of the study's plan; hex.
        party: whose evidence.
        by: who appraised it.
        purpose: `WORKER` or `AGGREGATOR`.
        kind: of the evidence.
        hardware: whether hardware vouches for it; else it is not hardware-protected.
        key: SHA-256 of the exported public identity that it vouches for; hex.
        evidence: digest of the evidence; hex.
        at: when it was appraised, by the clock of who did.
        claims: verdicts by name; null was not checked.
        tcb_status: the maker's word on the firmware, null where there is none.
        devices: attached devices whose evidence was accepted with it.
    """

    plan: _Hex
    party: _Name
    by: _Name
    purpose: _Text
    kind: Kind
    hardware: bool
    key: _Hex
    evidence: _Hex
    at: _Moment
    claims: Annotated[dict[_Text, bool | None], Meta(max_length=32)]
    tcb_status: _Text | None = None
    devices: Annotated[int, Meta(ge=0, le=64)] = 0

    @property
    def protection(self) -> Protection:
        """What vouches for it, in words."""
        return protection_by(self.hardware)


class Appraised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a hub keeps of one site under `[enclave] required`.

    Attributes:
        worker: its own appraisal of the site's worker.
        aggregator: the site's signed appraisal of the hub's aggregator (DSSE).
    """

    worker: Appraisal
    aggregator: str


def appraisal_of(
    claims: Claims,
    evidence: Evidence,
    *,
    plan: bytes,
    party: str,
    by: str,
    purpose: str,
    key: bytes,
    at: datetime,
) -> Appraisal:
    """Return what is kept of evidence that was accepted.

    Args:
        claims: what its appraisal found.
        evidence: the evidence.
        plan: 32-byte digest of the study's plan.
        party: whose evidence.
        by: who appraised it.
        purpose: what it was shown for.
        key: digest of the key it vouches for.
        at: when, in UTC.
    """
    return Appraisal(
        plan=plan.hex(),
        party=party,
        by=by,
        purpose=purpose,
        kind=claims.kind,
        hardware=not claims.software_only,
        key=key.hex(),
        evidence=evidence.digest.hex(),
        at=at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        claims={name: getattr(claims, name) for name in VERDICTS},
        tcb_status=claims.tcb_status,
        devices=len(claims.devices),
    )


def sign_appraisal(appraisal: Appraisal, signer: Identity) -> bytes:
    """Return a signed appraisal (DSSE)."""
    return sign_envelope(APPRAISAL_TYPE, canonical_bytes(appraisal), [signer])


def open_appraisal(envelope: bytes, signer: PublicIdentity) -> Appraisal:
    """Return the appraisal that `signer` signed, and that says it is by it.

    Raises:
        IntegrityError: it is not signed so, or is no appraisal in canonical form.
    """
    payload = open_envelope(envelope, APPRAISAL_TYPE, keyring([signer]))
    try:
        appraisal = msgspec.json.decode(payload, type=Appraisal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"a signed appraisal does not parse: {error}") from None
    if canonical_bytes(appraisal) != payload or appraisal.by != signer.name:
        raise IntegrityError("a signed appraisal is not in canonical form, or by somebody else")
    return appraisal
