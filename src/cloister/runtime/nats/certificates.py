"""X.509 certificates of the network between organisations: who may speak to its servers, and as whom.

An operator's `Authority` signs one certificate for the servers and one for each organisation; the server
takes an organisation's name from its certificate (`subject_of`). What the parties say to one another is
signed and encrypted by their identities as well: a stolen network key lets its thief lose or delay messages,
not read or forge them.

A private key's file is PKCS#8 encrypted under a key that scrypt makes of the passphrase; a comment above the
PEM block holds salt and cost. PEM's own key derivation is so cheap that a thief could guess the passphrase,
which is that of the identity beside it, thousands of times faster than the identity's file allows.

Certificates begin two days before they are made, since clocks differ, and end after a year.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.crypto import SECRET_ACCESS, HoldsSecret, ScryptCost, SecretAccess, scrypt
from cloister.errors import InputError, IntegrityError, PassphraseError
from cloister.files import read_bytes, write_atomic
from cloister.types import check_name

__all__ = ["Authority", "NetworkKey", "check_certificate", "common_name", "read_certificate", "subject_of"]

VALID_DAYS: Final = 365
_AUTHORITY_DAYS: Final = 10 * 365
_SKEW: Final = datetime.timedelta(days=2)
_ORGANISATION: Final = "Cloister"
_MAX_PEM: Final = 64 << 10
_HEADER: Final = re.compile(
    rb"# cloister network key v1 n=([0-9]{1,10}) r=([0-9]{1,3}) p=([0-9]{1,3}) salt=([0-9a-f]{32})\n"
)
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.?)+\Z", re.ASCII)


def subject_of(name: str) -> str:
    """Return the subject, as the server writes it, of the certificate of an organisation."""
    return f"CN={check_name(name)},O={_ORGANISATION}"


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def common_name(subject: x509.Name) -> str:
    """Return the one name in a subject. Raises IntegrityError where it is not a subject of this network."""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or subject != _subject(str(names[0].value)):
        raise IntegrityError("a certificate or request has another subject", fix="Make it again")
    return str(names[0].value)


class NetworkKey(HoldsSecret):
    """A private key for TLS (ECDSA on P-256)."""

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> NetworkKey:
        """Return a fresh key, in memory only."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._key.public_key()

    def request(self, name: str) -> bytes:
        """Return a request (CSR, PEM) for the certificate of `name`, signed by this key."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(check_name(name)))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def to_pem(self, token: SecretAccess) -> bytes:
        """Return the key unencrypted, as a server reads it that starts without anybody present."""
        if token is not SECRET_ACCESS:
            raise TypeError("secret bytes leave only with the token SECRET_ACCESS")
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def save(
        self, path: Path, passphrase: str, *, cost: ScryptCost | None = None, replace: bool = False
    ) -> None:
        """Write the key under the passphrase, mode 0600. Raises InputError where `path` exists and must stay,
        StorageError where it cannot be written."""
        chosen, salt = cost or ScryptCost(), os.urandom(16)
        header = b"# cloister network key v1 n=%d r=%d p=%d salt=%s\n" % (
            *(chosen.n, chosen.r, chosen.p),
            salt.hex().encode(),
        )
        password = _password(passphrase, salt, chosen)
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
        write_atomic(path, header + pem, mode=0o600, replace=replace)

    @classmethod
    def load(cls, path: Path, passphrase: str) -> NetworkKey:
        """Return the key in a file. Raises InputError, IntegrityError, PassphraseError."""
        password = key_password(path, passphrase)
        pem = read_bytes(path, limit=_MAX_PEM, what="network key")
        try:
            key = load_pem_private_key(pem, password)
        except (ValueError, TypeError):
            raise wrong_passphrase(path) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IntegrityError("the network key is of another kind", where=str(path), fix="Restore it")
        return cls(key)

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, hashes.SHA256())


def _password(passphrase: str, salt: bytes, cost: ScryptCost) -> bytes:
    return scrypt(passphrase, salt, cost).hex().encode()


def wrong_passphrase(path: Path) -> PassphraseError:
    """Return the error for a key that does not open."""
    return PassphraseError("the network key does not open", where=str(path), fix="Check the passphrase")


def key_password(path: Path, passphrase: str) -> bytes:
    """Return the password of the PEM block in a key's file, for a library that reads the file itself.

    Raises:
        InputError: missing, or readable by others.
        IntegrityError: not a network key.
    """
    data = read_bytes(path, limit=_MAX_PEM, what="network key")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(
            "the network key may be read or changed by others", where=str(path), fix="Run `chmod 600` on it"
        )
    found = _HEADER.match(data)
    if not found:
        raise IntegrityError("this is not a network key", where=str(path), fix="Request a new one")
    cost = ScryptCost(*(int(number) for number in found.groups()[:3]))
    return _password(passphrase, bytes.fromhex(found[4].decode()), cost)


class Authority(HoldsSecret):
    """The operator's certificate and key, which sign those of servers and organisations."""

    __slots__ = ("_key", "certificate")

    def __init__(self, key: NetworkKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def generate(cls, title: str = "Cloister network") -> Authority:
        """Return a fresh authority, in memory only; `title` is its subject."""
        key = NetworkKey.generate()
        name = _subject(title)
        builder = _builder(name, name, key.public, _AUTHORITY_DAYS, authority=key.public)
        usage = _usage(digital_signature=False, key_cert_sign=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(key, key._sign(builder.add_extension(usage, critical=True)))

    @property
    def pem(self) -> bytes:
        """The certificate, which everybody trusts."""
        return self.certificate.public_bytes(Encoding.PEM)

    def save(self, folder: Path, passphrase: str, *, cost: ScryptCost | None = None) -> None:
        """Write authority.key and authority.pem, which must not exist. Raises InputError, StorageError."""
        self._key.save(folder / "authority.key", passphrase, cost=cost)
        write_atomic(folder / "authority.pem", self.pem, replace=False)

    @classmethod
    def load(cls, folder: Path, passphrase: str) -> Authority:
        """Return the authority that `save` wrote. Raises InputError, IntegrityError, PassphraseError."""
        certificate = read_certificate(folder / "authority.pem")
        key = NetworkKey.load(folder / "authority.key", passphrase)
        if not _same_key(certificate.public_key(), key.public):
            raise IntegrityError(
                "the authority's key and certificate do not belong together",
                where=str(folder),
                fix="Restore both",
            )
        return cls(key, certificate)

    def server(self, key: NetworkKey, hosts: Sequence[str]) -> bytes:
        """Return the certificate (PEM) of servers reached under `hosts`, names or IP addresses.

        Raises:
            InputError: no host, or one that is neither.
        """
        if not hosts:
            raise InputError("a server's certificate needs a host", fix="Name every host it is reached under")
        builder = _builder(
            _subject("server"),
            self.certificate.subject,
            key.public,
            VALID_DAYS,
            authority=self._key.public,
        )
        names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
        # servers of a cluster are also clients of each other
        return self._finish(
            builder.add_extension(names, critical=False),
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        )

    def organisation(self, name: str, request: bytes) -> bytes:
        """Return the certificate (PEM) of the organisation `name` for the key in its request.

        Raises:
            IntegrityError: the request is not signed by its own key, is for another name or kind of key.
        """
        public = _requested(name, request)
        builder = _builder(
            _subject(check_name(name)),
            self.certificate.subject,
            public,
            VALID_DAYS,
            authority=self._key.public,
        )
        return self._finish(builder, [ExtendedKeyUsageOID.CLIENT_AUTH])

    def _finish(self, builder: x509.CertificateBuilder, purposes: list[x509.ObjectIdentifier]) -> bytes:
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True, key_cert_sign=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return self._key._sign(builder).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    *,
    authority: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
    )


def _usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.match(host):
            raise InputError(
                f"{host[:70]!r} is neither a host name nor an address", fix="Correct it"
            ) from None
        return x509.DNSName(host)


def _requested(name: str, request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request)
        public, valid = parsed.public_key(), parsed.is_signature_valid
    except (ValueError, TypeError, InvalidSignature):
        raise IntegrityError("this is not a certificate request", where=name, fix="Make it again") from None
    if not valid or common_name(parsed.subject) != name:
        raise IntegrityError(
            "a certificate request is not signed by its key, or is for another name",
            where=name,
            fix="Make it again",
        )
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise IntegrityError(
            "a certificate request holds another kind of key than ECDSA on P-256",
            where=name,
            fix="Make it again",
        )
    return public


def _same_key(one: object, other: ec.EllipticCurvePublicKey) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return isinstance(one, ec.EllipticCurvePublicKey) and one.public_bytes(*form) == other.public_bytes(*form)


def read_certificate(path: Path) -> x509.Certificate:
    """Return the one certificate in a PEM file. Raises InputError, IntegrityError."""
    return _parse(read_bytes(path, limit=_MAX_PEM, what="certificate"), str(path))


def _parse(pem: bytes, where: str) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    if len(found) != 1:
        raise IntegrityError("this is not one certificate", where=where, fix="Get it again")
    return found[0]


def check_certificate(certificate: bytes, authority: bytes, name: str, key: NetworkKey) -> None:
    """Return if a certificate is that of `name` for `key`, signed by `authority` (both PEM), and still valid.

    Raises:
        IntegrityError: it is not.
    """
    mine, issuer = _parse(certificate, name), _parse(authority, "the operator's")
    if not _same_key(mine.public_key(), key.public) or common_name(mine.subject) != name:
        raise IntegrityError(
            "the certificate is for another name or key",
            where=name,
            fix="Send the newest request to the operator",
        )
    try:
        mine.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise IntegrityError(
            "the certificate was signed by another authority", where=name, fix="Ask the operator for it again"
        ) from None
    if datetime.datetime.now(datetime.UTC) >= mine.not_valid_after_utc:
        raise IntegrityError("the certificate has expired", where=name, fix="Request a new one")
