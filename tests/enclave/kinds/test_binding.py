from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enclave.kinds.intelparts import p256, point, raw
from tests.enclave.kinds.nvidiaparts import signed
from tests.enclave.pki import p384

from cloister.enclave.kinds.binding import Cursor, carries, commits_to, ecdsa
from cloister.errors import InputError

EXPECTED = bytes(range(64))


def test_a_field_carries_what_was_asked_for_or_its_beginning() -> None:
    assert carries(EXPECTED, EXPECTED) is True
    assert carries(EXPECTED[:48], EXPECTED) is True
    assert carries(EXPECTED[:32], EXPECTED) is True
    assert carries(EXPECTED[:31], EXPECTED) is False  # too short to be a beginning
    assert carries(EXPECTED[:2], EXPECTED[:2]) is True  # a vendor's own short nonce, asked for as it is
    assert carries(EXPECTED[:2], EXPECTED[:3]) is False
    assert carries(EXPECTED, EXPECTED[:32]) is False
    assert carries(EXPECTED[:32] + bytes(32), EXPECTED[:32]) is False


def test_what_nobody_asked_for_is_unknown_and_what_is_empty_is_not_fresh() -> None:
    assert carries(EXPECTED, None) is None
    assert carries(b"", b"") is False
    assert carries(b"", EXPECTED) is False
    assert carries(EXPECTED, b"") is False


def test_report_data_commits_to_runtime_data_by_either_digest() -> None:
    assert commits_to(hashlib.sha512(b"k").digest(), b"k")
    assert commits_to(hashlib.sha256(b"k").digest() + bytes(32), b"k")
    assert not commits_to(hashlib.sha256(b"k").digest() + b"\1" + bytes(31), b"k")
    assert not commits_to(hashlib.sha512(b"k").digest(), b"other")
    assert not commits_to(bytes(64), b"")


def test_raw_signatures_hold_under_their_own_curve_only() -> None:
    small, large = p256(), p384()
    assert ecdsa(small.public_key(), raw(small, b"m"), b"m", size=32)
    assert ecdsa(point(small), raw(small, b"m"), b"m", size=32)
    assert ecdsa(large.public_key(), signed(large, b"m"), b"m", size=48)
    assert not ecdsa(small.public_key(), raw(small, b"m"), b"n", size=32)
    assert not ecdsa(large.public_key(), signed(large, b"m"), b"m", size=32)
    assert not ecdsa(small.public_key(), raw(small, b"m") + b"\0", b"m", size=32)
    assert not ecdsa(ec.generate_private_key(ec.SECP256K1()).public_key(), raw(small, b"m"), b"m", size=32)
    for nonsense in (bytes(64), b"\xff" * 64, b"", bytes(32) + raw(small, b"m")[32:]):
        assert not ecdsa(small.public_key(), nonsense, b"m", size=32)
    for nowhere in (bytes(64), b"\xff" * 64, b"", point(small)[:63]):
        assert not ecdsa(nowhere, raw(small, b"m"), b"m", size=32)


def test_a_cursor_reads_all_of_what_is_there_and_nothing_else() -> None:
    cursor = Cursor(b"\x01\x02abc", "it")
    assert (cursor.little(2), cursor.take(1)) == (0x0201, b"a")
    with pytest.raises(InputError, match="it has 2 bytes too many"):
        cursor.end()
    with pytest.raises(InputError, match="3 bytes are due at offset 3"):
        cursor.take(3)
    assert cursor.rest() == b"bc"
    cursor.end()
