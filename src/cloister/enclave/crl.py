"""Revocation lists (RFC 5280, section 5): whose they are, whether they are in force, and whom they name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.enclave.x509 import HASHES, PARSING, UNREADABLE, name_of, require_whole
from cloister.errors import InputError

__all__ = ["check_crl", "load_crl"]


def load_crl(data: bytes, name: str = "crl") -> x509.CertificateRevocationList:
    """Return the revocation list in DER or PEM. Raises InputError: it cannot be read."""
    with PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pem = data.lstrip().startswith(b"-----BEGIN X509 CRL-----")
            crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
            _ = crl.issuer, crl.extensions, crl.signature_hash_algorithm
            _ = crl.last_update_utc, crl.next_update_utc, crl.tbs_certlist_bytes
            require_whole(crl.public_bytes(Encoding.DER), crl.signature)
        except UNREADABLE as error:
            raise InputError(
                f"no revocation list ({type(error).__name__})", where=name, fix="Get the list again"
            ) from None
    return crl


def check_crl(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    certificates: Iterable[x509.Certificate],
    *,
    at: datetime,
) -> tuple[bool, str]:
    """Return whether a list is its issuer's, in force, and names none of some certificates; and why not.

    Args:
        crl: the list.
        issuer: who should have signed it; the caller has checked its chain.
        certificates: those looked up: the ones that this issuer issued; others are passed over.
        at: the time of appraisal, with a time zone.
    """
    if crl.issuer != issuer.subject or not _signed(crl, issuer):
        return False, f"the revocation list is not signed by {name_of(issuer.subject)}"
    if crl.next_update_utc is None or not crl.last_update_utc <= at <= crl.next_update_utc:
        return False, f"the revocation list of {name_of(issuer.subject)} is not in force at that time"
    if any(e.critical for e in crl.extensions):
        return False, f"the revocation list of {name_of(issuer.subject)} has an unknown critical extension"
    for certificate in certificates:
        if certificate.issuer != issuer.subject:
            continue
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            return False, f"{name_of(certificate.subject)} is revoked"
    return True, ""


def _signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key, algorithm = issuer.public_key(), crl.signature_hash_algorithm
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return False
    if algorithm is None or algorithm.name not in HASHES:
        return False
    try:
        return crl.is_signature_valid(key)
    except UNREADABLE:
        return False
