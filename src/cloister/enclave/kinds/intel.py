"""Intel TDX (quotes of version 4 and 5) and SGX (version 3): from a quote to claims.

Endorsements: collateral in one of the forms of `collateral`; none is needed, and then nothing is known of
firmware. The quote brings its own certificates. `verify_quote`, in this order:

1. the quote is well formed (`intelquote`) and its certificates are in canonical PEM;
2. chain: PCK certificate to the pinned root of Intel, at the time of appraisal;
3. signature: the PCK certificate's key signed the quoting enclave's report; that enclave is Intel's, since a
   platform's owner can have one of his own certified so; the report commits to the attestation key; the
   attestation key signed header and body;
4. debug: the TD's or the enclave's attributes. A TD that may be migrated counts: whoever chose the migration
   TD at the start can have its memory;
5. collateral, where given: in force, signed, revoking nothing in use (`collateral`), of this platform;
6. firmware: `dcap-qvl`, at the same time and with the same collateral, matches the platform's versions with
   Intel's levels. It repeats 1 to 3 and 5 on its own; where it refuses what passed here, tcb_consistent is
   false.

A platform below every level that Intel lists has the status "NotSupported". `quote_refusals` asks `dcap-qvl`
for its verdict under a `QuotePolicy`; the enclave policy decides on the claims instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography import x509

from cloister.enclave.claims import Claims
from cloister.enclave.eventlog import replays_to_rtmrs
from cloister.enclave.evidence import Evidence
from cloister.enclave.kinds.binding import carries, commits_to, ecdsa, load_canonical
from cloister.enclave.kinds.collateral import COLLATERAL_NAMES, Collateral, load_collateral
from cloister.enclave.kinds.dcap import QuotePolicy, level_of, refusals
from cloister.enclave.kinds.intelquote import Quote, parse_quote
from cloister.enclave.kinds.pck import Platform, platform_of
from cloister.enclave.roots import INTEL_SGX
from cloister.enclave.x509 import check_chain
from cloister.errors import InputError

__all__ = ["UNAUTHENTICATED", "QuotePolicy", "quote_refusals", "verify", "verify_quote"]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = ()
"""No byte of a quote can change unnoticed: certificates must be canonical, and what follows must be zero."""

_MEASURED: Final = {
    "tdx": (
        *("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrseam", "mrsignerseam"),
        *("mrconfigid", "mrowner", "mrownerconfig", "mrservicetd", "report_data"),
    ),
    "sgx": ("mrenclave", "report_data"),
}
_STATED: Final = {
    "tdx": ("td_attributes", "xfam", "seam_attributes", "tee_tcb_svn", "tee_tcb_svn2"),
    "sgx": ("attributes", "misc_select", "cpu_svn"),
}
_TUD: Final = 0xFF
"""TD under debug: any of the first 8 attribute bits (Intel TDX Module Base Architecture, TD attributes)."""
_MIGRATABLE: Final = 1 << 29
_SGX_DEBUG: Final = 0x02
_QUOTING: Final = {
    "sgx": ("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff", 1),
    "tdx": ("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5", 2),
}
"""Signer and product of Intel's quoting enclaves: `mrsigner` and `isvprodid` of the enclave identities that
https://api.trustedservices.intel.com/{sgx,tdx}/certification/v4/qe/identity publishes."""
_FROM_COLLATERAL: Final = (
    *("collateral_fresh", "revocation_checked", "tcb_status", "tcb_consistent", "advisories"),
)
_NO_LEVEL: Final = "No matching TCB level found"
_P256: Final = 32


