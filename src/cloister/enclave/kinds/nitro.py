"""Evidence of AWS Nitro Enclaves: an attestation document in COSE_Sign1 (RFC 9052), signed by the hypervisor.

The document holds its certificate chain, so there are no endorsements. Steps (AWS, "Verifying the root of
trust", and the NSM API's attestation_process.md, which has the document's CDDL):

1. read COSE_Sign1 and the document strictly: ES384 alone, no unprotected header, known fields, their sizes;
2. chain: `certificate`, then `cabundle` from its end to its start, whose first is the pinned root G1;
3. signature: ECDSA P-384 with SHA-384 over the Sig_structure, under the certificate's key;
4. freshness: `user_data` is what the verifier asked for, all of it; for a raw nonce, which is shorter than
   report data, `nonce` may be, too. Many enclaves put there whatever a stranger hands them, so that a key
   in report data would not be the enclave's;
5. bindings: runtime data, where there is some, is what `user_data` is the digest of.

PCRs 0 to 4 and 8 are the hypervisor's: image, kernel, application, IAM role, instance, signing certificate.
From 16 on they are the enclave's own. An enclave in debug mode has zeros in all of them.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.enclave.cbor import encode
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence
from cloister.enclave.kinds.binding import commits_to
from cloister.enclave.kinds.nitrodocument import Document, Signed, parse_document
from cloister.enclave.roots import AWS_NITRO
from cloister.enclave.x509 import check_chain, load_certificate
from cloister.errors import InputError

__all__ = ["UNAUTHENTICATED", "verify"]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = ()
"""Byte ranges of a document that no signature covers and that are not refused when changed: none."""

_Verdict = tuple[bool | None, str]
_REPORT_DATA: Final = 64
"""Bytes of `evidence.report_data`."""


def verify(evidence: Evidence, *, at: datetime, expected: bytes | None) -> Claims:
    """Return what a Nitro enclave's document shows.

    Args:
        evidence: of kind "nitro"; its evidence is the COSE_Sign1, tagged or not.
        at: the time of appraisal, with a time zone; AWS's certificates of enclaves are in force for hours.
        expected: the 64 bytes the verifier asked for; None where nobody asked.

    Raises:
        InputError: the document or a certificate is malformed, or there are endorsements or an event log.
    """
    if evidence.endorsements:
        raise InputError(f"a Nitro document knows no endorsement {min(evidence.endorsements)!r}")
    if evidence.event_log is not None:
        raise InputError("a Nitro document has no event log")
    signed, document = parse_document(evidence.evidence)  # 1
    leaf = load_certificate(document.certificate, "certificate")
    bundle = [load_certificate(each, "cabundle") for each in reversed(document.cabundle)]
    chain = check_chain(leaf, bundle, pins=AWS_NITRO, at=at)  # 2
    verdicts: dict[str, _Verdict] = {
        "chain": chain,
        "signature": _signature(signed, leaf),
        "freshness": _freshness(document, expected),
        "bindings": _bindings(document, evidence.runtime_data),
        "debug": (document.debug, "the document has no PCR 0"),
        "revocation_checked": (None, "revocation lists are not read for this kind"),
        "collateral_fresh": (None, "there is no collateral"),
        "tcb_status": (None, "AWS publishes no verdict on firmware"),
        "advisories": (None, "AWS publishes no list that could be asked"),
    }
    verdicts["hardware_rooted"] = verdicts["signature"] if chain[0] else chain
    return Claims(
        kind="nitro",
        signature=verdicts["signature"][0],
        chain=chain[0],
        debug=document.debug,
        freshness=verdicts["freshness"][0],
        bindings=verdicts["bindings"][0],
        hardware_rooted=verdicts["hardware_rooted"][0],
        self_reported=False,
        measurements={f"pcr{index}": value.hex() for index, value in document.pcrs.items()},
        signers=_present(document, 8, "signing_certificate"),
        platform=_present(document, 4, "instance").get("instance"),
        properties=_properties(document),
        issued_at=document.issued_at.astimezone(UTC).isoformat(timespec="milliseconds"),
        reasons={
            claim: why for claim, (value, why) in verdicts.items() if value is None or _is_bad(claim, value)
        },
    )


def _is_bad(claim: str, value: bool) -> bool:
    return not value and claim != "debug"


def _signature(signed: Signed, leaf: x509.Certificate) -> _Verdict:
    """Step 3."""
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False, "the signing key is not on P-384"
    covered = encode(["Signature1", signed.protected, b"", signed.payload])
    r, s = (int.from_bytes(half, "big") for half in (signed.signature[:48], signed.signature[48:]))
    try:
        key.verify(encode_dss_signature(r, s), covered, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False, "the certificate's key did not sign this document"
    return True, ""


def _freshness(document: Document, expected: bytes | None) -> _Verdict:
    """Step 4."""
    if expected is None:
        return None, "nobody asked for user data"
    given = (document.user_data,) if len(expected) == _REPORT_DATA else (document.user_data, document.nonce)
    found = [hmac.compare_digest(field, expected) for field in given if field]
    return any(found), "the document carries other user data than was asked for"


def _bindings(document: Document, runtime_data: bytes | None) -> _Verdict:
    """Step 5."""
    if runtime_data is None:
        return None, "there are no other parts"
    bound = document.user_data is not None and commits_to(document.user_data, runtime_data)
    return bound, "user data is no digest of the runtime data"


def _present(document: Document, index: int, name: str) -> dict[str, str]:
    """Return a register under a name, where something was measured into it."""
    value = document.pcrs.get(index, b"")
    return {name: value.hex()} if any(value) else {}


def _properties(document: Document) -> dict[str, str]:
    found = {"module_id": document.module_id, "digest": "SHA384"}
    if document.public_key is not None:
        found["public_key_sha256"] = hashlib.sha256(document.public_key).hexdigest()
    for name in ("user_data", "nonce"):
        if (value := getattr(document, name)) is not None:
            found[name] = value.hex()
    return found
