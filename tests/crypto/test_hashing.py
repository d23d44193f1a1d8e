from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.crypto.vectors import read

from cloister.crypto import (
    constant_time_equal,
    digest_file,
    framed,
    hash_named,
    hmac_sha256,
    refuse_weak,
    sha256,
    sha512,
)
from cloister.errors import InputError


def test_hash_vectors() -> None:
    for vector in read("hashes")["vectors"]:
        message = vector["message"].encode()
        assert hash_named(vector["name"], message).hex() == vector["digest"]
        if vector["name"] == "sha256":
            assert sha256(message).hex() == vector["digest"]
        if vector["name"] == "sha512":
            assert sha512(message).hex() == vector["digest"]


def test_hmac_vectors() -> None:
    for vector in read("hmac")["vectors"]:
        assert (
            hmac_sha256(bytes.fromhex(vector["key"]), bytes.fromhex(vector["message"])).hex() == vector["mac"]
        )


def test_parts_are_concatenated() -> None:
    assert sha256(b"a", b"", memoryview(b"bc")) == sha256(b"abc")
    assert hmac_sha256(b"k", b"a", b"bc") == hmac_sha256(b"k", b"abc")


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_framed_is_injective(one: list[bytes], two: list[bytes]) -> None:
    assert (framed(*one) == framed(*two)) == (one == two)


def test_framed_counts_bytes() -> None:
    numbers = memoryview(bytes(8)).cast("I")
    assert framed(numbers) == framed(bytes(8))


def test_an_empty_hmac_key_is_refused() -> None:
    with pytest.raises(InputError):
        hmac_sha256(b"", b"x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DES", "56-bit"),
        ("des-cbc", "56-bit"),
        ("3DES", "64-bit blocks"),
        ("TripleDES", "64-bit blocks"),
        ("DES-EDE3-CBC", "64-bit blocks"),
        ("RC4", "biased"),
        ("arcfour", "biased"),
        ("arc4", "biased"),
        ("RC2", "too short"),
        ("Blowfish", "64-bit blocks"),
        ("bf-cbc", "64-bit blocks"),
        ("MD2", "collisions"),
        ("MD4", "collisions"),
        ("md5", "collisions"),
        ("HMAC-MD5", "collisions"),
        ("SHA-1", "collisions"),
        ("sha1", "collisions"),
        ("SHA", "collisions"),
        ("ECB", "which blocks are equal"),
        ("AES-256-ECB", "which blocks are equal"),
        ("RSA-1024", "factored"),
        ("rsa2048", "factored"),
        ("RSA-OAEP-2048", "factored"),
        ("RSA PKCS#1 v1.5 encryption", "oracle"),
        ("RSAES-PKCS1-v1_5", "oracle"),
        ("rsa-pkcs1v15", "oracle"),
        ("RSA-4096-PKCS1v15", "oracle"),
    ],
)
def test_broken_algorithms_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        refuse_weak(name)
    with pytest.raises(InputError, match=reason):
        hash_named(name, b"")


@pytest.mark.parametrize(
    "name",
    [
        "aes-256-gcm",
        "sha256",
        "SHA-512",
        "sha3-256",
        "ed25519",
        "rsa-3072",
        "RSA-OAEP-4096",
        "RSA-PSS",
        "scrypt",
    ],
)
def test_sound_algorithms_are_not(name: str) -> None:
    refuse_weak(name)


def test_unknown_hashes_are_refused() -> None:
    with pytest.raises(InputError, match="not known"):
        hash_named("whirlpool", b"")


def test_digest_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 9000  # more than two pieces
    path.write_bytes(data)
    assert digest_file(path) == sha256(data)
    assert digest_file(path, "sha512") == sha512(data)
    with pytest.raises(InputError, match="refused"):
        digest_file(path, "md5")
    with pytest.raises(InputError, match="cannot read"):
        digest_file(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot read"):
        digest_file(tmp_path)


def test_constant_time_equal() -> None:
    assert constant_time_equal(b"abc", b"abc")
    assert not constant_time_equal(b"abc", b"abd")
    assert not constant_time_equal(b"abc", b"ab")
