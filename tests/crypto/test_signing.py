from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tests.crypto.vectors import read

from cloister.crypto import SECRET_ACCESS, SignatureAlgorithm, SigningKey, VerifyKey
from cloister.errors import InputError, IntegrityError, PassphraseError

ALGORITHMS = list(SignatureAlgorithm)
WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def keys() -> dict[SignatureAlgorithm, SigningKey]:
    return {algorithm: SigningKey.generate(algorithm) for algorithm in ALGORITHMS}


def test_ed25519_vectors() -> None:
    for vector in read("ed25519")["vectors"]:
        secret, public, message, signature = (
            bytes.fromhex(vector[name]) for name in ("secret", "public", "message", "signature")
        )
        key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
        assert key.sign(message) == signature
        assert key.verify_key.to_bytes() == public
        VerifyKey.from_bytes(SignatureAlgorithm.ED25519, public).verify(signature, message)


def test_ecdsa_vectors() -> None:
    vectors = read("ecdsa_p256")
    key = VerifyKey.from_bytes(SignatureAlgorithm.ECDSA_P256, bytes.fromhex(vectors["public"]))
    for vector in vectors["vectors"]:
        signature = encode_dss_signature(int(vector["r"], 16), int(vector["s"], 16))
        key.verify(signature, vector["message"].encode())
        with pytest.raises(IntegrityError):
            key.verify(signature, vector["message"].encode() + b"!")


def mgf1(seed: bytes, length: int) -> bytes:
    blocks = (hashlib.sha256(seed + n.to_bytes(4, "big")).digest() for n in range(-(-length // 32)))
    return b"".join(blocks)[:length]


def pss_holds(public: rsa.RSAPublicKey, signature: bytes, message: bytes) -> bool:
    """RSASSA-PSS-VERIFY and EMSA-PSS-VERIFY of RFC 8017 (8.1.2, 9.1.2) with SHA-256 and a salt of 32 bytes."""
    numbers = public.public_numbers()
    bits = public.key_size - 1
    length = -(-bits // 8)
    encoded = pow(int.from_bytes(signature, "big"), numbers.e, numbers.n).to_bytes(length, "big")
    masked, digest = encoded[: length - 33], encoded[length - 33 : -1]
    block = bytearray(a ^ b for a, b in zip(masked, mgf1(digest, len(masked)), strict=True))
    block[0] &= 0xFF >> (8 * length - bits)
    salt = bytes(block[-32:])
    return (
        encoded[-1] == 0xBC
        and bytes(block[:-32]) == bytes(len(block) - 33) + b"\x01"
        and hashlib.sha256(bytes(8) + hashlib.sha256(message).digest() + salt).digest() == digest
    )


def test_rsa_pss_by_an_independent_derivation(keys: dict[SignatureAlgorithm, SigningKey]) -> None:
    key = keys[SignatureAlgorithm.RSA_PSS]
    public = serialization.load_der_public_key(key.verify_key.to_bytes())
    assert isinstance(public, rsa.RSAPublicKey)
    assert pss_holds(public, key.sign(b"message"), b"message")
    assert not pss_holds(public, key.sign(b"message"), b"another")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sign_and_verify(algorithm: SignatureAlgorithm, keys: dict[SignatureAlgorithm, SigningKey]) -> None:
    key = keys[algorithm]
    assert key.algorithm is algorithm
    for message in (b"", b"message", memoryview(b"view"), bytearray(b"array")):
        signature = key.sign(message)
        key.verify_key.verify(signature, message)
    for wrong in (signature[:-1], signature + b"\x00", b"", bytes(len(signature)), signature[:32]):
        with pytest.raises(IntegrityError, match="signature"):
            key.verify_key.verify(wrong, b"array")
    flipped = bytearray(signature)
    flipped[10] ^= 4
    with pytest.raises(IntegrityError):
        key.verify_key.verify(bytes(flipped), b"array")
    for other in ALGORITHMS:
        with pytest.raises(IntegrityError):
            SigningKey.generate(other).verify_key.verify(
                signature, b"array"
            ) if other is not SignatureAlgorithm.RSA_PSS else keys[other].verify_key.verify(
                signature, b"not it"
            )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_survive_storage(
    algorithm: SignatureAlgorithm, keys: dict[SignatureAlgorithm, SigningKey]
) -> None:
    key = keys[algorithm]
    public = key.verify_key
    for copy in (
        VerifyKey.from_bytes(algorithm, public.to_bytes()),
        VerifyKey.from_pem(public.to_pem()),
        SigningKey.from_bytes(key.to_bytes(SECRET_ACCESS)).verify_key,
    ):
        assert copy == public
        assert hash(copy) == hash(public)
    assert public != SigningKey.generate().verify_key
    assert public != public.to_bytes()
    assert algorithm.value in repr(public)


def test_pem_under_a_passphrase(keys: dict[SignatureAlgorithm, SigningKey]) -> None:
    key = keys[SignatureAlgorithm.ED25519]
    pem = key.to_pem("pass phrase")
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert SigningKey.from_pem(pem, "pass phrase").verify_key == key.verify_key
    with pytest.raises(PassphraseError, match="does not open"):
        SigningKey.from_pem(pem, "another")
    with pytest.raises(PassphraseError, match="1 to 1024"):
        SigningKey.from_pem(pem, "")
    with pytest.raises(PassphraseError, match="1 to 1024"):
        key.to_pem("")
    with pytest.raises(InputError, match="PKCS#8"):
        SigningKey.from_pem(b"nonsense", "x")
    with pytest.raises(InputError, match="PKCS#8"):
        SigningKey.from_bytes(b"nonsense")


def test_an_unencrypted_pem_is_refused() -> None:
    plain = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(PassphraseError, match="not encrypted"):
        SigningKey.from_pem(plain, "x")


@pytest.mark.parametrize(
    "key",
    [
        ed448.Ed448PrivateKey.generate(),
        x25519.X25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        WEAK_RSA,
    ],
)
def test_other_keys_are_refused(key: ed448.Ed448PrivateKey) -> None:
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(InputError):
        SigningKey.from_bytes(der)
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(InputError):
        VerifyKey.from_pem(pem)


def test_rsa_with_exponent_three_is_refused() -> None:
    numbers = rsa.RSAPublicNumbers(3, WEAK_RSA.public_key().public_numbers().n ** 2 | 1)
    with pytest.raises(InputError, match="exponent"):
        VerifyKey(numbers.public_key())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bytes_that_are_no_key_are_refused(algorithm: SignatureAlgorithm) -> None:
    for data in (b"", bytes(31), bytes(65), b"\x04" + b"\x01" * 64):
        with pytest.raises(InputError):
            VerifyKey.from_bytes(algorithm, data)
    with pytest.raises(InputError, match="PEM"):
        VerifyKey.from_pem(b"-----BEGIN PUBLIC KEY-----")


def test_a_key_is_not_taken_for_another_algorithms() -> None:
    spki = serialization.load_pem_public_key(SigningKey.generate().verify_key.to_pem()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(InputError, match="not for rsa"):
        VerifyKey.from_bytes(SignatureAlgorithm.RSA_PSS, spki)
