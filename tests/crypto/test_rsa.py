from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.crypto.test_signing import WEAK_RSA, mgf1

from cloister.crypto import SECRET_ACCESS, RsaKey, RsaPublicKey, SigningKey
from cloister.errors import InputError, IntegrityError, PassphraseError


@pytest.fixture(scope="module")
def key() -> RsaKey:
    return RsaKey.generate()


def oaep_open(key: rsa.RSAPrivateKey, ciphertext: bytes, label: bytes) -> bytes:
    """RSAES-OAEP-DECRYPT of RFC 8017, 7.1.2, with SHA-256, for valid input."""
    numbers = key.private_numbers()
    size = key.key_size // 8
    encoded = pow(int.from_bytes(ciphertext, "big"), numbers.d, numbers.public_numbers.n).to_bytes(
        size, "big"
    )
    masked_seed, masked_block = encoded[1:33], encoded[33:]
    seed = bytes(a ^ b for a, b in zip(masked_seed, mgf1(masked_block, 32), strict=True))
    block = bytes(a ^ b for a, b in zip(masked_block, mgf1(seed, len(masked_block)), strict=True))
    assert encoded[0] == 0
    assert block[:32] == hashlib.sha256(label).digest()
    padding, _, message = block[32:].partition(b"\x01")
    assert not any(padding)
    return message


def test_oaep_by_an_independent_derivation(key: RsaKey) -> None:
    private = serialization.load_der_private_key(key.to_bytes(SECRET_ACCESS), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    assert private.key_size == 3072
    ciphertext = key.public.encrypt(b"\x00\x01message", b"label")
    assert oaep_open(private, ciphertext, b"label") == b"\x00\x01message"


def test_round_trip_through_stored_keys(key: RsaKey) -> None:
    copy = RsaKey.from_bytes(key.to_bytes(SECRET_ACCESS))
    public = RsaPublicKey.from_bytes(copy.public.to_bytes())
    assert copy.decrypt(public.encrypt(b"secret", b"label"), b"label") == b"secret"
    assert copy.decrypt(public.encrypt(bytes(318), b"label"), b"label") == bytes(318)
    assert "3072" in repr(public)


def test_pem_under_a_passphrase(key: RsaKey) -> None:
    pem = key.to_pem("phrase")
    assert RsaKey.from_pem(pem, "phrase").public.to_bytes() == key.public.to_bytes()
    with pytest.raises(PassphraseError):
        RsaKey.from_pem(pem, "other")


def test_label_and_bytes_are_authenticated(key: RsaKey) -> None:
    ciphertext = key.public.encrypt(b"secret", b"label")
    for bad, label in (
        (ciphertext, b"other"),
        (ciphertext[:-1], b"label"),
        (bytes(384), b"label"),
        (b"", b"label"),
    ):
        with pytest.raises(IntegrityError):
            key.decrypt(bad, label)
    with pytest.raises(IntegrityError):
        key.decrypt(ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), b"label")


def test_limits(key: RsaKey) -> None:
    with pytest.raises(InputError, match="too long"):
        key.public.encrypt(bytes(319), b"label")
    with pytest.raises(InputError, match="label"):
        key.public.encrypt(b"x", b"")
    with pytest.raises(InputError, match="label"):
        key.decrypt(bytes(384), b"")


@pytest.mark.parametrize("bits", [512, 1024, 2048, 3071])
def test_short_keys_are_not_made(bits: int) -> None:
    with pytest.raises(InputError, match="below 3072 bits is refused"):
        RsaKey.generate(bits)


def test_overlong_keys_are_not_made() -> None:
    with pytest.raises(InputError, match="too long"):
        RsaKey.generate(16385)


def test_other_keys_are_refused() -> None:
    weak = WEAK_RSA.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(InputError, match="3072"):
        RsaKey.from_bytes(weak)
    with pytest.raises(InputError, match="not RSA"):
        RsaKey.from_bytes(SigningKey.generate().to_bytes(SECRET_ACCESS))
    weak_public = WEAK_RSA.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(InputError, match="3072"):
        RsaPublicKey.from_bytes(weak_public)
    with pytest.raises(InputError, match="not an RSA"):
        RsaPublicKey.from_bytes(b"nonsense")
