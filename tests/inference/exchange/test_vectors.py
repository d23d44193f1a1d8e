"""Stored bytes: of our own wire, so that it does not change unnoticed; and of another protocol of this shape."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.enclave.samples import sample
from tests.inference.exchange import independent
from tests.inference.exchange.exchanges import counted, exchanged, new_ring, taken, told

from cloister.crypto import hkdf
from cloister.inference.exchange import Asking, KeyRing, KeySet, RequestHead, ResponseHead, client

UNPACK = msgspec.msgpack.decode
STORED = Path(__file__).parents[2] / "vectors" / "exchange.json"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STORED.read_bytes())
    return found


def raw(stored: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(stored[name])


def now(stored: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(stored["at"])


def server_of(stored: dict[str, Any]) -> KeyRing:
    return KeyRing(
        stored["model"],
        stored["model_digest"],
        lifetime=stored["lifetime"],
        overlap=stored["overlap"],
        insecure_test_random=counted(b"server"),
    )


def test_the_server_reads_the_stored_request_and_gives_the_stored_answer(stored: dict[str, Any]) -> None:
    ring, at = server_of(stored), now(stored)
    assert ring.current(at).to_bytes() == stored["keys"].encode()
    answering = taken(ring, raw(stored, "request"), at)
    head, body = answering.request()
    assert (msgspec.to_builtins(head), body) == (stored["request_head"], stored["request_body"].encode())
    answer = answering.head(stored["answer_head"]["status"], stored["answer_head"]["headers"], True)
    answer += b"".join(answering.body(piece.encode()) for piece in stored["answer_pieces"])
    answer += answering.end(at)
    assert answer == raw(stored, "answer")


def test_the_client_makes_the_stored_request_and_reads_the_stored_answer(
    stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = raw(stored, "request")
    # encapsulation draws its own randomness, so what it gave is put back
    monkeypatch.setattr(client, "hpke_seal", lambda *_, **__: request[33:1201])
    head = msgspec.convert(stored["request_head"], RequestHead)
    keys = KeySet.from_bytes(stored["keys"].encode())
    asking = Asking(
        keys, head, stored["request_body"].encode(), insecure_test_random=lambda _: raw(stored, "secret")
    )
    assert asking.request == request
    answer_head, body = told(asking.feed(raw(stored, "answer")))
    asking.finish()
    assert answer_head == msgspec.convert(stored["answer_head"], ResponseHead)
    assert body == "".join(stored["answer_pieces"]).encode()
    assert msgspec.to_builtins(asking.receipt) == stored["receipt"]


def test_an_independent_reading_of_the_stored_bytes_agrees(stored: dict[str, Any]) -> None:
    request = raw(stored, "request")
    head, body, secret = independent.request_in(raw(stored, "private_key"), request)
    assert (UNPACK(head), body) == (stored["request_head"], stored["request_body"].encode())
    assert secret == raw(stored, "secret")
    answer_head, answer, ending = independent.answer_in(secret, request, raw(stored, "answer"))
    assert UNPACK(answer_head) == stored["answer_head"]
    assert answer == "".join(stored["answer_pieces"]).encode()
    keys = KeySet.from_bytes(stored["keys"].encode())
    receipt = independent.signed_receipt(ending["receipt"], keys.receipt_key)
    assert receipt == stored["receipt"]
    assert receipt["request"] == independent.digest(ending["request_salt"], head, body)
    assert receipt["answer"] == independent.digest(ending["answer_salt"], answer_head, answer)


def test_an_independent_reading_of_fresh_bytes_agrees() -> None:
    draw = counted(b"fresh")
    private = draw(96)
    ring = new_ring(insecure_test_random=counted(b"fresh"))
    made = exchanged(ring, body=bytes(70_000), pieces=[b"one", b"", bytes(3000)], streamed=True)
    head, body, secret = independent.request_in(private, made.asking.request)
    assert (UNPACK(head)["path"], body) == ("/v1/chat/completions", bytes(70_000))
    answer_head, answer, _ = independent.answer_in(secret, made.asking.request, made.answer)
    assert (UNPACK(answer_head)["status"], answer) == (200, b"one" + bytes(3000))


def test_keys_of_another_protocol_of_this_shape_come_out_of_the_same_function() -> None:
    """EHBP derives its answer key as this one does: HKDF over a secret, salted with enc | nonce."""
    vector = {
        name: bytes.fromhex(value) for name, value in json.loads(sample("transport/ehbp-derive.json")).items()
    }
    salt = vector["requestEnc"] + vector["responseNonce"]
    assert hkdf(vector["exportedSecret"], salt=salt, info=b"key") == vector["derivedKey"]
    assert hkdf(vector["exportedSecret"], salt=salt, info=b"nonce", length=12) == vector["derivedNonceBase"]


def test_an_answer_of_that_protocol_opens_with_them() -> None:
    vector = {
        name: bytes.fromhex(value)
        for name, value in json.loads(sample("transport/ehbp-response-decryption.json")).items()
    }
    salt = vector["requestEnc"] + vector["responseNonce"]
    key = hkdf(vector["exportedSecret"], salt=salt, info=b"key")
    base = hkdf(vector["exportedSecret"], salt=salt, info=b"nonce", length=12)
    frame = vector["encryptedResponse"]
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    # the nonce of its first record is the base with 0 added in: the base
    assert AESGCM(key).decrypt(base, frame[4:], b"") == vector["plaintext"]
