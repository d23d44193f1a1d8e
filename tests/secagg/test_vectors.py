"""The derivations against a second implementation by hashlib and AES-CTR, and against stored bytes."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from tests.secagg.network import MODEL, Network, context

from cloister.crypto import SECRET_ACCESS, StreamRandom, apply_masks
from cloister.secagg import Encoding, derivation, messages, model_digest

VECTORS = Path(__file__).parent.parent / "vectors"
STORED = VECTORS / "secagg.json"
RINGS = VECTORS / "rings.json"


def statement(label: str, *parts: bytes | str | int) -> bytes:
    out = b""
    for part in (f"cloister secure sum v1 {label}", *parts):
        data = (
            part
            if isinstance(part, bytes)
            else part.encode()
            if isinstance(part, str)
            else part.to_bytes(8, "big")
        )
        out += len(data).to_bytes(8, "big") + data
    return out


def bind(label: str, *parts: bytes | str | int) -> bytes:
    return hashlib.sha256(statement(label, *parts)).digest()


def hkdf(secret: bytes, info: bytes) -> bytes:
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def keystream(key: bytes, length: int) -> bytes:
    """AES-256-CTR, the first block of the generator's definition."""
    assert length <= 1 << 17
    counter = bytes(12) + b"\x00\x00\x00\x02"
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor().update(bytes(length))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_an_upload_is_what_the_formula_says(bits: int):
    net = Network(context(4, bits=bits, view="none"))
    ctx, digest = net.context, net.hub.setup_digest
    announced = net.hub._setup.announced
    dtype = f"<u{bits // 8}"
    vector = np.arange(1000).astype(dtype)
    me = 2
    own = net.sites["site-2"]._secrets.attempts[1]
    epoch_key = net.sites["site-2"]._secrets.epoch_key
    tag_key = hkdf(epoch_key, statement("model tag key"))
    model = hashlib.sha256(b"cloister secure sum v1 model\0" + MODEL.astype("<f8").tobytes()).digest()
    tag = hmac.digest(tag_key, statement("model tag", 1, model), "sha256")
    keys = [(hkdf(own.seed, statement("self mask", digest, me, 1)), 1)]
    secret = X25519PrivateKey.from_private_bytes(own.key.to_bytes(SECRET_ACCESS))
    for other in (0, 1, 3):
        shared = secret.exchange(X25519PublicKey.from_public_bytes(announced.attempt_key(other, 1)))
        pair = (min(me, other), max(me, other))
        info = statement("pair mask", ctx.plan_digest, ctx.roster.digest, digest, 1, tag, *pair)
        keys.append((hkdf(shared, info), 1 if me < other else -1))
    view = statement("view mask", ctx.plan_digest, ctx.roster.digest, ctx.epoch, 1, me, tag)
    keys.append((hkdf(epoch_key, view), 1))
    expected = vector.astype(object)
    for key, sign in keys:
        expected = expected + sign * np.frombuffer(keystream(key, 1000 * bits // 8), dtype).astype(object)
    upload = messages.decode(net.sites["site-2"].upload(1, vector, MODEL), messages.Upload, ctx, None)
    assert upload.model == tag
    assert np.frombuffer(upload.vector, dtype).tolist() == [int(value) % 2**bits for value in expected]


def test_digests_and_statements_agree_with_the_second_implementation():
    ctx = context(3)
    roster = bind("roster", *(member.fingerprint for member in ctx.roster.members))
    assert ctx.roster.digest == roster
    p = ctx.params
    assert ctx.digest == bind(
        "context", ctx.plan_digest, roster, 1, 2, p.parties, p.colluders, p.threshold, p.minimum, 32, "sum"
    )
    a, b = bytes(range(32)), bytes(range(32, 64))
    assert derivation.seed_commitment(a, 1, 2, b) == bind("seed commitment", a, 1, 2, b)
    assert derivation.epoch_key_commitment(a, b) == bind("epoch key commitment", a, b)
    assert derivation.share_hash(a, 1, 2, 3, b + b"x") == bind("share", a, 1, 2, 3, b + b"x")
    assert derivation.choice_statement(a, 7, (0, 2)) == statement("choice", a, 7, b"\x00\x00\x00\x02")
    assert derivation.sharing_key(b, a, 0, 1) == hkdf(b, statement("sharing key", a, 0, 1))
    assert derivation.sharing_key(b, a, 0, 1) != derivation.sharing_key(b, a, 1, 0)
    assert derivation.associated_data(a, b, 1, 0, 2) == statement("shares", a, b, 1, 0, 2)


def test_parts_cannot_be_shifted_into_each_other():
    assert derivation.bind("x", b"ab", b"c") != derivation.bind("x", b"a", b"bc")
    assert derivation.bind("x", b"ab") != derivation.bind("x", b"ab", b"")
    assert derivation.bind("xa", b"b") != derivation.bind("x", b"ab")


def test_stored_bytes_do_not_change():
    """The wire and the derivations are a format: what this file holds must be reproduced for ever."""
    a, b = bytes(range(32)), bytes(range(32, 64))
    request = messages.Request(a, 3, ["alpha", "beta"], [messages.Signature("alpha", a + b)])
    made = {
        "model_digest": model_digest(np.array([0.0, 1.5, -2.25])),
        "hidden_model_tag": derivation.hidden_model_tag(a, 3, b),
        "pair_key": derivation.pair_key(a, a, b, b, 3, a, 5, 2),
        "self_key": derivation.self_key(a, b, 1, 3),
        "view_key": derivation.view_key(a, a, b, 1, 3, 2, b),
        "sharing_key": derivation.sharing_key(a, b, 0, 1),
        "share_hash": derivation.share_hash(a, 0, 1, 6, b"\x00" + b),
        "choice_statement": derivation.choice_statement(a, 3, (0, 1, 4)),
        "announcement": messages.encode(messages.Announcement(a, "alpha", b, a + b, b + a, b"")),
        "deal_header": messages.encode(messages.DealHeader(a, "alpha", b, a + b)),
        "deal": messages.encode(messages.Deal(b"header", [b"", b"parcel"], a)),
        "bundle": messages.encode(messages.Bundle([b"one", b"two"], [b"", b"parcel"])),
        "upload": messages.encode(messages.Upload(a, 3, "alpha", b, memoryview(b"\x01\x00\x00\x00"))),
        "request": messages.encode(request),
        "endorsement": messages.encode(messages.Endorsement(a, 3, "alpha", a + b)),
        "shares": messages.encode(messages.Shares(a, 3, "alpha", b, b"\x00" + a)),
    }
    assert {name: value.hex() for name, value in made.items()} == json.loads(STORED.read_text())


@pytest.mark.parametrize("name", ["8 bits", "8 bits, pieces", "16 bits", "32 bits, pieces"])
def test_stored_elements_of_the_rings_do_not_change(name: str):
    """Three vectors of multiples of 2**-10, rounded, masked, added and unmasked; every step is stored."""
    stored = json.loads(RINGS.read_text())[name]
    encoding = Encoding(
        stored["bits"], 3, stored["value_range"], [(stop, own) for stop, own in stored["ranges"]]
    )
    total = None
    for number, (vector, encoded, masked) in enumerate(
        zip(stored["vectors"], stored["encoded"], stored["masked"], strict=True)
    ):
        key = bytes([number]) * 32
        made = encoding.encode(np.array(vector) / 1024, random=StreamRandom(key))
        assert encoding.to_bytes(made).hex() == encoded
        hidden = made.copy()
        apply_masks(hidden, [(key, 1)])
        assert encoding.to_bytes(hidden).hex() == masked
        total = made if total is None else total + made
    assert total is not None
    assert (encoding.decode_sum(total, 3) * 2.0**30).tolist() == stored["sum_in_units_of_2_to_minus_30"]
