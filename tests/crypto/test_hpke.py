from __future__ import annotations

import hashlib

import pytest
from tests.crypto import rfc9180
from tests.crypto.vectors import read

from cloister.crypto import SECRET_ACCESS, HpkePrivateKey, HpkePublicKey, KemSuite, hpke_open, hpke_seal
from cloister.errors import InputError, IntegrityError

SUITES = list(KemSuite)


def test_the_second_opinion_agrees_with_the_rfc() -> None:
    vector = {name: bytes.fromhex(text) for name, text in read("hpke").items() if name != "source"}
    shared = rfc9180.decap_x25519(vector["private"], vector["enc"])
    opened = rfc9180.open_base(
        rfc9180.X25519_KEM,
        rfc9180.AES_128_GCM,
        shared,
        vector["ciphertext"],
        vector["info"],
        vector["associated_data"],
    )
    assert opened == vector["plaintext"]
    key = HpkePrivateKey.from_bytes(KemSuite.X25519, vector["private"])
    assert key.public_key.to_bytes() == vector["public"]


def test_sealed_bytes_are_what_the_rfc_and_the_docstring_say() -> None:
    context = b"cloister hpke v1" + hashlib.sha256(b"info").digest() + hashlib.sha256(b"aad").digest()
    key = HpkePrivateKey.generate(KemSuite.X25519)
    sealed = hpke_seal(key.public_key, b"message", info=b"info", associated_data=b"aad")
    shared = rfc9180.decap_x25519(key.to_bytes(SECRET_ACCESS), sealed[:32])
    opened = rfc9180.open_base(rfc9180.X25519_KEM, rfc9180.AES_256_GCM, shared, sealed[32:], context, b"")
    assert opened == b"message"


def test_the_hybrid_is_x_wing() -> None:
    context = b"cloister hpke v1" + hashlib.sha256(b"info").digest() + hashlib.sha256(b"aad").digest()
    key = HpkePrivateKey.generate(KemSuite.HYBRID)
    sealed = hpke_seal(key.public_key, b"message", info=b"info", associated_data=b"aad")
    shared = rfc9180.decap_x_wing(key.to_bytes(SECRET_ACCESS), sealed[:1120])
    opened = rfc9180.open_base(rfc9180.X_WING_KEM, rfc9180.AES_256_GCM, shared, sealed[1120:], context, b"")
    assert opened == b"message"


@pytest.mark.parametrize("suite", SUITES)
def test_round_trip_through_stored_keys(suite: KemSuite) -> None:
    key = HpkePrivateKey.from_bytes(suite, HpkePrivateKey.generate(suite).to_bytes(SECRET_ACCESS))
    public = HpkePublicKey.from_bytes(suite, key.public_key.to_bytes())
    assert public == key.public_key
    assert hash(public) == hash(key.public_key)
    sealed = hpke_seal(public, b"message", info=b"i", associated_data=b"a")
    assert len(sealed) == len(b"message") + (48 if suite is KemSuite.X25519 else 1136)
    assert hpke_open(key, sealed, info=b"i", associated_data=b"a") == b"message"


@pytest.mark.parametrize("suite", SUITES)
def test_other_context_key_or_bytes_do_not_open(suite: KemSuite) -> None:
    key = HpkePrivateKey.generate(suite)
    sealed = hpke_seal(key.public_key, b"message", info=b"i", associated_data=b"a")
    for info, associated_data in ((b"i2", b"a"), (b"i", b"a2"), (b"a", b"i"), (b"ia", b""), (b"", b"ia")):
        with pytest.raises(IntegrityError):
            hpke_open(key, sealed, info=info, associated_data=associated_data)
    with pytest.raises(IntegrityError):
        hpke_open(HpkePrivateKey.generate(suite), sealed, info=b"i", associated_data=b"a")
    for position in (0, 16, len(sealed) // 2, len(sealed) - 20, len(sealed) - 1):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(IntegrityError):
            hpke_open(key, bytes(changed), info=b"i", associated_data=b"a")
    for cut in (0, 1, 31, 32, len(sealed) - 1):
        with pytest.raises(IntegrityError):
            hpke_open(key, sealed[:cut], info=b"i", associated_data=b"a")


def test_one_suites_message_does_not_open_under_the_other() -> None:
    sealed = hpke_seal(
        HpkePrivateKey.generate(KemSuite.HYBRID).public_key, b"m", info=b"i", associated_data=b"a"
    )
    with pytest.raises(IntegrityError):
        hpke_open(HpkePrivateKey.generate(KemSuite.X25519), sealed, info=b"i", associated_data=b"a")


@pytest.mark.parametrize("suite", SUITES)
def test_wrong_lengths_are_refused(suite: KemSuite) -> None:
    for length in (0, suite.public_bytes - 1, suite.public_bytes + 1):
        with pytest.raises(InputError, match="public key"):
            HpkePublicKey.from_bytes(suite, bytes(length))
    for length in (0, suite.private_bytes - 1, suite.private_bytes + 1):
        with pytest.raises(InputError, match="private key"):
            HpkePrivateKey.from_bytes(suite, bytes(length))


def test_an_mlkem_key_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="not a public key"):
        HpkePublicKey.from_bytes(
            KemSuite.HYBRID, b"\xff" * 1216
        )  # coefficients not below the modulus (FIPS 203, 7.2)


@pytest.mark.parametrize("point", read("x25519")["small_order"])
@pytest.mark.parametrize("suite", SUITES)
def test_points_of_small_order_are_not_sealed_to(point: str, suite: KemSuite) -> None:
    data = HpkePrivateKey.generate(suite).public_key.to_bytes()[:-32] + bytes.fromhex(point)
    with pytest.raises(InputError):
        hpke_seal(HpkePublicKey.from_bytes(suite, data), b"m", info=b"i", associated_data=b"a")


def test_keys_of_different_suites_differ() -> None:
    key = HpkePrivateKey.generate(KemSuite.X25519).public_key
    assert key != HpkePrivateKey.generate(KemSuite.X25519).public_key
    assert key != key.to_bytes()
    assert "x25519" in repr(key)
