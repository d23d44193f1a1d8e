"""Nitro: the genuine document verifies at its time; altered and forged ones do not, and say why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.pki import AT, Party, constraints, root, usage
from tests.enclave.samples import sample

from cloister.enclave import Claims, Evidence
from cloister.enclave.cbor import Value, encode
from cloister.enclave.evidence import report_data
from cloister.enclave.kinds import nitro
from cloister.enclave.policy import EnclavePolicy
from cloister.enclave.x509 import fingerprint
from cloister.errors import InputError

WHEN = datetime(2025, 12, 25, 13, 15, 37, tzinfo=UTC)
ASKED = bytes(64)


def document() -> bytes:
    """The genuine document; a tool put its length before it, in SCALE, and its own data after it."""
    data = sample("nitro/dstack_nitro_attestation.bin")
    length = int.from_bytes(data[2:4], "little") >> 2
    return data[4 : 4 + length]


def check(
    data: bytes, *, at: datetime = WHEN, expected: bytes | None = ASKED, runtime_data: bytes | None = None
) -> Claims:
    return nitro.verify(Evidence("nitro", data, runtime_data=runtime_data), at=at, expected=expected)


def holds(claims: Claims) -> bool:
    return (claims.signature, claims.chain) == (True, True) and False not in (
        claims.freshness,
        claims.bindings,
    )


def test_the_genuine_document() -> None:
    claims = check(document())
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, True, True)
    assert (claims.freshness, claims.debug, claims.self_reported) == (True, False, False)
    assert claims.bindings is None
    assert sorted(claims.measurements) == sorted(f"pcr{index}" for index in range(16))
    assert claims.measurements["pcr0"].startswith("5cb702954321826d")
    assert claims.platform == claims.measurements["pcr4"]
    assert claims.signers == {}
    assert claims.properties["module_id"] == "i-0827e799ec9232d44-enc019b55a68bd2ed4b"
    assert claims.issued_at == "2025-12-25T13:15:37.578+00:00"
    for claim in ("revocation_checked", "collateral_fresh", "tcb_status", "advisories", "bindings"):
        assert getattr(claims, claim) is None
        assert claims.reasons[claim]
    assert EnclavePolicy().check(claims, WHEN) == []
    assert set(claims.reasons).isdisjoint({"chain", "signature", "freshness", "debug", "hardware_rooted"})


def test_the_tag_of_cose_sign1_may_be_there() -> None:
    assert check(b"\xd2" + document()) == check(document())
    with pytest.raises(InputError, match="another tag"):
        check(b"\xd1" + document())


@pytest.mark.parametrize(
    ("moved", "word"), [(timedelta(hours=-1), "valid only from"), (timedelta(hours=4), "expired")]
)
def test_certificates_of_another_time(moved: timedelta, word: str) -> None:
    claims = check(document(), at=WHEN + moved)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, False, False)
    assert word in claims.reasons["chain"]
    assert claims.reasons["hardware_rooted"] == claims.reasons["chain"]


def test_freshness() -> None:
    for expected in (b"\1" + bytes(63), bytes(63), bytes(65), bytes(32), b""):
        claims = check(document(), expected=expected)
        assert claims.freshness is False
        assert "other user data" in claims.reasons["freshness"]
    assert check(document(), expected=None).freshness is None


def test_other_and_cut_evidence() -> None:
    data = document()
    others = [
        sample("nitro/dstack_nitro_attestation.bin"),
        sample("snp/coco_test-report.bin"),
        sample("sgx/phala_sgx_quote"),
        sample("nitro/AWS_NitroEnclaves_Root-G1.pem"),
        data + b"\0",
        data * 20,
    ]
    for bad in [*others, *(data[:length] for length in range(0, len(data), 7))]:
        with pytest.raises(InputError):
            check(bad)
    with pytest.raises(InputError, match="no endorsement 'root'"):
        nitro.verify(Evidence("nitro", data, {"root": b"x"}), at=WHEN, expected=None)
    with pytest.raises(InputError, match="event log"):
        nitro.verify(Evidence("nitro", data, event_log=b"x"), at=WHEN, expected=None)


def _flip(positions: range) -> None:
    data = document()
    assert nitro.UNAUTHENTICATED == ()
    for position, changed in flips(data, positions):
        try:
            claims = check(changed)
        except InputError:
            continue
        assert not holds(claims), position


def test_no_flipped_byte_is_accepted() -> None:
    size = len(document())
    _flip(range(40))
    _flip(range(40, size, 11))
    _flip(range(size - 120, size))


@pytest.mark.slow
def test_no_flipped_byte_is_accepted_at_any_position() -> None:
    _flip(range(len(document())))


def test_mutations_raise_nothing_but_input_errors() -> None:
    _fuzz(300)


@pytest.mark.slow
def test_fuzz() -> None:
    _fuzz(fuzz_seconds())


def _fuzz(much: float | int) -> None:
    data = document()
    for changed in mutations(data, much, seed=4):
        try:
            claims = check(changed)
        except InputError:
            continue
        assert changed == data or not holds(claims)


# Documents that no genuine sample shows are signed by a cloud of our own


class Cloud:
    def __init__(self) -> None:
        self.root = root("aws")
        self.zone = self.root.issue("zone", constraints(True), usage(True))
        self.leaf = self.zone.issue("enclave", constraints(False), usage(False))
        self.pins = {fingerprint(self.root.certificate): "aws"}

    def fields(self, **changed: Value) -> dict[int | str, Value]:
        pcrs: dict[int | str, Value] = {index: bytes([index + 1]) * 48 for index in range(16)}
        stated: dict[int | str, Value] = {
            "module_id": "i-1-enc2",
            "digest": "SHA384",
            "timestamp": 1_748_736_000_123,
            "pcrs": pcrs,
            "certificate": self.leaf.der,
            "cabundle": [self.root.der, self.zone.der],
            "public_key": None,
            "user_data": ASKED,
            "nonce": None,
        }
        return {**stated, **changed}

    def sign(
        self, payload: bytes, protected: bytes = b"\xa1\x01\x38\x22", by: Party | None = None
    ) -> list[Value]:
        key = (by or self.leaf).key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        covered = encode(["Signature1", protected, b"", payload])
        r, s = decode_dss_signature(key.sign(covered, ec.ECDSA(hashes.SHA384())))
        size = 48 if key.key_size == 384 else 66
        return [protected, {}, payload, r.to_bytes(size, "big") + s.to_bytes(size, "big")]

    def document(self, **changed: Value) -> bytes:
        return encode(self.sign(encode(self.fields(**changed))))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    made = Cloud()
    monkeypatch.setattr(nitro, "AWS_NITRO", made.pins)
    return made


Make = Callable[..., bytes]


def test_a_document_of_our_own_cloud(cloud: Cloud) -> None:
    claims = check(cloud.document(), at=AT)
    assert holds(claims)
    assert claims.signers == {"signing_certificate": "09" * 48}
    assert claims.issued_at == "2025-06-01T00:00:00.123+00:00"
    key = cloud.document(public_key=b"key", nonce=b"\5" * 40, user_data=None)
    asked = check(key, at=AT, expected=b"\5" * 40)
    assert asked.freshness is True
    assert asked.properties["public_key_sha256"] == hashlib.sha256(b"key").hexdigest()
    assert check(key, at=AT).freshness is False
    assert check(cloud.document(user_data=None), at=AT).freshness is False


def test_report_data_in_the_nonce_is_not_fresh(cloud: Cloud) -> None:
    # many enclaves sign whatever nonce a stranger hands them: that does not make a key in report data theirs
    asked = report_data("cloister/key-release/v1", b"\1" * 32, b"\2" * 32)
    assert check(cloud.document(nonce=asked, user_data=None), at=AT, expected=asked).freshness is False
    assert check(cloud.document(nonce=asked, user_data=bytes(64)), at=AT, expected=asked).freshness is False
    assert check(cloud.document(nonce=None, user_data=asked), at=AT, expected=asked).freshness is True


def test_debug_mode_is_a_claim(cloud: Cloud) -> None:
    zeros: Value = {index: bytes(48) for index in range(16)}
    claims = check(cloud.document(pcrs=zeros), at=AT)
    assert holds(claims)
    assert claims.debug is True
    unknown = check(cloud.document(pcrs={1: b"\1" * 48}), at=AT)
    assert unknown.debug is None
    assert unknown.reasons["debug"]


def test_runtime_data_is_bound(cloud: Cloud) -> None:
    data = cloud.document(user_data=hashlib.sha512(b"key").digest())
    assert check(data, at=AT, expected=None, runtime_data=b"key").bindings is True
    assert check(data, at=AT, expected=None, runtime_data=b"yek").bindings is False
    assert check(cloud.document(user_data=None), at=AT, runtime_data=b"key").bindings is False


def test_chains_of_strangers_and_in_another_order(cloud: Cloud) -> None:
    turned = check(cloud.document(cabundle=[cloud.zone.der, cloud.root.der]), at=AT)
    assert turned.chain is False
    assert "out of order" in turned.reasons["chain"]
    short = check(cloud.document(cabundle=[cloud.zone.der]), at=AT)
    assert "not a pinned root" in short.reasons["chain"]
    stranger = Cloud()
    claims = check(stranger.document(), at=AT)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, False, False)
    assert "not a pinned root" in claims.reasons["hardware_rooted"]


def test_only_the_key_of_the_certificate_signs(cloud: Cloud) -> None:
    data = encode(cloud.sign(encode(cloud.fields()), by=cloud.zone))
    claims = check(data, at=AT)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (False, True, False)
    assert "did not sign" in claims.reasons["signature"]
    small = cloud.zone.issue("enclave", constraints(False), key=ec.generate_private_key(ec.SECP256R1()))
    claims = check(cloud.document(certificate=small.der), at=AT)
    assert claims.reasons["signature"] == "the signing key is not on P-384"


def test_a_payload_under_another_signature(cloud: Cloud) -> None:
    frame = cloud.sign(encode(cloud.fields()))
    frame[2] = encode(cloud.fields(user_data=b"\1" * 64))
    assert check(encode(frame), at=AT).signature is False


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": "SHA256"},
        {"digest": None},
        {"module_id": ""},
        {"module_id": b"i-1"},
        {"module_id": "a\nb"},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": True},
        {"timestamp": 1 << 63},
        {"pcrs": {}},
        {"pcrs": []},
        {"pcrs": {32: bytes(48)}},
        {"pcrs": {0: bytes(32)}},
        {"pcrs": {"0": bytes(48)}},
        {"pcrs": {-1: bytes(48)}},
        {"certificate": b""},
        {"certificate": b"none"},
        {"cabundle": []},
        {"cabundle": [b""]},
        {"cabundle": ["x"]},
        {"user_data": bytes(1025)},
        {"nonce": "text"},
        {"extra": 1},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_fields_out_of_their_bounds_are_refused_even_signed(cloud: Cloud, changed: dict[str, Value]) -> None:
    with pytest.raises(InputError):
        check(cloud.document(**changed), at=AT)


def test_frames_that_are_no_cose_sign1_under_es384(cloud: Cloud) -> None:
    payload = encode(cloud.fields())
    good = cloud.sign(payload)
    frames: list[Value] = [
        cloud.sign(payload, protected=b"\xa1\x01\x26"),  # ES256
        cloud.sign(payload, protected=b"\xa0"),
        cloud.sign(payload, protected=b""),
        cloud.sign(payload, protected=b"\xa2\x01\x38\x22\x04\x41\x00"),  # a key identifier beside it
        [good[0], {4: b"kid"}, *good[2:]],  # unprotected: no signature covers it
        [good[0], {}, good[2]],
        [*good, b""],
        [good[0], {}, None, good[3]],  # a detached payload
        [good[0], {}, good[2], b"\0" * 64],
        {"payload": payload},
        payload,
    ]
    for frame in frames:
        with pytest.raises(InputError):
            check(encode(frame), at=AT)
    del good
    missing = cloud.fields()
    del missing["digest"]
    with pytest.raises(InputError, match="lacks fields"):
        check(encode(cloud.sign(encode(missing))), at=AT)
