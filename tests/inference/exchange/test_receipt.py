from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inference.exchange.exchanges import NOON

from cloister.crypto import SigningKey, canonical_bytes, open_envelope, sign_envelope
from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange import Ending, Receipt, open_receipt, salted, sign_receipt
from cloister.inference.exchange.messages import encode
from cloister.inference.exchange.padding import BlockKind, block
from cloister.inference.exchange.receipt import RECEIPT_TYPE

KEY = SigningKey.generate()
PUBLIC = KEY.verify_key.to_bytes()
GOOD: dict[str, Any] = {
    "keys": "01" * 32,
    "policy": "",
    "model": "tiny",
    "model_digest": "02" * 32,
    "request": "03" * 32,
    "answer": "04" * 32,
    "status": 200,
    "at": NOON,
}


class Named:
    """A signer under any name."""

    def __init__(self, key: SigningKey, fingerprint: str) -> None:
        self._key, self.fingerprint = key, fingerprint

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


KEY_ID = hashlib.sha256(PUBLIC).hexdigest()


def test_a_receipt_is_signed_and_comes_back() -> None:
    for policy in ("", "05" * 32):
        receipt = Receipt(**{**GOOD, "policy": policy})
        envelope = sign_receipt(receipt, KEY)
        assert open_receipt(envelope, PUBLIC) == receipt
        payload = open_envelope(envelope, RECEIPT_TYPE, {KEY_ID: KEY.verify_key})
        assert json.loads(payload) == {
            **GOOD,
            "policy": policy,
            "at": "2026-05-04T12:00:00Z",
            "type": "cloister/receipt/v1",
        }


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=128))
def test_what_is_signed_is_canonical(model: str) -> None:
    receipt = Receipt(**{**GOOD, "model": model})
    envelope = sign_receipt(receipt, KEY)
    assert open_envelope(envelope, RECEIPT_TYPE, {KEY_ID: KEY.verify_key}) == canonical_bytes(receipt)


def test_the_longest_receipt_fits_its_block() -> None:
    receipt = Receipt(**{**GOOD, "model": '"' * 128, "policy": "05" * 32})
    ending = encode(Ending(sign_receipt(receipt, KEY), bytes(32), bytes(32)))
    assert len(block(BlockKind.END, ending, 2048)) == 2048


def test_digests_are_salted_and_framed() -> None:
    head, body, salt = b"head", b"body", bytes(range(32))

    def part(data: bytes) -> bytes:
        return len(data).to_bytes(8, "big") + data

    expected = hashlib.sha256(part(salt) + part(head) + part(hashlib.sha256(body).digest())).digest()
    assert salted(salt, head, body) == expected
    assert salted(bytes(32), head, body) != expected
    assert salted(salt, b"hea", b"dbody") != expected


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": ""},
        {"keys": "0g" * 32},
        {"policy": "05"},
        {"model": ""},
        {"model": "a\nb"},
        {"model_digest": "02" * 33},
        {"request": "AB" * 32},
        {"answer": ""},
        {"status": 99},
        {"at": datetime(2026, 5, 4, 12)},
        {"at": NOON.replace(microsecond=5)},
        {"at": NOON.astimezone(timezone(timedelta(hours=8)))},
    ],
)
def test_what_cannot_be_a_receipt_is_refused_though_signed(changed: dict[str, Any]) -> None:
    fields = {**GOOD, **changed}
    with pytest.raises(InputError):
        Receipt(**fields)
    fields["at"] = fields["at"].isoformat()
    payload = canonical_bytes({**fields, "type": "cloister/receipt/v1"})
    with pytest.raises(IntegrityError):
        open_receipt(sign_envelope(RECEIPT_TYPE, payload, [Named(KEY, KEY_ID)]), PUBLIC)


def test_what_is_signed_must_be_a_receipt_in_its_one_form() -> None:
    payload = canonical_bytes(Receipt(**GOOD))
    signer = Named(KEY, KEY_ID)
    assert open_receipt(sign_envelope(RECEIPT_TYPE, payload, [signer]), PUBLIC) == Receipt(**GOOD)
    for bad in (
        payload + b" ",
        json.dumps(json.loads(payload)).encode(),
        canonical_bytes({**json.loads(payload), "more": 1}),
        payload.replace(b"receipt/v1", b"receipt/v2"),
        b"{}",
        b"\xff",
    ):
        with pytest.raises(IntegrityError):
            open_receipt(sign_envelope(RECEIPT_TYPE, bad, [signer]), PUBLIC)
    for kind in ("application/vnd.cloister.manifest+json", RECEIPT_TYPE + "2"):
        with pytest.raises(IntegrityError):
            open_receipt(sign_envelope(kind, payload, [signer]), PUBLIC)


def test_a_receipt_of_another_key_is_none() -> None:
    other = SigningKey.generate()
    payload = canonical_bytes(Receipt(**GOOD))
    for envelope in (
        sign_receipt(Receipt(**GOOD), other),
        sign_envelope(RECEIPT_TYPE, payload, [Named(other, KEY_ID)]),
        sign_envelope(RECEIPT_TYPE, payload, [Named(KEY, "another name")]),
        b"",
        b"{}",
        bytes(5000),
    ):
        with pytest.raises(IntegrityError):
            open_receipt(envelope, PUBLIC)
    with pytest.raises(InputError):
        open_receipt(sign_receipt(Receipt(**GOOD), KEY), b"short")
