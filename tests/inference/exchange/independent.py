"""The wire of an exchange, written a second time from its description alone, with `cryptography` and nothing of ours.

It opens; it makes nothing. Its only use is to disagree.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

LABEL = b"cloister/exchange/v1"


def derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(secret)


def opened_secret(private: bytes, request: bytes) -> bytes:
    """Return the secret in a request, with a private key of 96 bytes: ML-KEM seed | X25519."""
    key = MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    )
    info = LABEL + request[1:33]
    context = b"cloister hpke v1" + hashlib.sha256(info).digest() + hashlib.sha256(b"request").digest()
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).decrypt(
        request[33:1201], key, context
    )


def opened_frames(key: bytes, direction: bytes, stream: bytes) -> list[tuple[bool, bytes]]:
    """Return (final, plaintext) of every frame."""
    found, at, number = [], 0, 0
    while at < len(stream):
        (word,) = struct.unpack_from(">I", stream, at)
        final, length = word >> 31, word & 0x7FFFFFFF
        associated = LABEL + b"/frame" + direction + struct.pack(">QB", number, final)
        nonce = bytes(4) + struct.pack(">Q", number)
        found.append((bool(final), AESGCM(key).decrypt(nonce, stream[at + 4 : at + 4 + length], associated)))
        at, number = at + 4 + length, number + 1
    return found


def content(plaintext: bytes) -> tuple[int, bytes]:
    """Return kind and content of a block."""
    kind, length = struct.unpack_from(">BI", plaintext)
    assert not plaintext[5 + length :].strip(b"\0")
    return kind, plaintext[5 : 5 + length]


def request_in(private: bytes, request: bytes) -> tuple[bytes, bytes, bytes]:
    """Return head (bytes), body and secret of a request."""
    assert request[0] == 1
    secret = opened_secret(private, request)
    key = derived(secret, request[33 : 33 + 1120], LABEL + b"/request")
    frames = opened_frames(key, b"q", request[1201:])
    assert [final for final, _ in frames] == [False] * (len(frames) - 1) + [True]
    (kind, head), *rest = (content(plaintext) for _, plaintext in frames)
    assert kind == 1
    assert {each for each, _ in rest} <= {2}
    return head, b"".join(part for _, part in rest), secret


def answer_in(secret: bytes, request: bytes, answer: bytes) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return head (bytes), body and ending of an answer."""
    assert answer[0] == 1
    key = derived(secret, request[33 : 33 + 1120] + answer[1:33], LABEL + b"/response")
    frames = opened_frames(key, b"a", answer[33:])
    assert [final for final, _ in frames] == [False] * (len(frames) - 1) + [True]
    (first, head), *rest, (last, ending) = (content(plaintext) for _, plaintext in frames)
    assert (first, last) == (1, 3)
    assert {each for each, _ in rest} <= {2}
    return head, b"".join(part for _, part in rest), msgspec.msgpack.decode(ending)


def signed_receipt(envelope: bytes, receipt_key: bytes) -> dict[str, Any]:
    """Return the receipt in an envelope, its signature verified."""
    document = json.loads(envelope)
    payload, kind = base64.b64decode(document["payload"]), document["payloadType"].encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (signature,) = document["signatures"]
    Ed25519PublicKey.from_public_bytes(receipt_key).verify(base64.b64decode(signature["sig"]), message)
    receipt: dict[str, Any] = json.loads(payload)
    return receipt


def digest(salt: bytes, head: bytes, body: bytes) -> str:
    """Return the salted digest of a message, hex."""
    parts = (salt, head, hashlib.sha256(body).digest())
    return hashlib.sha256(b"".join(struct.pack(">Q", len(part)) + part for part in parts)).hexdigest()
