"""Certificate chains of hardware vendors, checked at a stated time to a pinned root (RFC 5280, section 6).

`check_chain` takes a chain in order, the leaf's issuer first and the root last, and checks

1. its length, that no certificate is there twice, and that each names the next as its issuer;
2. that the root is one of the pinned: SHA-256 of its DER; nothing is believed because it signed itself;
3. that the next's key made each signature: ECDSA, RSA PKCS #1 v1.5 or RSA-PSS, with SHA-256 or longer;
4. that each is an X.509 v3 certificate in force at that time, the root too;
5. that each issuer is an authority (basicConstraints, path length, keyCertSign), and that the leaf is none;
6. keys: RSA from 2048 bits, or P-256, P-384, P-521;
7. that no critical extension is unknown here.

What fails is named in the answer and raises nothing; what cannot be read at all is an InputError. Not checked
here: revocation (`crl.check_crl`), policies, what a leaf's key may be used for, and names other than those
that link the chain: a vendor's root vouches for keys.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import InputError

__all__ = ["check_chain", "fingerprint", "load_certificate", "load_certificates"]

MAX_CHAIN: Final = 8
"""Certificates in a chain, leaf and root included."""
_MAX_BYTES: Final = 64 << 10
HASHES: Final = frozenset({"sha256", "sha384", "sha512"})
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_CRITICAL: Final = frozenset({"2.5.29.19", "2.5.29.15", "2.5.29.37"})  # constraints, usage, extended usage
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
PARSING: Final = threading.Lock()
"""Held while warnings are off: AMD gives VCEKs serial number 0, against RFC 5280, and the parser warns."""


def load_certificates(data: bytes, name: str = "certificates") -> tuple[x509.Certificate, ...]:
    """Return the certificates in bytes, in their order there.

    Args:
        data: one certificate in DER, or one or more in PEM.
        name: what they are, for the error.

    Raises:
        InputError: they cannot be read, or there are none or more than a chain may have.
    """
    if len(data) > _MAX_BYTES:
        raise InputError(f"certificates have more than {_MAX_BYTES >> 10} KiB", where=name)
    with PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = _parse(data)
            for certificate in found:
                _touch(certificate)
        except UNREADABLE as error:
            raise InputError(
                f"no X.509 certificate ({type(error).__name__})", where=name, fix="Get the certificate again"
            ) from None
    if not 1 <= len(found) <= MAX_CHAIN:
        raise InputError(f"there are {len(found)} certificates, not 1 to {MAX_CHAIN}", where=name)
    return found


def load_certificate(data: bytes, name: str = "certificate") -> x509.Certificate:
    """Return the one certificate in bytes, DER or PEM. Raises InputError: unreadable, or not one."""
    found = load_certificates(data, name)
    if len(found) != 1:
        raise InputError(f"there are {len(found)} certificates, not one", where=name)
    return found[0]


def fingerprint(certificate: x509.Certificate) -> str:
    """Return SHA-256 of a certificate's DER, hexadecimal: what pins name."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def check_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    *,
    pins: Collection[str],
    at: datetime,
    critical: Collection[str] = (),
) -> tuple[bool, str]:
    """Return whether a chain leads from a leaf to a pinned root at a time, and why not.

    Args:
        leaf: the certificate of the key that signed evidence.
        intermediates: its issuer first, each followed by its own; the root last, which must be there.
        pins: SHA-256 of the DER of accepted roots, lower-case hexadecimal: one of the mappings of `roots`.
        at: the time of appraisal, with a time zone.
        critical: dotted OIDs of further extensions the caller understands and checks.

    Returns:
        (True, "") or (False, reason).

    Raises:
        InputError: `at` has no time zone.
    """
    if at.tzinfo is None:
        raise InputError("a time of appraisal has no time zone", fix="Give it in UTC")
    chain = [leaf, *intermediates]
    prints = [fingerprint(certificate) for certificate in chain]
    if not 2 <= len(chain) <= MAX_CHAIN or len(set(prints)) != len(prints):  # 1
        return False, f"a chain has 2 to {MAX_CHAIN} different certificates, its root included"
    reasons = _reasons(chain, root_pinned=prints[-1] in pins, at=at, critical=_CRITICAL | set(critical))
    reason = next(reasons, "")
    return not reason, reason


