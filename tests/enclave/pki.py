"""A vendor of our own: authorities, leaves and revocation lists, for what no genuine sample shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

AT = datetime(2025, 6, 1, tzinfo=UTC)
START = AT - timedelta(days=365)
END = AT + timedelta(days=365)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def extension(oid: str, value: bytes, *, critical: bool = False) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical


def constraints(ca: bool, length: int | None = None) -> tuple[x509.ExtensionType, bool]:
    return x509.BasicConstraints(ca=ca, path_length=length), True


def usage(certificates: bool) -> tuple[x509.ExtensionType, bool]:
    return (
        x509.KeyUsage(
            digital_signature=not certificates,
            key_cert_sign=certificates,
            crl_sign=certificates,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        ),
        True,
    )


@dataclass(frozen=True)
class Party:
    """A key and its certificate, which may issue others."""

    key: Key
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        common: str,
        *extensions: tuple[x509.ExtensionType, bool],
        key: Key | None = None,
        start: datetime = START,
        end: datetime = END,
        digest: hashes.HashAlgorithm | None = None,
        pss: bool = False,
    ) -> Party:
        return _issue(self.key, self.certificate.subject, common, extensions, key, start, end, digest, pss)

    def crl(
        self,
        *serials: int,
        start: datetime = START,
        end: datetime = END,
        by: Key | None = None,
        critical: Sequence[x509.ExtensionType] = (),
    ) -> bytes:
        """Return a revocation list in DER that names serial numbers."""
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, start, end)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder(serial, start).build()
            builder = builder.add_revoked_certificate(entry)
        for each in critical:
            builder = builder.add_extension(each, critical=True)
        return builder.sign(by or self.key, hashes.SHA384()).public_bytes(Encoding.DER)


def root(common: str, *, key: Key | None = None, start: datetime = START, end: datetime = END) -> Party:
    made = key or p384()
    extensions = (constraints(True), usage(True))
    return _issue(made, name(common), common, extensions, made, start, end, None, False)


def _issue(
    by: Key,
    issuer: x509.Name,
    common: str,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
    key: Key | None,
    start: datetime,
    end: datetime,
    digest: hashes.HashAlgorithm | None,
    pss: bool,
) -> Party:
    made = key or p384()
    builder = x509.CertificateBuilder(
        issuer, name(common), made.public_key(), x509.random_serial_number(), start, end
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    chosen = digest or hashes.SHA384()
    scheme = padding.PSS(padding.MGF1(chosen), chosen.digest_size) if pss else None
    return Party(made, builder.sign(by, chosen, rsa_padding=scheme))
