from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from tests.crypto.vectors import read

from cloister.crypto import aead
from cloister.crypto.aead import Numbered, Opener, Sealer, decrypt, encrypt
from cloister.errors import InputError, IntegrityError

KEY = bytes(range(32))


def test_published_vector_opens() -> None:
    for vector in read("aes_gcm")["vectors"]:
        field = {name: bytes.fromhex(value) for name, value in vector.items() if isinstance(value, str)}
        sealed = field["nonce"] + field["ciphertext"] + field["tag"]
        assert decrypt(field["key"], sealed, field["associated_data"]) == field["plaintext"]


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=40))
def test_round_trip(plaintext: bytes, context: bytes) -> None:
    sealed = encrypt(KEY, plaintext, context)
    assert len(sealed) == len(plaintext) + aead.NONCE_BYTES + aead.TAG_BYTES
    assert decrypt(KEY, sealed, context) == plaintext


def test_every_flipped_bit_is_found() -> None:
    sealed = encrypt(KEY, b"forty-two", b"context")
    for position in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError):
            decrypt(KEY, changed, b"context")


@pytest.mark.parametrize("length", range(28))
def test_every_truncation_is_found(length: int) -> None:
    with pytest.raises(IntegrityError):
        decrypt(KEY, encrypt(KEY, b"", b"c")[:length], b"c")


def test_other_key_or_context_does_not_open() -> None:
    sealed = encrypt(KEY, b"x", b"one")
    with pytest.raises(IntegrityError):
        decrypt(KEY, sealed, b"two")
    with pytest.raises(IntegrityError):
        decrypt(os.urandom(32), sealed, b"one")


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_only_256_bit_keys(key: bytes) -> None:
    for call in (
        lambda: encrypt(key, b"", b"c"),
        lambda: decrypt(key, bytes(28), b"c"),
        lambda: Sealer(key, 1),
    ):
        with pytest.raises(InputError, match="32 bytes"):
            call()


def test_empty_context_is_refused() -> None:
    with pytest.raises(InputError, match="associated data"):
        encrypt(KEY, b"x", b"")
    with pytest.raises(InputError, match="associated data"):
        decrypt(KEY, bytes(28), b"")
    with pytest.raises(InputError, match="associated data"):
        Sealer(KEY, 10).seal(b"x", b"")


def test_nonces_are_random() -> None:
    assert len({encrypt(KEY, b"x", b"c")[:12] for _ in range(1000)}) == 1000


def test_a_message_beyond_the_librarys_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aead, "_MAX_MESSAGE", 10)
    encrypt(KEY, bytes(10), b"c")
    with pytest.raises(InputError, match="longer"):
        encrypt(KEY, bytes(11), b"c")
    with pytest.raises(IntegrityError):
        decrypt(KEY, bytes(39), b"c")


def test_stream_round_trip_and_its_definition() -> None:
    sealer, opener = Sealer(KEY, 64), Opener(KEY, 64)
    for number, message in enumerate([b"", b"one", bytes(64), b"three"]):
        sealed = bytes(sealer.seal(message, b"frame"))
        assert sealed == AESGCM(KEY).encrypt(number.to_bytes(12, "big"), message, b"frame")
        assert bytes(opener.open(sealed, b"frame")) == message


def test_stream_refuses_what_is_not_next() -> None:
    sealer = Sealer(KEY, 64)
    first, second, third = (bytes(sealer.seal(message, b"f")) for message in (b"first", b"second", b"third"))
    opener = Opener(KEY, 64)
    for wrong in (second, third, first[:-1], first[:3], b"", bytes(len(first))):
        with pytest.raises(IntegrityError):
            opener.open(wrong, b"f")
    with pytest.raises(IntegrityError):
        opener.open(first, b"final")
    assert bytes(opener.open(first, b"f")) == b"first"
    with pytest.raises(IntegrityError):
        opener.open(first, b"f")
    with pytest.raises(IntegrityError):
        opener.open(third, b"f")
    assert bytes(opener.open(second, b"f")) == b"second"


def test_stream_releases_nothing_of_a_message_that_failed() -> None:
    sealed = bytearray(Sealer(KEY, 64).seal(b"do not release", b"f"))
    sealed[-1] ^= 1
    opener = Opener(KEY, 64)
    with pytest.raises(IntegrityError):
        opener.open(sealed, b"f")
    assert bytes(opener._buffer) == bytes(len(opener._buffer))


