"""How organisations enter a network: a request to the broker's operator, and the bundle that comes back.

    organisation                          operator
    request  ---- signed request ---->    issue
    install  <--- bundle -------------

1. An organisation makes a TLS key and asks for a certificate; its identity signs the request. The operator
   answers only requests of identities that it trusts, so nobody enters under another's name.
2. A bundle holds the certificate and the operator's own. It is no secret and not signed: it is installed only
   where it fits the key that was made, and the operator's fingerprint is what people compare. Who got an
   organisation to install a bundle of his own could lose and delay what it sends, not read or forge it.

A new key waits beside the one in use until its bundle is installed: asking for a certificate again does not
take an organisation off the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cloister.crypto import (
    Identity,
    PublicIdentity,
    canonical_bytes,
    envelope_signers,
    keyring,
    open_envelope,
    sign_envelope,
)
from cloister.errors import InputError, IntegrityError, VerificationError
from cloister.files import write_atomic
from cloister.runtime.nats.certificates import Authority, NetworkKey, check_certificate, read_certificate
from cloister.runtime.nats.tlsfiles import TlsFiles

__all__ = [
    "REQUEST_TYPE",
    "Installed",
    "Request",
    "authority_fingerprint",
    "bundle_for",
    "install_bundle",
    "make_request",
    "read_request",
]

REQUEST_TYPE: Final = "application/vnd.cloister.network-request+json"
_Pem = Annotated[str, msgspec.Meta(min_length=1, max_length=16 << 10)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]


class Request(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag="cloister/network-request/v1",
    tag_field="type",
):
    """What an organisation asks for: a certificate for its name and the key that signed `csr` (PEM)."""

    name: _Name
    csr: _Pem


class _Bundle(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag="cloister/network-bundle/v1",
    tag_field="type",
):
    name: _Name
    authority: _Pem
    certificate: _Pem


@dataclass(frozen=True)
class Installed:
    """What was installed.

    Args:
        name: the organisation's.
        authority: SHA-256 of the operator's certificate, in hexadecimal.
        until: the certificate's last day, as YYYY-MM-DD.
    """

    name: str
    authority: str
    until: str


def make_request(folder: Path, identity: Identity, passphrase: str) -> bytes:
    """Return a signed request for a fresh TLS key, or for the one that waits in `folder` for its bundle.

    Raises:
        IntegrityError, PassphraseError: a key is waiting and does not open.
        StorageError: the key cannot be written.
    """
    waiting = _waiting(folder)
    if waiting.exists():
        key = NetworkKey.load(waiting, passphrase)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = NetworkKey.generate()
        key.save(waiting, passphrase)
    request = Request(identity.name, key.request(identity.name).decode())
    return sign_envelope(REQUEST_TYPE, canonical_bytes(request), [identity])


def read_request(envelope: bytes, trusted: Sequence[PublicIdentity]) -> Request:
    """Return a request that a trusted identity signed for its own name.

    Raises:
        IntegrityError: it is not signed by one, cannot be read, or is for another name.
    """
    signers = envelope_signers(envelope)
    known = [identity for identity in trusted if identity.fingerprint in signers]
    if len(known) != 1:
        raise IntegrityError(
            "a network request is not signed by one identity that is trusted here",
            fix="Use `cloister keys trust` with its owner's export",
        )
    payload = open_envelope(envelope, REQUEST_TYPE, keyring(known))
    try:
        request = msgspec.json.decode(payload, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise IntegrityError("a network request cannot be read", fix="Ask for it again") from None
    if request.name != known[0].name:
        raise IntegrityError(
            f"{known[0].name} asks for the certificate of another", fix="Refuse it, and ask them why"
        )
    return request


def bundle_for(authority: Authority, request: Request) -> bytes:
    """Return the bundle that answers a request. Raises IntegrityError: its CSR is not one for its name."""
    certificate = authority.organisation(request.name, request.csr.encode())
    bundle = _Bundle(request.name, authority.pem.decode(), certificate.decode())
    return msgspec.json.format(msgspec.json.encode(bundle), indent=2) + b"\n"


def install_bundle(
    folder: Path,
    data: bytes,
    name: str,
    passphrase: str,
    *,
    compared: str | None = None,
    replace_authority: bool = False,
) -> Installed:
    """Put a bundle into an organisation's network folder, and its key into use.

    1. The bundle is one, for this organisation.
    2. Its operator is the one whose fingerprint was compared, and the one installed before, if any.
    3. It fits the key that waits, or else the one in use; it is signed by its operator, and valid.
    Then the operator's certificate is written, this party's, and last the key takes its place: a crash
    between is mended by installing again.

    Args:
        folder: where `make_request` left the key.
        data: the bundle.
        name: the organisation's.
        passphrase: of the key.
        compared: the operator's fingerprint as it was told over another channel.
        replace_authority: whether another operator may take the place of the one installed.

    Raises:
        InputError, IntegrityError, PassphraseError, VerificationError: a check fails; nothing was written.
        StorageError: a file cannot be written.
    """
    bundle = _read_bundle(data, name)  # 1
    files = TlsFiles.in_folder(folder, passphrase)
    fingerprint = authority_fingerprint(_certificate(bundle.authority))
    _check_authority(files, fingerprint, compared, replace_authority=replace_authority)  # 2
    key = _key_that_fits(folder, bundle, passphrase)  # 3
    write_atomic(files.authority, bundle.authority.encode())
    write_atomic(files.certificate, bundle.certificate.encode())
    if key != files.key:
        key.replace(files.key)
    files.client_context()
    until = _certificate(bundle.certificate).not_valid_after_utc
    return Installed(name, fingerprint, until.date().isoformat())


def authority_fingerprint(certificate: x509.Certificate) -> str:
    """Return what people compare: SHA-256 of an operator's certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _waiting(folder: Path) -> Path:
    return folder / "waiting.key"


