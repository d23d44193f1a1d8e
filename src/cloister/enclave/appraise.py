"""Appraisal: from evidence to named claims, whatever its kind; and with a policy, to a verdict.

`appraise` sees evidence, a time, what the verifier asked for and reference values; it opens no file, no
socket and no clock. Malformed evidence is an InputError, evidence that does not hold up has a claim that is
false. It accepts nothing: that is `EnclavePolicy`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cloister.crypto.signing import SignatureAlgorithm, VerifyKey
from cloister.enclave.claims import Claims, Protection
from cloister.enclave.evidence import Evidence, Kind
from cloister.enclave.policy import EnclavePolicy, Policies, Reference, TpmRules
from cloister.errors import CloisterError, InputError

if TYPE_CHECKING:
    from cloister.enclave.kinds.tpmroots import TpmTrust

__all__ = ["Appraisal", "Appraise", "appraise", "appraiser", "judge"]


_NOBODY: Final = TpmRules()


class Appraise(Protocol):
    """What a room that asks for evidence needs: claims, and the reasons to refuse."""

    def __call__(
        self, evidence: Evidence, at: datetime, expected: bytes | None, /
    ) -> tuple[Claims, list[str]]:
        """Return what was found out, and why it is refused; no reasons where it is accepted."""


class _Verify(Protocol):
    def __call__(self, evidence: Evidence, *, at: datetime, expected: bytes | None) -> Claims: ...


def _verifier(kind: Kind, rules: TpmRules) -> _Verify:
    """Return the verifier of a kind, imported when it is needed."""
    found: _Verify
    match kind:
        case "snp":
            from cloister.enclave.kinds import snp

            found = snp.verify
        case "tdx" | "sgx":
            from cloister.enclave.kinds import intel

            found = intel.verify
        case "tpm":
            from cloister.enclave.kinds import tpm

            found = partial(tpm.verify, trust=_trust(rules))
        case "azure-snp-vtpm" | "azure-tdx-vtpm":
            from cloister.enclave.kinds import azure

            found = azure.verify
        case "nitro":
            from cloister.enclave.kinds import nitro

            found = nitro.verify
        case "nvidia-gpu" | "nvidia-switch":
            from cloister.enclave.kinds import nvidia

            found = nvidia.verify
    return found


def appraise(
    evidence: Evidence,
    *,
    at: datetime,
    expected: bytes | None = None,
    references: Sequence[Reference] = (),
    tpm: TpmRules = _NOBODY,
) -> Claims:
    """Return what a piece of evidence shows.

    Args:
        evidence: of a machine, with that of its devices.
        at: the time to appraise at, with its zone; certificates and collateral must be in force then.
        expected: the 64 bytes that `report_data` gave the verifier, or a sample's own nonce; None where
            nobody asked, and then freshness stays null.
        references: images whose measurements are known; without any, measurement_match stays null.
        tpm: whom to believe about TPMs; without it none is rooted in hardware.

    Raises:
        InputError: malformed, truncated, of another kind than it says, or a time without a zone.
    """
    if at.tzinfo is None:
        raise InputError("the time of an appraisal has no zone", fix="Give it in UTC, such as ...Z")
    claims = _verifier(evidence.kind, tpm)(evidence, at=at, expected=expected)
    devices = tuple(_verifier(each.kind, tpm)(each, at=at, expected=expected) for each in evidence.devices)
    match: bool | None = claims.measurement_match
    reasons = dict(claims.reasons)
    if references:
        match = any(reference.matches(claims) for reference in references)
        if not match:
            reasons["measurement_match"] = "none of the reference values is what was measured"
    elif match is None:
        reasons.setdefault("measurement_match", "no reference values were given")
    return msgspec.structs.replace(claims, measurement_match=match, devices=devices, reasons=reasons)


def _trust(rules: TpmRules) -> TpmTrust:
    from cloister.enclave.kinds.tpmroots import TpmTrust

    algorithm = SignatureAlgorithm.ED25519
    keys = {
        name: VerifyKey.from_bytes(algorithm, bytes.fromhex(key)) for name, key in rules.verifiers.items()
    }
    return TpmTrust(dict(rules.makers), keys)


@dataclass(frozen=True)
class Appraisal:
    """A verdict, with all it rests on.

    Attributes:
        claims: what was found out.
        reasons: why it is refused; empty where it is accepted.
        policy: digest of the policies that decided, hexadecimal.
        evidence: digest of the evidence, 32 bytes.
        at: the time it was appraised at.
        expected: what the verifier had asked for, or None.
    """

    claims: Claims
    reasons: tuple[str, ...]
    policy: str
    evidence: bytes
    at: datetime
    expected: bytes | None

    @property
    def accepted(self) -> bool:
        """Whether no policy refuses it."""
        return not self.reasons

    @property
    def protection(self) -> Protection:
        """What vouches for it, in words."""
        return self.claims.protection


def judge(
    evidence: Evidence, policies: Policies, *, at: datetime, expected: bytes | None = None
) -> Appraisal:
    """Return the verdict of policies on evidence; errors as `appraise`."""
    claims = appraise(evidence, at=at, expected=expected, references=policies.references, tpm=policies.tpm)
    reasons = tuple(policies.check(claims, at))
    return Appraisal(claims, reasons, policies.digest, evidence.digest, at, expected)


def appraiser(
    *policies: EnclavePolicy,
) -> Callable[[Evidence, datetime, bytes | None], tuple[Claims, list[str]]]:
    """Return an `Appraise` under policies. Malformed evidence is refused with its error as the reason, and so
    is what makes a library fail, with the failure's name."""
    together = Policies(policies)

    def decide(evidence: Evidence, at: datetime, expected: bytes | None, /) -> tuple[Claims, list[str]]:
        try:
            verdict = judge(evidence, together, at=at, expected=expected)
        except CloisterError as error:
            return Claims(kind=evidence.kind, signature=False), [str(error)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  # a peer chose these bytes; a panic in Rust is no Exception
            why = f"it could not be appraised ({type(error).__name__})"
            return Claims(kind=evidence.kind, signature=False), [why]
        return verdict.claims, list(verdict.reasons)

    return decide
