"""Tokens: signed by the verifier, honest about what was not checked, and not for ever."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from tests.enclave.test_policy import AT, GOOD, but, gpu

from cloister.crypto import Identity, keyring, open_envelope
from cloister.enclave.appraise import Appraisal
from cloister.enclave.claims import Claims
from cloister.enclave.token import TOKEN_TYPE, issue_token, open_token
from cloister.errors import IntegrityError

VERIFIER = Identity.generate("verifier")
KEYS = keyring([VERIFIER.public])


def appraisal(claims: Claims = GOOD, *reasons: str) -> Appraisal:
    return Appraisal(claims, reasons, "00" * 32, b"\1" * 32, AT, b"\2" * 64)


def test_a_token_says_what_was_found() -> None:
    claims = but(devices=(gpu(1, driver_version="550"),))
    token = open_token(issue_token(appraisal(claims), VERIFIER), KEYS, at=AT, max_age_seconds=60)
    assert token.accepted
    assert token.protection == "hardware"
    assert set(token.submods) == {"machine", "device-0"}
    assert token.submods["machine"].claims == GOOD
    assert token.submods["machine"].status == "affirming"
    assert token.eat_nonce == "02" * 64


def test_what_was_not_checked_is_null_in_the_signed_text() -> None:
    payload = open_envelope(issue_token(appraisal(), VERIFIER), TOKEN_TYPE, KEYS)
    found = json.loads(payload)["submods"]["machine"]["cloister.claims"]
    assert found["revocation_checked"] is None
    assert found["measurement_match"] is None
    assert set(found) == set(Claims.__struct_fields__)


@pytest.mark.parametrize(
    ("changes", "status", "protection"),
    [
        ({"hardware_rooted": False}, "contraindicated", "not hardware-protected"),
        ({"hardware_rooted": None}, "affirming", "not hardware-protected"),
        ({"signature": False}, "contraindicated", "hardware"),
        ({"debug": True}, "contraindicated", "hardware"),
        ({"measurement_match": False}, "contraindicated", "hardware"),
        ({"tcb_status": "OutOfDate"}, "warning", "hardware"),
        ({"measurement_match": True, "self_reported": True}, "warning", "hardware"),
    ],
)
def test_the_status(changes: dict[str, object], status: str, protection: str) -> None:
    token = open_token(issue_token(appraisal(but(**changes)), VERIFIER), KEYS, at=AT, max_age_seconds=60)
    assert token.submods["machine"].status == status
    assert token.protection == protection


def test_what_a_policy_refuses_is_not_affirmed() -> None:
    token = open_token(issue_token(appraisal(GOOD, "kinds: no"), VERIFIER), KEYS, at=AT, max_age_seconds=60)
    assert not token.accepted
    assert token.reasons == ("kinds: no",)
    assert token.submods["machine"].status == "contraindicated"


def test_tokens_of_others_old_ones_and_altered_ones_are_refused() -> None:
    data = issue_token(appraisal(), VERIFIER)
    with pytest.raises(IntegrityError):
        open_token(data, keyring([Identity.generate("other").public]), at=AT, max_age_seconds=60)
    for at in (AT + timedelta(seconds=61), AT - timedelta(seconds=61)):
        with pytest.raises(IntegrityError):
            open_token(data, KEYS, at=at, max_age_seconds=60)
    envelope = msgspec.json.decode(data)
    envelope["payload"] = "A" + envelope["payload"][1:]
    with pytest.raises(IntegrityError):
        open_token(msgspec.json.encode(envelope), KEYS, at=AT, max_age_seconds=60)


def test_the_time_of_a_token_is_that_of_the_appraisal() -> None:
    token = open_token(issue_token(appraisal(), VERIFIER), KEYS, at=AT, max_age_seconds=0)
    assert datetime.fromtimestamp(token.iat, UTC) == AT
