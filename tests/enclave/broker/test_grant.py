from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import msgspec
import pytest
from tests.enclave.broker.world import KEK, MANIFEST, NOW, PLAN, PURPOSE, permission

import cloister.enclave.broker
from cloister.enclave.broker import Grant, Wanted
from cloister.enclave.broker.grant import keys_digest, wanted_report_data
from cloister.enclave.broker.messages import Ask, Hello, decode_request, encode
from cloister.errors import InputError, IntegrityError

WANTED = Wanted(KEK, MANIFEST, PLAN, PURPOSE)
GRANT = Grant(
    broker="01" * 32,
    permission="02" * 16,
    wanted=WANTED,
    worker="03" * 32,
    evidence="04" * 32,
    policy="05" * 32,
    keys="06" * 32,
    expires=datetime(2026, 11, 2, tzinfo=UTC),
    use=1,
    uses=2,
)


def test_the_bytes_of_a_grant_stay_what_they_are() -> None:
    """The associated data of every release: written down, so that versions agree."""
    assert GRANT.to_bytes() == (
        b'{"broker":"%b","evidence":"%b","expires":"2026-11-02T00:00:00Z","keys":"%b","permission":"%b",'
        b'"policy":"%b","use":1,"uses":2,"wanted":{"kek_id":"dataset.heart.1","manifest":"%b","plan":"%b",'
        b'"purpose":"heart study"},"worker":"%b"}'
        % (b"01" * 32, b"04" * 32, b"06" * 32, b"02" * 16, b"05" * 32, b"11" * 32, b"22" * 32, b"03" * 32)
    )
    assert Grant.from_bytes(GRANT.to_bytes()) == GRANT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 5000,
        GRANT.to_bytes() + b" ",
        GRANT.to_bytes().replace(b'"use":1', b'"use":0'),
    ],
    ids=["empty", "object", "bytes", "deep", "trailing", "zeroth"],
)
def test_what_is_no_grant(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Grant.from_bytes(data)


def test_report_data_derived_by_hand() -> None:
    wanted = json.dumps(
        {"kek_id": KEK, "manifest": MANIFEST, "plan": PLAN, "purpose": PURPOSE}, separators=(",", ":")
    )
    stated = {
        "broker": "01" * 32,
        "key": hashlib.sha256(b"key").hexdigest(),
        "nonce": bytes(32).hex(),
        "purpose": "cloister/key-release/v1",
        "wanted": hashlib.sha256(wanted.encode()).hexdigest(),
    }
    expected = hashlib.sha512(json.dumps(stated, separators=(",", ":")).encode()).digest()
    assert wanted_report_data("01" * 32, bytes(32), b"key", WANTED) == expected


def test_lists_of_keys_are_not_confused() -> None:
    assert keys_digest((b"ab", b"c")) != keys_digest((b"a", b"bc"))
    assert keys_digest((b"ab", b"c")) != keys_digest((b"c", b"ab"))


@pytest.mark.parametrize("purpose", ["a\nb", "a\x1bb"])
def test_a_purpose_prints(purpose: str) -> None:
    with pytest.raises(InputError):
        permission(purpose=purpose)


def test_a_moment_has_a_zone() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(
            msgspec.to_builtins(permission(expires=NOW)) | {"expires": "2026-11-02T00:00:00"},
            type(permission()),
        )


def test_the_bytes_of_messages_stay_what_they_are() -> None:
    assert encode(Ask()) == b"\x81\xa2is\xa3ask"
    assert encode(Hello(bytes(32))) == b"\x82\xa2is\xa5hello\xa5nonce\xc4 " + bytes(32)
    assert decode_request(b"\x81\xa2is\xa3ask") == Ask()


def test_the_exported_names_are_there() -> None:
    room = cloister.enclave.broker
    assert [name for name in room.__all__ if not hasattr(room, name)] == []
    assert sorted(room.__all__) == sorted(set(room.__all__))
