from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tests.crypto.vectors import read

from cloister.crypto import (
    Identity,
    VerifyKey,
    countersign,
    dsse,
    envelope_signers,
    keyring,
    open_envelope,
    pre_authentication_encoding,
    sign_envelope,
)
from cloister.errors import InputError, IntegrityError

KIND = "application/vnd.cloister.test+json"


def edited(envelope: bytes, **changes: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(envelope) | changes)


def test_the_specifications_vector() -> None:
    vector = read("dsse")
    payload = vector["payload"].encode()
    assert pre_authentication_encoding(vector["payload_type"], payload) == vector["pae"].encode()
    key = VerifyKey(
        ec.EllipticCurvePublicNumbers(int(vector["x"]), int(vector["y"]), ec.SECP256R1()).public_key()
    )
    raw = base64.b64decode(vector["signature"])
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(der, pre_authentication_encoding(vector["payload_type"], payload))
    envelope = msgspec.json.encode(
        {
            "payload": payload,
            "payloadType": vector["payload_type"],
            "signatures": [{"keyid": "k", "sig": der}],
        }
    )
    assert open_envelope(envelope, vector["payload_type"], {"k": key}) == payload


def test_lengths_are_of_bytes() -> None:
    assert pre_authentication_encoding("é", "ü".encode()) == "DSSEv1 2 é 2 ü".encode()


def test_signed_by_several(alice: Identity, bob: Identity) -> None:
    envelope = sign_envelope(KIND, b"payload", [alice, bob])
    keys = keyring([alice.public, bob.public])
    assert envelope_signers(envelope) == (alice.fingerprint, bob.fingerprint)
    assert open_envelope(envelope, KIND, keys, required=2) == b"payload"
    assert open_envelope(envelope, KIND, keyring([bob.public])) == b"payload"
    with pytest.raises(IntegrityError, match="2 of 3"):
        open_envelope(envelope, KIND, keys, required=3)


def test_countersigning(alice: Identity, bob: Identity) -> None:
    once = sign_envelope(KIND, b"payload", [alice])
    twice = countersign(once, KIND, bob)
    assert open_envelope(twice, KIND, keyring([alice.public, bob.public]), required=2) == b"payload"
    assert countersign(twice, KIND, bob) == twice
    with pytest.raises(IntegrityError, match="another type"):
        countersign(once, "other", bob)


def test_signatures_of_strangers_count_for_nothing(alice: Identity, bob: Identity) -> None:
    envelope = sign_envelope(KIND, b"payload", [alice])
    with pytest.raises(IntegrityError, match="0 of 1"):
        open_envelope(envelope, KIND, keyring([bob.public]))
    with pytest.raises(IntegrityError, match="0 of 1"):
        open_envelope(envelope, KIND, {})


def test_one_key_under_two_names_counts_once(alice: Identity) -> None:
    class Again:
        fingerprint = "again"
        sign = alice.sign

    envelope = sign_envelope(KIND, b"payload", [alice, Again()])
    keys = {alice.fingerprint: alice.public.verify_key, "again": alice.public.verify_key}
    assert open_envelope(envelope, KIND, keys, required=1) == b"payload"
    with pytest.raises(IntegrityError, match="1 of 2"):
        open_envelope(envelope, KIND, keys, required=2)
    repeated = edited(envelope, signatures=msgspec.json.decode(envelope)["signatures"][:1] * 2)
    with pytest.raises(IntegrityError, match="1 of 2"):
        open_envelope(repeated, KIND, keys, required=2)


def test_one_type_is_not_taken_for_another(alice: Identity) -> None:
    envelope = sign_envelope(KIND, b"payload", [alice])
    with pytest.raises(IntegrityError, match="another type"):
        open_envelope(envelope, KIND + "2", keyring([alice.public]))
    with pytest.raises(IntegrityError, match="signature"):
        open_envelope(edited(envelope, payloadType=KIND + "2"), KIND + "2", keyring([alice.public]))


def test_another_payload_or_signature_is_found(alice: Identity, bob: Identity) -> None:
    envelope = sign_envelope(KIND, b"payload", [alice])
    other = sign_envelope(KIND, b"payloae", [alice])
    with pytest.raises(IntegrityError, match="signature"):
        open_envelope(edited(envelope, payload=b"payloae"), KIND, keyring([alice.public]))
    swapped = edited(envelope, signatures=msgspec.json.decode(other)["signatures"])
    with pytest.raises(IntegrityError, match="signature"):
        open_envelope(swapped, KIND, keyring([alice.public]))
    [signature] = msgspec.json.decode(sign_envelope(KIND, b"payload", [bob]))["signatures"]
    claimed = edited(envelope, signatures=[{**signature, "keyid": alice.fingerprint}])
    with pytest.raises(IntegrityError, match="signature"):
        open_envelope(claimed, KIND, keyring([alice.public, bob.public]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"payload":"","payloadType":"t","signatures":[]}',
        b'{"payload":"","payloadType":"","signatures":[{"keyid":"k","sig":"AA=="}]}',
        b'{"payload":"-_==","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}',
        b'{"payload":"","payloadType":"t","signatures":[{"keyid":"k","sig":""}]}',
        b'{"payload":"","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}],"extra":1}',
        b'{"payload":"","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]} trailing',
        b'{"payload":1,"payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    for call in (lambda: open_envelope(data, "t", {}), lambda: envelope_signers(data)):
        with pytest.raises(IntegrityError, match="not a signed envelope"):
            call()


def test_limits(alice: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="signer"):
        sign_envelope(KIND, b"payload", [])
    with pytest.raises(InputError, match="type"):
        sign_envelope("", b"payload", [alice])
    envelope = sign_envelope(KIND, b"payload", [alice])
    with pytest.raises(InputError, match="at least one"):
        open_envelope(envelope, KIND, keyring([alice.public]), required=0)
    monkeypatch.setattr(dsse, "MAX_ENVELOPE", 10)
    with pytest.raises(IntegrityError, match="larger than 10"):
        open_envelope(envelope, KIND, keyring([alice.public]))
