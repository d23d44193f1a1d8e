from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from tests.inference.exchange.exchanges import NOON, new_ring

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import InputError
from cloister.inference.exchange import PURPOSE, KeySet, Published, keys_report_data

GOOD: dict[str, Any] = {
    "encryption_key": bytes(1216),
    "receipt_key": bytes(32),
    "not_before": NOON,
    "not_after": NOON + timedelta(days=1),
    "model": "Qwen/Qwen3-0.6B",
    "model_digest": "ab" * 32,
    "accelerators": 2,
}


def test_a_key_set_comes_back_and_has_one_form() -> None:
    keys = new_ring().current(NOON)
    data = keys.to_bytes()
    again = KeySet.from_bytes(data)
    assert again == keys
    assert again.to_bytes() == data == canonical_bytes(json.loads(data))
    assert keys.digest == sha256(data) == again.digest
    assert json.loads(data)["type"] == "cloister/keys/v1"
    assert json.loads(data)["not_before"] == "2026-05-04T12:00:00Z"


@pytest.mark.parametrize(
    "changed",
    [
        {"encryption_key": bytes(1215)},
        {"receipt_key": bytes(33)},
        {"not_before": datetime(2026, 5, 4, 12)},
        {"not_before": NOON.replace(microsecond=1)},
        {"not_after": NOON},
        {"not_after": (NOON + timedelta(days=1)).astimezone(timezone(timedelta(hours=1)))},
        {"model": ""},
        {"model": "a" * 129},
        {"model": "\x1b[31mred"},
        {"model": "\u6a21\u578b"},
        {"model_digest": "AB" * 32},
        {"model_digest": "ab" * 31},
        {"accelerators": -1},
        {"accelerators": 65},
    ],
)
def test_what_cannot_be_a_key_set_is_refused(changed: dict[str, Any]) -> None:
    KeySet(**GOOD)
    with pytest.raises(InputError):
        KeySet(**{**GOOD, **changed})


def test_other_bytes_of_the_same_key_set_are_refused() -> None:
    data = new_ring().current(NOON).to_bytes()
    document = json.loads(data)
    without_type = {key: value for key, value in document.items() if key != "type"}
    for bad in (
        b"",
        b"{}",
        data + b"\n",
        b" " + data,
        json.dumps(document).encode(),
        data.replace(b"12:00:00Z", b"12:00:00+00:00"),
        canonical_bytes({**document, "more": 1}),
        canonical_bytes({**document, "type": "cloister/keys/v2"}),
        canonical_bytes(without_type),
        data[:-1] + b',"accelerators":0}',
        data + bytes(4096),
        b"[" * 4000,
        b"\xff",
    ):
        with pytest.raises(InputError):
            KeySet.from_bytes(bad)


def test_what_a_stranger_wrote_does_not_reach_a_message() -> None:
    data = canonical_bytes({"type": "cloister/keys/v1", "\x1b[31mfield": 1})
    with pytest.raises(InputError) as caught:
        KeySet.from_bytes(data)
    assert "field" not in str(caught.value)


def test_report_data_is_over_purpose_nonce_and_digest() -> None:
    keys, nonce = new_ring().current(NOON), bytes(range(32))
    stated = {"key": keys.digest.hex(), "nonce": nonce.hex(), "purpose": "cloister/inference/v1"}
    document = json.dumps(stated, separators=(",", ":"), sort_keys=True).encode()
    assert PURPOSE == "cloister/inference/v1"
    assert keys_report_data(nonce, keys) == hashlib.sha512(document).digest()
    assert keys_report_data(nonce, new_ring().current(NOON)) != keys_report_data(nonce, keys)
    for bad in (b"", bytes(16), bytes(33)):
        with pytest.raises(InputError):
            keys_report_data(bad, keys)


def test_what_is_published_comes_back() -> None:
    published = Published(new_ring().current(NOON).to_bytes(), b'{"type": "evidence"}')
    assert Published.from_json(published.to_json()) == published
    assert 'evidence"' not in repr(published)
    largest = Published(bytes(4096), bytes(8 << 20))
    assert Published.from_json(largest.to_json()) == largest


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"<html>",
        b"{}",
        b'{"keys":"","evidence":"","more":1}',
        b'{"keys":"*","evidence":""}',
        b'{"keys":1,"evidence":""}',
        msgspec.json.encode({"keys": bytes(4097), "evidence": b""}),
        msgspec.json.encode({"keys": b"", "evidence": bytes((8 << 20) + 1)}),
        bytes(12 << 20),
    ],
)
def test_what_a_service_does_not_publish_is_refused(bad: bytes) -> None:
    with pytest.raises(InputError):
        Published.from_json(bad)


def test_a_key_set_is_named_by_its_digest() -> None:
    keys = KeySet(**GOOD)
    assert repr(keys) == f"<KeySet {keys.digest.hex()[:16]} of Qwen/Qwen3-0.6B>"
    assert keys.not_before.tzinfo is UTC