def test_stream_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="capacity"):
        Sealer(KEY, 0)
    sealer = Sealer(KEY, 4)
    with pytest.raises(InputError, match="4 bytes"):
        sealer.seal(b"12345", b"f")
    monkeypatch.setattr(aead, "_MAX_MESSAGES", 2)
    sealer.seal(b"1", b"f")
    sealer.seal(b"2", b"f")
    with pytest.raises(InputError, match="used up"):
        sealer.seal(b"3", b"f")


def test_views_of_numbers_are_sealed_as_bytes() -> None:
    numbers = memoryview(bytes(range(16))).cast("I")
    assert bytes(Opener(KEY, 16).open(Sealer(KEY, 16).seal(numbers, b"f"), b"f")) == bytes(range(16))
    with pytest.raises(InputError, match="15 bytes"):
        Sealer(KEY, 15).seal(numbers, b"f")
    sealed = encrypt(KEY, numbers, b"c")
    assert decrypt(KEY, sealed, b"c") == bytes(range(16))
    assert decrypt(KEY, memoryview(sealed).cast("I"), b"c") == bytes(range(16))
    sealed = bytes(Sealer(KEY, 16).seal(numbers, b"c"))
    assert Opener(KEY, 16).open(memoryview(sealed).cast("I"), b"c") == bytes(range(16))


def test_a_refused_message_takes_no_number() -> None:
    sealer, opener = Sealer(KEY, 4), Opener(KEY, 4)
    for message, context in ((b"12345", b"f"), (b"1", b"")):
        with pytest.raises(InputError):
            sealer.seal(message, context)
    assert bytes(opener.open(sealer.seal(b"1", b"f"), b"f")) == b"1"


def test_threads_never_share_a_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[bytes] = []

    class Recorder:
        def encrypt_into(self, nonce: bytes, *rest: object) -> None:
            nonces.append(nonce)

    sealer = Sealer(KEY, 4)
    monkeypatch.setattr(sealer, "_cipher", Recorder())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sealer.seal(b"1", b"f"), range(5000)))
    assert len(set(nonces)) == 5000


def test_the_returned_view_is_read_only() -> None:
    view = Sealer(KEY, 4).seal(b"1234", b"f")
    with pytest.raises(TypeError):
        view[0] = 0


@given(st.integers(0, 2**32 - 1), st.binary(max_size=100), st.binary(min_size=1, max_size=20))
def test_numbered_round_trip_and_its_definition(number: int, message: bytes, context: bytes) -> None:
    sealed = Numbered(KEY).seal(number, message, context)
    assert sealed == AESGCM(KEY).encrypt(number.to_bytes(12, "big"), message, context)
    assert sealed == Numbered(KEY).seal(number, message, context)
    assert Numbered(KEY).open(number, sealed, context) == message
    out = bytearray(len(message))
    Numbered(KEY).open_into(number, sealed, context, memoryview(out))
    assert out == message


def test_numbered_opens_nothing_else_and_releases_nothing_of_it() -> None:
    cipher = Numbered(KEY)
    sealed = cipher.seal(7, b"do not release", b"f")
    altered = bytes([sealed[0] ^ 1]) + sealed[1:]
    for number, wrong, context in (
        (8, sealed, b"f"),
        (7, altered, b"f"),
        (7, sealed[1:], b"f"),
        (7, b"", b"f"),
        (7, sealed, b"g"),
    ):
        with pytest.raises(IntegrityError):
            cipher.open(number, wrong, context)
    out = bytearray(b"x" * 14)
    with pytest.raises(IntegrityError):
        cipher.open_into(7, altered, b"f", memoryview(out))
    assert out == bytes(14)


def test_numbered_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    cipher = Numbered(KEY)
    with pytest.raises(InputError, match="32 bytes"):
        Numbered(bytes(16))
    with pytest.raises(InputError, match="used up"):
        cipher.seal(2**32, b"", b"f")
    for call in (
        lambda: cipher.seal(1, b"x", b""),
        lambda: cipher.open(1, bytes(17), b""),
        lambda: cipher.open_into(1, bytes(17), b"", memoryview(bytearray(1))),
    ):
        with pytest.raises(InputError, match="associated data"):
            call()
    with pytest.raises(InputError, match="for this buffer"):
        cipher.open_into(1, bytes(17), b"f", memoryview(bytearray(2)))
    monkeypatch.setattr(aead, "_MAX_MESSAGE", 10)
    with pytest.raises(InputError, match="longer"):
        cipher.seal(1, bytes(11), b"f")
    numbers = memoryview(bytes(range(8))).cast("I")
    assert cipher.open(2, cipher.seal(2, numbers, b"f"), b"f") == bytes(range(8))