def verify(evidence: Evidence, *, at: datetime, expected: bytes | None) -> Claims:
    """Return what TDX or SGX evidence shows.

    Args:
        evidence: a quote; `runtime_data`, where there is some, must hash to its report data; a TD's
            `event_log` is its firmware's (CCEL), and must replay to RTMR 0 to 3.
        at: the time of appraisal.
        expected: the 64 bytes that the report data must be, or None.

    Raises:
        InputError: malformed, of another kind than it says, or with endorsements that are not known.
    """
    if unknown := evidence.endorsements.keys() - COLLATERAL_NAMES:
        raise InputError(f"unknown endorsements: {', '.join(sorted(unknown))}", where=evidence.kind)
    claims = verify_quote(evidence.evidence, evidence.endorsements, at=at)
    if claims.kind != evidence.kind:
        raise InputError(f"this is evidence of {claims.kind}, not of {evidence.kind}")
    reported = bytes.fromhex(claims.measurements["report_data"])
    reasons = dict(claims.reasons)
    fresh = carries(reported, expected)
    if fresh is not True:
        reasons["freshness"] = "nobody asked" if fresh is None else "report data is not what was asked for"
    bindings = None if evidence.runtime_data is None else commits_to(reported, evidence.runtime_data)
    if bindings is False:
        reasons["bindings"] = "report data is not the digest of the runtime data"
    replayed = _replayed(evidence.event_log, claims, reasons)
    return msgspec.structs.replace(
        claims, freshness=fresh, bindings=bindings, event_log=replayed, reasons=reasons
    )


def verify_quote(quote: bytes, endorsements: Mapping[str, bytes], *, at: datetime) -> Claims:
    """Return what a quote shows, whatever carries it; its kind is the quote's own.

    Args:
        quote: the quote, with the zeros that may follow it.
        endorsements: collateral by name; other names are passed over.
        at: the time of appraisal, with its zone.

    Raises:
        InputError: the quote, its certificates or the collateral are malformed, or dcap-qvl is not there.
    """
    parsed, chain, collateral = _parts(quote, endorsements)  # 1
    platform = platform_of(chain[0])
    trusted, untrusted = check_chain(chain[0], chain[1:], pins=INTEL_SGX, at=at)  # 2
    unsigned = _unsigned(parsed, chain[0])  # 3
    rooted = trusted and not unsigned
    found: dict[str, Any] = {
        "kind": parsed.kind,
        "signature": not unsigned,
        "chain": trusted,
        "debug": _debug(parsed),  # 4
        "hardware_rooted": rooted,
        "self_reported": False,
        "measurements": {n: parsed.fields[n].hex() for n in _MEASURED[parsed.kind] if n in parsed.fields},
        "signers": {"mrsigner": parsed.fields["mrsigner"].hex()} if parsed.kind == "sgx" else {},
        "tcb": _versions(parsed, platform),
        "platform": platform.ppid.hex(),
        "properties": _properties(parsed, platform),
    }
    reasons = {"chain": untrusted, "signature": unsigned}
    if found["debug"] and parsed.kind == "tdx" and not parsed.fields["td_attributes"][0] & _TUD:
        reasons["debug"] = "the machine may be migrated, by whom its host chose"
    if not rooted:
        reasons["hardware_rooted"] = "signature or chain does not hold"
    if collateral is None:
        reasons |= dict.fromkeys(_FROM_COLLATERAL, "no collateral was given")
    else:
        _add_verdict(found, reasons, parsed, platform, collateral, chain if rooted else (), at)  # 5, 6
    return Claims(**found, reasons={claim: reason for claim, reason in reasons.items() if reason})


def quote_refusals(
    quote: bytes, endorsements: Mapping[str, bytes], *, at: datetime, policy: QuotePolicy
) -> list[str]:
    """Return why `dcap-qvl` refuses a quote under its own policy; nothing where it accepts.

    Raises:
        InputError: as `verify_quote`; no collateral; or the policy is one that cannot be.
    """
    parsed, _, collateral = _parts(quote, endorsements)
    if collateral is None:
        raise InputError("a quote policy needs collateral", where="endorsements", fix="Fetch it from Intel")
    return refusals(parsed.exact, collateral, at, policy)


def _replayed(log: bytes | None, claims: Claims, reasons: dict[str, str]) -> bool | None:
    """Return whether a TD's log replays to its RTMRs; null where there is none."""
    if log is None:
        reasons["event_log"] = "no event log was given"
        return None
    if claims.kind != "tdx":
        raise InputError("an SGX enclave has no event log", where=claims.kind)
    replays, why = replays_to_rtmrs(log, [bytes.fromhex(claims.measurements[f"rtmr{n}"]) for n in range(4)])
    if not replays:
        reasons["event_log"] = why
    return replays


def _parts(
    quote: bytes, endorsements: Mapping[str, bytes]
) -> tuple[Quote, tuple[x509.Certificate, ...], Collateral | None]:
    parsed = parse_quote(quote)
    chain = load_canonical(parsed.pck_chain, "the quote's certificates")
    return parsed, chain, load_collateral(endorsements, chain)