def _parse(data: bytes) -> tuple[x509.Certificate, ...]:
    if data.startswith(b"\x30"):  # a DER sequence
        return (x509.load_der_x509_certificate(data),)
    found = tuple(x509.load_pem_x509_certificates(data))
    if data.count(b"-----BEGIN") != len(found):  # cut short, or not certificates alone
        raise ValueError("there is PEM that is no certificate")
    return found


def _touch(certificate: x509.Certificate) -> None:
    """Read what is parsed only when it is asked for, so that nothing raises later."""
    _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    _ = certificate.signature_hash_algorithm, certificate.signature_algorithm_parameters
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.version
    require_whole(certificate.public_bytes(Encoding.DER), certificate.signature)


def require_whole(der: bytes, signature: bytes) -> None:
    """Raise ValueError where the bit string of a signature, the last of a DER, is not of whole bytes.

    A parser passes the number of its unused bits over, where those are zero; it is the one byte of a
    certificate that neither says anything nor is signed.
    """
    if der[-len(signature) - 1] != 0:
        raise ValueError("a signature is not of whole bytes")


def _reasons(
    chain: Sequence[x509.Certificate], *, root_pinned: bool, at: datetime, critical: Collection[str]
) -> Iterator[str]:
    for certificate, issuer in pairwise(chain):  # 1
        if certificate.issuer != issuer.subject:
            this, named = name_of(certificate.subject), name_of(certificate.issuer)
            yield (
                f"certificates are out of order: {this} names {named} as its issuer,"
                f" and {name_of(issuer.subject)} follows"
            )
    if not root_pinned:  # 2
        yield f"{name_of(chain[-1].subject)} is not a pinned root"
    for certificate, issuer in pairwise(chain):  # 3
        yield from _signed(certificate, issuer)
    for certificate in chain:  # 4
        yield from _in_force(certificate, at)
    for depth, authority in enumerate(chain[1:]):  # 5
        yield from _authority(authority, depth)
    if (constraints := _constraints(chain[0])) is not None and constraints.ca:
        yield f"{name_of(chain[0].subject)} is an authority and not a leaf"
    for certificate in chain:
        yield from _key(certificate)  # 6
        for extension in certificate.extensions:  # 7
            if extension.critical and extension.oid.dotted_string not in critical:
                yield (
                    f"{name_of(certificate.subject)} has the unknown critical extension"
                    f" {extension.oid.dotted_string}"
                )


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> Iterator[str]:
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None or algorithm.name not in HASHES:
        yield f"{name_of(certificate.subject)} is signed with an algorithm that is not accepted"
        return
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE):
        yield f"{name_of(certificate.subject)} is not signed by {name_of(issuer.subject)}"


def _in_force(certificate: x509.Certificate, at: datetime) -> Iterator[str]:
    name = name_of(certificate.subject)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if certificate.version is not x509.Version.v3:
        yield f"{name} is no X.509 v3 certificate"
    if at < start:
        yield f"{name} is valid only from {start.isoformat()}"
    if at > end:
        yield f"{name} expired at {end.isoformat()}"


def _authority(certificate: x509.Certificate, depth: int) -> Iterator[str]:
    """Check that a certificate may issue others, with `depth` authorities between it and the leaf."""
    constraints, usage = _constraints(certificate), _usage(certificate)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        yield f"{name_of(certificate.subject)} is not an authority"
    elif constraints.path_length is not None and depth > constraints.path_length:
        yield f"the chain below {name_of(certificate.subject)} is longer than it allows"


def _constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _key(certificate: x509.Certificate) -> Iterator[str]:
    match certificate.public_key():
        case rsa.RSAPublicKey() as key if 2048 <= key.key_size <= 8192:
            return
        case ec.EllipticCurvePublicKey() as key if isinstance(key.curve, _CURVES):
            return
    yield f"the key of {name_of(certificate.subject)} is of a kind or size that is not accepted"


def name_of(name: x509.Name) -> str:
    """Return a short printable form of a name that a stranger may have written."""
    common = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    value = common[0].value if len(common) == 1 else name.rfc4514_string()
    text = value if isinstance(value, str) else value.hex()
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return f"{plain[:60]!r}"
