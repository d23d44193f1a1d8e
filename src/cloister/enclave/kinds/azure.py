"""Evidence of Azure's confidential machines: hardware report, runtime data, and a quote of the virtual TPM.

The TPM is the paravisor's, inside the protected machine: hardware signs the digest of runtime data, runtime
data names the TPM's key, and that key signs registers and nonce. `evidence` is the JSON document of the
confidential-containers attesters (versions 0 and 1 for SNP, 0 for TDX). Endorsements: for SNP `ask` and
`ark` (or `ask_ark`) and `crl`; the VCEK is in the document; for TDX collateral (see `intel`). `event_log` is
that of the machine's firmware, or a start log after it.

Steps:
1. everything parses, strictly, and is of the kind that the evidence says;
2. the hardware's report: `snp.verify_report`, or `intel.verify_quote` with a TD report that is the quote's;
3. bindings: its report data is the digest of the runtime data; of SNP, the paravisor asked for it (VMPL 0);
4. signature: also the TPM's, under the key that runtime data names; bindings: also the registers;
5. freshness: qualifyingData of the TPM's quote. The hardware's report is of the machine's start, older;
6. event_log: replays to the registers.

hardware_rooted takes all of 2 to 4: without them the registers are anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.enclave.claims import Claims
from cloister.enclave.eventlog.replay import Replayed, replays
from cloister.enclave.evidence import Evidence
from cloister.enclave.kinds import hcl, intel, snp, tpmwire
from cloister.enclave.kinds.binding import carries, commits_to, load_canonical
from cloister.enclave.kinds.collateral import COLLATERAL_NAMES
from cloister.enclave.kinds.intelquote import parse_quote
from cloister.enclave.kinds.tpm import event_log_claim, pcr_digest_holds, registers
from cloister.enclave.kinds.tpmquote import Quote
from cloister.enclave.kinds.urlsafe import from_base64url
from cloister.errors import InputError

__all__ = ["UNAUTHENTICATED", "verify"]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = hcl.TDREPORT_UNAUTHENTICATED
"""Of a TDX machine's HCL report; of an SNP machine's nothing. In a document white space between tokens."""

_SNP_ENDORSEMENTS: Final = frozenset({"ask", "ark", "ask_ark", "crl"})
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Bytes = Annotated[tuple[_Byte, ...], msgspec.Meta(max_length=16 << 10)]
_Register = Annotated[tuple[_Byte, ...], msgspec.Meta(min_length=32, max_length=32)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{2}){1,1024}\Z")]
_HexRegister = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_ALL: Final = msgspec.Meta(min_length=24, max_length=24)
_T = TypeVar("_T")
Verdict = tuple[bool | None, str]


class _Quote0(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: _Bytes
    signature: _Bytes
    pcrs: Annotated[tuple[_Register, ...], _ALL]


class _Quote1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: _Hex
    signature: _Hex
    pcrs: Annotated[tuple[_HexRegister, ...], _ALL]


class _Version(msgspec.Struct, frozen=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None


class _Snp0(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    quote: _Quote0
    report: _Bytes
    vcek: str


class _Snp1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    tpm_quote: _Quote1
    hcl_report: str
    vcek: str


class _Tdx0(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tpm_quote: _Quote0
    hcl_report: _Bytes
    td_quote: _Bytes


class _Parts(NamedTuple):
    """A document's parts; `signed` is what vouches for the hardware: the VCEK in DER, or the quote."""

    quote: Quote
    report: bytes
    signed: bytes


def verify(evidence: Evidence, *, at: datetime, expected: bytes | None) -> Claims:
    """Return what the evidence of an Azure confidential machine shows.

    Args:
        evidence: of kind "azure-snp-vtpm" or "azure-tdx-vtpm", as the module says.
        at: the time of appraisal, with a time zone.
        expected: the 64 bytes the verifier asked for, or a raw nonce; None where nobody asked.

    Raises:
        InputError: malformed, of another kind, or an endorsement that is not known.
    """
    if evidence.runtime_data is not None:
        raise InputError("runtime data of an Azure machine is in its report", where="runtime_data")
    is_snp = evidence.kind == "azure-snp-vtpm"
    if unknown := set(evidence.endorsements) - (_SNP_ENDORSEMENTS if is_snp else COLLATERAL_NAMES):
        raise InputError("evidence of an Azure machine has an unknown endorsement", where=min(unknown))
    parts = _read_snp(evidence.evidence) if is_snp else _read_tdx(evidence.evidence)  # 1
    report = hcl.parse_hcl(parts.report)
    if report.kind != ("snp" if is_snp else "tdx"):
        raise InputError("an HCL report is of other hardware than the evidence says", where=report.kind)
    hardware = (_snp if is_snp else _tdx)(parts, report, evidence.endorsements, at)  # 2, 3
    log = evidence.event_log
    replayed = replays(log, parts.quote.pcrs) if log is not None else None
    return _composed(evidence, hardware, parts.quote, report.runtime, expected, replayed)