def _read_bundle(data: bytes, name: str) -> _Bundle:
    try:
        bundle = msgspec.json.decode(data, type=_Bundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"this is not a bundle: {error}", fix="Ask the operator for it again") from None
    if bundle.name != name:
        raise InputError(
            f"this bundle is for {bundle.name[:63]!r}", where=name, fix="Ask the operator for your own"
        )
    return bundle


def _certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise IntegrityError(
            "a certificate in the bundle cannot be read", fix="Ask the operator for it again"
        ) from None


def _check_authority(
    files: TlsFiles, fingerprint: str, compared: str | None, *, replace_authority: bool
) -> None:
    if compared is not None and "".join(compared.split()).lower() != fingerprint:
        raise VerificationError(
            "the operator's fingerprint is another one", where=fingerprint, fix="Ask the operator"
        )
    if replace_authority or not files.authority.exists():
        return
    installed = authority_fingerprint(read_certificate(files.authority))
    if installed != fingerprint:
        raise InputError(
            "the bundle is from another operator than the one installed",
            where=f"installed {installed[:16]}, offered {fingerprint[:16]}",
            fix="Compare fingerprints with the operator, then use --replace",
        )


def _key_that_fits(folder: Path, bundle: _Bundle, passphrase: str) -> Path:
    files = TlsFiles.in_folder(folder, passphrase)
    found = [path for path in (_waiting(folder), files.key) if path.exists()]
    if not found:
        raise InputError(
            "there is no network key", where=str(folder), fix="Begin with `cloister keys network request`"
        )
    problem: IntegrityError | None = None
    for path in found:
        key = NetworkKey.load(path, passphrase)
        try:
            check_certificate(bundle.certificate.encode(), bundle.authority.encode(), bundle.name, key)
        except IntegrityError as error:
            problem = problem or error
        else:
            return path
    assert problem is not None  # noqa: S101  # found is not empty
    raise problem
