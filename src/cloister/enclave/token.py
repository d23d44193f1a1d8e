"""Appraisal results as a signed token, in the terms of EAR (draft-ietf-rats-ear) and AR4SI.

The payload is JSON with EAR's claims: verifier, time, nonce, and for each attester a status, a
trustworthiness vector and the digest of the policy. The named claims stand beside them under `cloister.`,
null where nothing was checked. It is signed as a DSSE envelope by the verifier's identity, not as a JWT: one
signature format in one product. Values of the vector are AR4SI's: 2 affirming, 32 warning, 96
contraindicated, 99 where cryptographic validation failed, 0 where nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final, Literal

import msgspec

from cloister.crypto.dsse import Signer, open_envelope, sign_envelope
from cloister.crypto.signing import VerifyKey
from cloister.enclave.appraise import Appraisal
from cloister.enclave.claims import Claims, Protection
from cloister.errors import IntegrityError

__all__ = ["TOKEN_TYPE", "Token", "issue_token", "open_token"]

TOKEN_TYPE: Final = "application/vnd.cloister.ear+json"  # noqa: S105  # a media type
_PROFILE: Final = "tag:github.com,2023:veraison/ear"
_AFFIRMING, _WARNING, _CONTRA, _CRYPTO, _NONE = 2, 32, 96, 99, 0

Status = Literal["affirming", "warning", "contraindicated", "none"]


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a verifier states about evidence that it appraised.

    Attributes:
        eat_profile: names EAR.
        iat: time of the appraisal, seconds since 1970.
        verifier: who appraised: developer and build.
        eat_nonce: what the verifier had asked for, hexadecimal; null where it had not.
        evidence: SHA-256 of the evidence, hexadecimal.
        protection: "hardware" or "not hardware-protected".
        submods: an attester's result by name: "machine", "device-0", ...
        accepted: whether the policy accepts all of it.
        reasons: why not.
    """

    eat_profile: str
    iat: int
    verifier: Mapping[str, str] = msgspec.field(name="ear.verifier-id")
    eat_nonce: str | None
    evidence: str = msgspec.field(name="cloister.evidence")
    protection: Protection = msgspec.field(name="cloister.protection")
    submods: Mapping[str, Submodule]
    accepted: bool = msgspec.field(name="cloister.accepted")
    reasons: tuple[str, ...] = msgspec.field(name="cloister.reasons")


class Submodule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attester's result."""

    status: Status = msgspec.field(name="ear.status")
    vector: Mapping[str, int] = msgspec.field(name="ear.trustworthiness-vector")
    policy: str = msgspec.field(name="ear.appraisal-policy-id")
    claims: Claims = msgspec.field(name="cloister.claims")


def issue_token(appraisal: Appraisal, signer: Signer) -> bytes:
    """Return the envelope of an appraisal's token, signed by the verifier."""
    claims = appraisal.claims
    submods = {"machine": claims, **{f"device-{index}": each for index, each in enumerate(claims.devices)}}
    token = Token(
        eat_profile=_PROFILE,
        iat=int(appraisal.at.timestamp()),
        verifier={"developer": "cloister", "build": metadata.version("cloister")},
        eat_nonce=None if appraisal.expected is None else appraisal.expected.hex(),
        evidence=appraisal.evidence.hex(),
        protection=claims.protection,
        submods={
            name: Submodule(
                _status(each, accepted=appraisal.accepted),
                _vector(each),
                appraisal.policy,
                msgspec.structs.replace(each, devices=()),
            )
            for name, each in submods.items()
        },
        accepted=appraisal.accepted,
        reasons=appraisal.reasons,
    )
    return sign_envelope(TOKEN_TYPE, msgspec.json.encode(token), [signer])


def open_token(data: bytes, keys: Mapping[str, VerifyKey], *, at: datetime, max_age_seconds: float) -> Token:
    """Return a token that a known verifier signed and that is not older than it may be.

    Args:
        data: the envelope.
        keys: verifiers that are trusted, as `keyring` gives them.
        at: now, with its zone.
        max_age_seconds: how old it may be; one from the future is refused too.

    Raises:
        IntegrityError: not signed by one of them, not a token, too old, or from the future.
    """
    payload = open_envelope(data, TOKEN_TYPE, keys)
    try:
        token = msgspec.json.decode(payload, type=Token)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntegrityError("a signed token does not parse", fix="Ask for it again") from None
    age = at.timestamp() - token.iat
    if not -60.0 <= age <= max_age_seconds:
        made = datetime.fromtimestamp(token.iat, UTC).isoformat(timespec="seconds")
        raise IntegrityError(f"the token was made at {made}, not recently", fix="Appraise the evidence again")
    return token


def _status(claims: Claims, *, accepted: bool) -> Status:
    vector = _vector(claims).values()
    if not accepted or any(value >= _CONTRA for value in vector):
        return "contraindicated"
    return "warning" if any(value >= _WARNING for value in vector) else "affirming"


def _vector(claims: Claims) -> dict[str, int]:
    """Return AR4SI's vector: genuine hardware, recognised identity, approved software, configuration."""
    sound = claims.signature is True and claims.chain is True
    hardware = _NONE
    if claims.hardware_rooted is not None:
        hardware = _AFFIRMING if claims.hardware_rooted and sound else _CONTRA
    if hardware == _AFFIRMING and claims.tcb_status not in (None, "UpToDate"):
        hardware = _WARNING
    executables = {True: _AFFIRMING, False: _CONTRA, None: _NONE}[claims.measurement_match]
    if executables == _AFFIRMING and claims.self_reported is not False:
        executables = _WARNING
    debug: dict[bool | None, int] = {True: _CONTRA, False: _AFFIRMING, None: _NONE}
    vector: dict[str, Any] = {
        "instance-identity": _AFFIRMING if sound else _CRYPTO,
        "configuration": debug[claims.debug],
        "executables": executables,
        "hardware": hardware,
    }
    return vector
