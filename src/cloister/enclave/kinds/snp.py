"""Evidence of AMD SEV-SNP guests: the report, the key that signed it, and the firmware they agree on.

Endorsements: `vcek` or `vlek` (the signing key's certificate, or its whole chain), `ask` and `ark` or both in
that order as `ask_ark`, and `crl` (the ARK's revocation list, optional); DER or PEM. Steps:

1. read the report strictly, and the extensions of the certificate;
2. chain: leaf, ASK or ASVK, ARK; the ARK is pinned, and is the one of the leaf's product;
3. signature: ECDSA P-384 with SHA-384 under the leaf, which must be of the kind the report names;
4. tcb_consistent: the reported firmware is what the certificate was issued for, the processor its product's;
5. bindings: the report's chip is the certificate's (VCEK), runtime data the report's;
6. freshness: report data is what the verifier asked for, and the guest itself asked for the report;
7. revocation_checked, where a list is there.

debug is also true of a guest that a migration agent may move: the host chooses policy and agent at launch,
neither is in the measurement, and the agent gets the guest's memory.

AMD publishes no verdict on firmware: tcb_status is null, and a policy sets a floor. What is measured is the
guest's initial memory; what that image loads later is not, unless it measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.enclave.claims import Claims
from cloister.enclave.crl import check_crl, load_crl
from cloister.enclave.evidence import Evidence
from cloister.enclave.kinds.binding import carries, commits_to
from cloister.enclave.kinds.snpreport import Report, parse_report
from cloister.enclave.kinds.snpvalues import measurements, product_of, properties, signers, versions
from cloister.enclave.kinds.vcek import KeyFacts, read_facts
from cloister.enclave.roots import AMD_ARK
from cloister.enclave.x509 import check_chain, fingerprint, load_certificates, name_of
from cloister.errors import InputError

__all__ = ["UNAUTHENTICATED", "verify", "verify_report"]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = ()
"""Byte ranges of a report that no signature covers and that are not refused when changed: none."""

_ENDORSEMENTS: Final = frozenset({"vcek", "vlek", "ask", "ark", "ask_ark", "crl"})
_MIGRATABLE: Final = "a migration agent, which the host chose, may have the guest's memory"
_Verdict = tuple[bool | None, str]


def verify(evidence: Evidence, *, at: datetime, expected: bytes | None) -> Claims:
    """Return what an SNP guest's evidence shows.

    Args:
        evidence: of kind "snp"; its report is 1184 bytes, its endorsements as the module says.
        at: the time of appraisal, with a time zone.
        expected: the 64 bytes the verifier asked for; None where nobody asked.

    Raises:
        InputError: the report or a certificate is malformed, or there is an event log.
    """
    if evidence.event_log is not None:
        raise InputError("an SNP report has no event log of its own", fix="Use the kind that has one")
    return verify_report(
        evidence.evidence,
        evidence.endorsements,
        at=at,
        expected=expected,
        runtime_data=evidence.runtime_data,
    )


def verify_report(
    report: bytes,
    endorsements: Mapping[str, bytes],
    *,
    at: datetime,
    expected: bytes | None = None,
    runtime_data: bytes | None = None,
) -> Claims:
    """Return what a report shows: `verify` for those that hold no `Evidence`, such as composites.

    Args:
        report: 1184 bytes.
        endorsements: certificates by name, as the module says.
        at: the time of appraisal, with a time zone.
        expected: what report data must be; None where nobody asked.
        runtime_data: what report data must be the digest of; None where there is none.

    Raises:
        InputError: the report or a certificate is malformed, or an endorsement's name unknown.
    """
    if unknown := set(endorsements) - _ENDORSEMENTS:
        raise InputError(f"an SNP report knows no endorsement {min(unknown)!r}")
    parsed = parse_report(report)  # 1
    chain = _certificates(endorsements)
    facts = read_facts(chain[0]) if chain else None
    verdicts: dict[str, _Verdict] = {
        "chain": _chain(chain, facts, at),
        "signature": _signature(parsed, chain, facts),
        "tcb_consistent": _tcb_consistent(parsed, facts),
        "bindings": _bindings(parsed, facts, runtime_data),
        "freshness": _freshness(parsed, expected),
        "tcb_status": (None, "AMD publishes no verdict on firmware; set a floor"),
        "advisories": (None, "AMD publishes no list that could be asked"),
    }
    verdicts["hardware_rooted"] = _rooted(verdicts)
    if (crl := endorsements.get("crl")) is None:
        verdicts["revocation_checked"] = verdicts["collateral_fresh"] = None, "no revocation list was given"
        issued = None
    else:
        found = load_crl(crl)
        verdicts |= _revocation(found, chain, verdicts["chain"][0], at)
        issued = found.last_update_utc
    return Claims(
        kind="snp",
        signature=verdicts["signature"][0],
        chain=verdicts["chain"][0],
        revocation_checked=verdicts["revocation_checked"][0],
        collateral_fresh=verdicts["collateral_fresh"][0],
        tcb_consistent=verdicts["tcb_consistent"][0],
        debug=parsed.debug or parsed.migratable,
        freshness=verdicts["freshness"][0],
        bindings=verdicts["bindings"][0],
        hardware_rooted=verdicts["hardware_rooted"][0],
        self_reported=False,
        measurements=measurements(parsed),
        signers=signers(parsed),
        tcb=versions(parsed, facts),
        platform=parsed.chip_id.hex() if any(parsed.chip_id) else None,
        properties=properties(parsed, facts, issued),
        reasons={
            **{claim: why for claim, (value, why) in verdicts.items() if value is not True},
            **({"debug": _MIGRATABLE} if parsed.migratable and not parsed.debug else {}),
        },
    )


def _certificates(endorsements: Mapping[str, bytes]) -> tuple[x509.Certificate, ...]:
    """Return the chain from the leaf on, as given; empty where there is no leaf."""
    if "vcek" in endorsements and "vlek" in endorsements:
        raise InputError("there are a VCEK and a VLEK, and only one signed the report")
    leaf = "vlek" if "vlek" in endorsements else "vcek"
    if leaf not in endorsements:
        return ()
    names = [name for name in (leaf, "ask", "ark", "ask_ark") if name in endorsements]
    return tuple(each for name in names for each in load_certificates(endorsements[name], name))


def _chain(chain: tuple[x509.Certificate, ...], facts: KeyFacts | None, at: datetime) -> _Verdict:
    """Step 2."""
    if facts is None:
        return None, "no certificate of the signing key was given"
    good, reason = check_chain(chain[0], chain[1:], pins=AMD_ARK, at=at)
    if not good:
        return False, reason
    if len(chain) != 3:
        return False, "a chain of AMD has three certificates: leaf, ASK and ARK"
    if AMD_ARK[fingerprint(chain[-1])] != facts.product:
        return False, f"the root is of {AMD_ARK[fingerprint(chain[-1])]}, the leaf of {facts.product}"
    names = [name_of(each.subject) for each in chain[:2]]
    issuer = f"SEV-{facts.product}" if facts.role == "vcek" else f"SEV-VLEK-{facts.product}"
    if names != [repr(f"SEV-{facts.role.upper()}"), repr(issuer)]:
        return False, f"{names[0]} of {names[1]} is not AMD's chain of a {facts.role.upper()}"
    return True, ""


def _signature(report: Report, chain: tuple[x509.Certificate, ...], facts: KeyFacts | None) -> _Verdict:
    """Step 3."""
    if report.signer == "none" or report.chip_key_masked:
        return False, "the report says that it is not signed"
    if facts is None:
        return None, f"no certificate of the {report.signer.upper()} was given"
    if report.signer != facts.role:
        return (
            False,
            f"the report names a {report.signer.upper()}, the certificate is a {facts.role.upper()}'s",
        )
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False, "the signing key is not on P-384"
    try:
        key.verify(encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False, f"the {facts.role.upper()} did not sign this report"
    return True, ""


def _tcb_consistent(report: Report, facts: KeyFacts | None) -> _Verdict:
    """Step 4."""
    if facts is None:
        return None, "no certificate of the signing key was given"
    if report.cpuid is not None and (product := product_of(report.cpuid)) != facts.product:
        return False, f"the report is of {product or 'an unknown processor'}, the key of {facts.product}"
    if report.reported_tcb != facts.tcb:
        return False, (
            f"the report states firmware {report.reported_tcb.hex()}, the key is of {facts.tcb.hex()}"
        )
    return True, ""


def _bindings(report: Report, facts: KeyFacts | None, runtime_data: bytes | None) -> _Verdict:
    """Step 5."""
    if runtime_data is not None and not commits_to(report.report_data, runtime_data):
        return False, "report data is no digest of the runtime data"
    bound = None if runtime_data is None else True
    if facts is None or facts.hwid is None:
        return bound, "" if bound else "the certificate names no chip"
    if not any(report.chip_id):
        return bound, "" if bound else "the machine masks its chip's identifier"
    if report.chip_id != facts.hwid.ljust(64, b"\0"):
        return False, "the report is of another chip than the certificate"
    return True, ""


def _freshness(report: Report, expected: bytes | None) -> _Verdict:
    """Step 6."""
    fresh = carries(report.report_data, expected)
    if fresh is None:
        return None, "nobody asked for report data"
    if report.host_requested:
        return False, "the host asked for this report, and not the guest"
    return fresh, "the report carries other report data than was asked for"


def _revocation(
    crl: x509.CertificateRevocationList,
    chain: tuple[x509.Certificate, ...],
    pinned: bool | None,
    at: datetime,
) -> dict[str, _Verdict]:
    """Step 7: the ARK's list names intermediates; VCEKs have no serial number that could be revoked."""
    fresh = crl.next_update_utc is not None and crl.last_update_utc <= at <= crl.next_update_utc
    if not pinned:
        return {
            "revocation_checked": (None, "there is no chain to look up"),
            "collateral_fresh": (None, "there is no chain that would vouch for the revocation list"),
        }
    return {
        "revocation_checked": check_crl(crl, chain[-1], chain[1:], at=at),
        "collateral_fresh": (fresh, "the revocation list is not in force at that time"),
    }


def _rooted(verdicts: Mapping[str, _Verdict]) -> _Verdict:
    for claim in ("chain", "signature"):
        if verdicts[claim][0] is not True:
            return verdicts[claim]
    return True, ""
