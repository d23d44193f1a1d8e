"""RFC 9180 base mode, written from the RFC on nothing but hashes, X25519, ML-KEM and AES-GCM: the second opinion on `hpke`."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

X25519_KEM, X_WING_KEM, HKDF_SHA256, AES_128_GCM, AES_256_GCM = 0x0020, 0x647A, 1, 1, 2


def extract(salt: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), key, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    output, block = b"", b""
    while len(output) < length:
        block = hmac.digest(prk, block + info + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return output[:length]


def labeled_extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return extract(salt, b"HPKE-v1" + suite + label + key)


def labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def decap_x25519(private: bytes, enc: bytes) -> bytes:
    """Section 4.1."""
    key = X25519PrivateKey.from_private_bytes(private)
    shared = key.exchange(X25519PublicKey.from_public_bytes(enc))
    suite = b"KEM" + X25519_KEM.to_bytes(2, "big")
    prk = labeled_extract(suite, b"", b"eae_prk", shared)
    context = enc + key.public_key().public_bytes_raw()
    return labeled_expand(suite, prk, b"shared_secret", context, 32)


def decap_x_wing(private: bytes, enc: bytes) -> bytes:
    """X-Wing (draft-connolly-cfrg-xwing-kem), from the expanded key: ML-KEM seed | X25519 scalar."""
    mlkem, x25519 = (
        MLKEM768PrivateKey.from_seed_bytes(private[:64]),
        X25519PrivateKey.from_private_bytes(private[64:]),
    )
    one = mlkem.decapsulate(enc[:1088])
    two = x25519.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    public = x25519.public_key().public_bytes_raw()
    return hashlib.sha3_256(one + two + enc[1088:] + public + b"\\.//^\\").digest()


def open_base(
    kem: int, aead: int, shared: bytes, ciphertext: bytes, info: bytes, associated_data: bytes
) -> bytes:
    """Section 5.1, mode 0, and the first message of section 5.2."""
    suite = b"HPKE" + kem.to_bytes(2, "big") + HKDF_SHA256.to_bytes(2, "big") + aead.to_bytes(2, "big")
    psk_id_hash = labeled_extract(suite, b"", b"psk_id_hash", b"")
    info_hash = labeled_extract(suite, b"", b"info_hash", info)
    context = b"\x00" + psk_id_hash + info_hash
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", context, 16 if aead == AES_128_GCM else 32)
    nonce = labeled_expand(suite, secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, associated_data)