def _composed(
    evidence: Evidence,
    hardware: Claims,
    quote: Quote,
    runtime: hcl.RuntimeData,
    expected: bytes | None,
    replayed: Replayed | None,
) -> Claims:
    signed = quote.signature.verifies(runtime.attestation_key(), quote.attest.raw)  # 4
    held = pcr_digest_holds(quote)
    fresh = carries(quote.attest.extra, expected)  # 5
    stale = "nobody asked for a nonce" if fresh is None else "qualifyingData is not what was asked for"
    verdicts: dict[str, Verdict] = {
        "signature": _both(hardware, "signature", signed, "the TPM's quote is not signed by its key"),
        "bindings": _both(hardware, "bindings", held, "the registers are not those that were signed"),
        "freshness": (fresh, "" if fresh else stale),
        "event_log": event_log_claim(replayed),  # 6
    }
    sound = bool(verdicts["signature"][0] and verdicts["bindings"][0])
    why = hardware.reasons.get("hardware_rooted", "") if sound else "signature or bindings do not hold"
    verdicts["hardware_rooted"] = (hardware.hardware_rooted if sound else False), why
    changed: dict[str, Any] = {claim: verdict for claim, (verdict, _) in verdicts.items()}
    reasons = {claim: why for claim, why in hardware.reasons.items() if claim not in verdicts}
    started = replayed.start if replayed else {}
    return msgspec.structs.replace(
        hardware,
        kind=evidence.kind,
        self_reported=replayed is not None and replayed.own,
        measurements={
            **hardware.measurements,
            **registers(quote.pcrs),
            **{f"start:{name}": digest for name, digest in started.items()},
        },
        properties={**hardware.properties, **runtime.properties()},
        reasons={**reasons, **{claim: why for claim, (_, why) in verdicts.items() if why}},
        **changed,
    )


def _both(hardware: Claims, claim: str, holds: bool, why: str) -> Verdict:
    """Return whether a claim holds of the hardware's report and of the TPM's quote."""
    first: bool | None = getattr(hardware, claim)
    if first is not True:
        return first if holds else False, hardware.reasons.get(claim, why)
    return holds, "" if holds else why


def _snp(parts: _Parts, report: hcl.HclReport, endorsements: Mapping[str, bytes], at: datetime) -> Claims:
    given = {**endorsements, "vcek": parts.signed}
    claims = snp.verify_report(report.hardware, given, at=at, runtime_data=report.raw_runtime)
    if claims.bindings and claims.properties["vmpl"] != "0":
        reasons = {**claims.reasons, "bindings": "the guest asked for the report, and not the paravisor"}
        return msgspec.structs.replace(claims, bindings=False, reasons=reasons)
    return claims


def _tdx(parts: _Parts, report: hcl.HclReport, endorsements: Mapping[str, bytes], at: datetime) -> Claims:
    claims = intel.verify_quote(parts.signed, endorsements, at=at)
    quote = parse_quote(parts.signed)
    if quote.kind != "tdx":
        raise InputError("a quote is of SGX and not of TDX", where="td_quote")
    wrong = hcl.differs_from_quote(report.hardware, quote.fields)
    if not wrong and not commits_to(quote.fields["report_data"], report.raw_runtime):
        wrong = "the quote does not commit to the runtime data"
    reasons = {**claims.reasons, **({"bindings": wrong} if wrong else {})}
    return msgspec.structs.replace(claims, bindings=not wrong, reasons=reasons)


def _read_snp(data: bytes) -> _Parts:
    if _decode(data, _Version).version is None:
        document = _decode(data, _Snp0)
        chain = load_canonical(document.vcek.encode(), "vcek")
        if len(chain) != 1:
            raise InputError("a document has not one VCEK", where="vcek")
        return _Parts(_quote0(document.quote), bytes(document.report), chain[0].public_bytes(Encoding.DER))
    later = _decode(data, _Snp1)
    vcek = from_base64url(later.vcek, "vcek")
    quote, values = later.tpm_quote, [bytes.fromhex(each) for each in later.tpm_quote.pcrs]
    parsed = _quote(bytes.fromhex(quote.message), bytes.fromhex(quote.signature), values)
    return _Parts(parsed, from_base64url(later.hcl_report, "hcl_report"), vcek)


def _read_tdx(data: bytes) -> _Parts:
    document = _decode(data, _Tdx0)
    return _Parts(_quote0(document.tpm_quote), bytes(document.hcl_report), bytes(document.td_quote))


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"this is not evidence of an Azure machine: {error}") from None


def _quote0(quote: _Quote0) -> Quote:
    return _quote(bytes(quote.message), bytes(quote.signature), [bytes(each) for each in quote.pcrs])


def _quote(message: bytes, signature: bytes, values: list[bytes]) -> Quote:
    """Return the TPM's quote, which covers every register of SHA-256 and nothing else."""
    attest = tpmwire.parse_attest(message)
    if attest.selection != (("sha256", tuple(range(24))),):
        raise InputError("the registers that are given are not those that were quoted")
    return Quote(attest, tpmwire.rsassa(signature), {"sha256": dict(enumerate(values))})