def _add_verdict(
    found: dict[str, Any],
    reasons: dict[str, str],
    quote: Quote,
    platform: Platform,
    collateral: Collateral,
    chain: Sequence[x509.Certificate],
    at: datetime,
) -> None:
    """Enter what the collateral says of a quote; the chain is empty where quote or chain does not hold."""
    found["properties"] |= {
        "collateral_issued": _moment(collateral.issued),
        "collateral_expires": _moment(collateral.expires),
    }
    stale = collateral.stale(at)  # 5
    revoked = "signature or chain does not hold"
    if chain:
        revoked = collateral.revoked(chain, at, signers=not stale)
    found |= {"collateral_fresh": not stale, "revocation_checked": not revoked if chain else None}
    reasons |= {"collateral_fresh": stale, "revocation_checked": revoked}
    if stale or revoked:
        why = "the quote itself does not hold" if not chain else "the collateral does not hold"
        reasons |= dict.fromkeys(("tcb_status", "tcb_consistent", "advisories"), why)
        return
    if not collateral.is_for(platform.fmspc, platform.pceid, quote.kind):
        why = "the collateral is for another platform"
        found["tcb_consistent"] = False
        reasons |= dict.fromkeys(("tcb_status", "tcb_consistent", "advisories"), why)
        return
    level = level_of(quote.exact, collateral, at)  # 6
    if isinstance(level, str):
        supported = _NO_LEVEL not in level
        found |= {"tcb_consistent": not supported, "tcb_status": None if supported else "NotSupported"}
        why = (
            f"dcap-qvl refuses: {level}"
            if supported
            else "the platform is below every level that Intel lists"
        )
        reasons |= dict.fromkeys(("tcb_status", "advisories"), why)
        reasons["tcb_consistent"] = why if supported else ""
        return
    found |= {"tcb_status": level.status, "tcb_consistent": True, "advisories": level.advisories}
    found["tcb"]["tcb_evaluation"] = level.evaluation
    found["properties"] |= {"tcb_date": level.dated, "qe_status": level.quoting}


def _unsigned(quote: Quote, pck: x509.Certificate) -> str:
    """Return which link between the PCK certificate and the body does not hold, or nothing."""
    if not ecdsa(pck.public_key(), quote.qe_signature, quote.qe_report, size=_P256):
        return "the quoting enclave's report is not signed by the PCK certificate"
    signer, product = quote.qe_fields["mrsigner"], int.from_bytes(quote.qe_fields["isv_prod_id"], "little")
    if (signer.hex(), product) != _QUOTING[quote.kind]:
        return "the quoting enclave is not Intel's"
    committed = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest() + bytes(32)
    if committed != quote.qe_fields["report_data"]:
        return "the quoting enclave's report is for another attestation key"
    if quote.qe_fields["attributes"][0] & _SGX_DEBUG:
        return "the quoting enclave runs in debug mode"
    if not ecdsa(quote.attestation_key, quote.signature, quote.signed, size=_P256):
        return "the body is not signed by the attestation key"
    return ""


def _debug(quote: Quote) -> bool:
    if quote.kind == "tdx":
        attributes = int.from_bytes(quote.fields["td_attributes"], "little")
        return bool(attributes & (_TUD | _MIGRATABLE))
    return bool(quote.fields["attributes"][0] & _SGX_DEBUG)


def _versions(quote: Quote, platform: Platform) -> dict[str, int]:
    versions = {"pce_svn": platform.pce_svn, "qe_svn": int.from_bytes(quote.qe_fields["isv_svn"], "little")}
    if quote.kind == "tdx":
        svn = quote.fields["tee_tcb_svn"]
        return {**versions, "tdx_module_svn": svn[0], "tdx_module_major": svn[1], "tdx_microcode_svn": svn[2]}
    return {**versions, "isv_svn": int.from_bytes(quote.fields["isv_svn"], "little")}


def _properties(quote: Quote, platform: Platform) -> dict[str, str]:
    stated = {name: quote.fields[name].hex() for name in _STATED[quote.kind] if name in quote.fields}
    if quote.kind == "sgx":
        stated["isv_prod_id"] = str(int.from_bytes(quote.fields["isv_prod_id"], "little"))
    return {**stated, "fmspc": platform.fmspc.hex(), "quote_version": str(quote.version)}


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
