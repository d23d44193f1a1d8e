from __future__ import annotations

import datetime
import pickle
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.crypto import SECRET_ACCESS, ScryptCost
from cloister.errors import InputError, IntegrityError, PassphraseError
from cloister.runtime.nats import Authority, NetworkKey, TlsFiles, check_certificate, client_context
from cloister.runtime.nats.certificates import common_name, read_certificate, subject_of

CHEAP = ScryptCost(n=2**14)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.generate()


def issue(folder: Path, authority: Authority, name: str = "alice") -> NetworkKey:
    key = NetworkKey.generate()
    key.save(folder / "network.key", "pass", cost=CHEAP)
    (folder / "certificate.pem").write_bytes(authority.organisation(name, key.request(name)))
    (folder / "authority.pem").write_bytes(authority.pem)
    return key


def test_a_key_is_kept_under_its_passphrase_and_for_its_owner(tmp_path: Path) -> None:
    key, path = NetworkKey.generate(), tmp_path / "network.key"
    key.save(path, "pass", cost=CHEAP)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert NetworkKey.load(path, "pass").to_pem(SECRET_ACCESS) == key.to_pem(SECRET_ACCESS)
    with pytest.raises(PassphraseError):
        NetworkKey.load(path, "other")
    with pytest.raises(InputError, match="exists"):
        key.save(path, "pass", cost=CHEAP)
    path.chmod(0o640)
    with pytest.raises(InputError, match="others"):
        NetworkKey.load(path, "pass")


def test_the_passphrase_does_not_open_the_pem_block_itself(tmp_path: Path) -> None:
    """PEM's own derivation is cheap to guess against; only the scrypt of the passphrase opens it."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    NetworkKey.generate().save(tmp_path / "k", "pass", cost=CHEAP)
    with pytest.raises(ValueError):
        load_pem_private_key((tmp_path / "k").read_bytes(), b"pass")


def test_a_key_is_neither_shown_nor_pickled(tmp_path: Path) -> None:
    key = NetworkKey.generate()
    assert "secret" in repr(key)
    for secret in (key, Authority.generate(), TlsFiles.in_folder(tmp_path, "pass")):
        assert "pass'" not in repr(secret)
        with pytest.raises(TypeError):
            pickle.dumps(secret)
    with pytest.raises(TypeError):
        key.to_pem("please")  # type: ignore[arg-type]  # that is the point


def test_an_authority_is_found_again(tmp_path: Path, authority: Authority) -> None:
    authority.save(tmp_path, "pass", cost=CHEAP)
    again = Authority.load(tmp_path, "pass")
    assert again.pem == authority.pem
    key = NetworkKey.generate()
    check_certificate(again.organisation("alice", key.request("alice")), authority.pem, "alice", key)
    (tmp_path / "authority.pem").write_bytes(Authority.generate().pem)
    with pytest.raises(IntegrityError, match="do not belong together"):
        Authority.load(tmp_path, "pass")


def test_a_certificate_says_who_and_begins_before_now(authority: Authority) -> None:
    key, now = NetworkKey.generate(), datetime.datetime.now(datetime.UTC)
    made = x509.load_pem_x509_certificate(authority.organisation("alice", key.request("alice")))
    assert common_name(made.subject) == "alice"
    assert subject_of("alice") == made.subject.rfc4514_string() == "CN=alice,O=Cloister"
    assert made.not_valid_before_utc < now - datetime.timedelta(days=1)
    assert datetime.timedelta(days=364) < made.not_valid_after_utc - now <= datetime.timedelta(days=365)
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_server_certificate_names_hosts_and_addresses(authority: Authority) -> None:
    pem = authority.server(NetworkKey.generate(), ["nats.example", "10.0.0.1", "::1", "nats.example"])
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["nats.example"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]


@pytest.mark.parametrize(
    "host", ["", "a b", "*.example", "nats.example:4222", "tls://a", "ä.example", "-a", "a" * 300]
)
def test_what_is_no_host_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(InputError):
        authority.server(NetworkKey.generate(), [host])
    with pytest.raises(InputError):
        authority.server(NetworkKey.generate(), [])


def test_a_request_is_for_one_name_and_signed_by_its_key(authority: Authority) -> None:
    key = NetworkKey.generate()
    with pytest.raises(IntegrityError, match="another name"):
        authority.organisation("bob", key.request("alice"))
    for nonsense in (b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(IntegrityError):
            authority.organisation("alice", nonsense)
    stolen = bytearray(x509.load_pem_x509_csr(key.request("alice")).public_bytes(Encoding.DER))
    stolen[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(stolen)).public_bytes(Encoding.PEM)
    with pytest.raises(IntegrityError):
        authority.organisation("alice", altered)


def test_other_kinds_of_keys_and_subjects_get_no_certificate(authority: Authority) -> None:
    good = x509.load_pem_x509_csr(NetworkKey.generate().request("alice")).subject
    doubled = x509.Name([*good, x509.NameAttribute(x509.NameOID.COMMON_NAME, "bob")])
    for subject, key in (
        (good, ed25519.Ed25519PrivateKey.generate()),
        (good, ec.generate_private_key(ec.SECP384R1())),
        (doubled, ec.generate_private_key(ec.SECP256R1())),
        (x509.Name([]), ec.generate_private_key(ec.SECP256R1())),
    ):
        digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest)
        with pytest.raises(IntegrityError):
            authority.organisation("alice", request.public_bytes(Encoding.PEM))


def test_a_bundle_is_checked_against_name_key_and_authority(authority: Authority) -> None:
    key = NetworkKey.generate()
    pem = authority.organisation("alice", key.request("alice"))
    check_certificate(pem, authority.pem, "alice", key)
    for arguments in (
        (pem, authority.pem, "bob", key),
        (pem, authority.pem, "alice", NetworkKey.generate()),
        (pem, Authority.generate().pem, "alice", key),
        (pem + pem, authority.pem, "alice", key),
        (b"", authority.pem, "alice", key),
    ):
        with pytest.raises(IntegrityError):
            check_certificate(*arguments)


def test_files_of_a_party_make_a_context_or_one_sentence(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(InputError, match="missing"):
        client_context(tmp_path, "pass")
    issue(tmp_path, authority)
    assert client_context(tmp_path, "pass").check_hostname
    with pytest.raises(PassphraseError):
        client_context(tmp_path, "other")
    fits = (tmp_path / "certificate.pem").read_bytes()
    (tmp_path / "certificate.pem").write_bytes(
        authority.organisation("alice", NetworkKey.generate().request("alice"))
    )
    with pytest.raises(IntegrityError, match="do not belong together"):
        client_context(tmp_path, "pass")
    (tmp_path / "certificate.pem").write_bytes(fits)
    (tmp_path / "authority.pem").write_text("nothing")
    with pytest.raises(IntegrityError, match="not a certificate"):
        client_context(tmp_path, "pass")
    assert read_certificate(tmp_path / "certificate.pem").subject.rfc4514_string() == "CN=alice,O=Cloister"
    (tmp_path / "network.key").write_text("nothing")
    with pytest.raises(IntegrityError, match="not a network key"):
        client_context(tmp_path, "pass")
