"""What may be sealed to, and why not: each step of the verification by itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.enclave.doubles import NOON, AppraiserDouble, AttesterDouble

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import MAX_EVIDENCE, Evidence
from cloister.errors import CloisterError, InputError, PolicyRefused, ProtocolError, VerificationError
from cloister.inference.client.verify import MAX_AGE, SKEW, Challenge, Verifier
from cloister.inference.exchange import KeyRing, KeySet, Published, keys_report_data

DIGEST = "ab" * 32


class Service:
    """Shows keys, with evidence of an attester."""

    def __init__(self, *, accelerators: int = 0, **attester: Any) -> None:
        self.ring = KeyRing("m", DIGEST, accelerators, lifetime=3600, overlap=0)
        self.attester = AttesterDouble(**attester)

    @property
    def keys(self) -> KeySet:
        return self.ring.current(NOON)

    def show(self, challenge: Challenge) -> bytes:
        evidence = self.attester.attest(keys_report_data(challenge.nonce, self.keys))
        return Published(self.keys.to_bytes(), evidence.to_json()).to_json()


def make(**changes: Any) -> Verifier:
    return Verifier(
        changes.pop("appraise", AppraiserDouble()),
        policy_digest="cd" * 32,
        clock=changes.pop("clock", lambda: NOON),
        **changes,
    )


def test_what_was_verified() -> None:
    verifier, service = make(), Service()
    challenge = verifier.challenge()
    verified = verifier.check(service.show(challenge), challenge)
    assert verified.keys == service.keys
    assert (verified.at, verified.policy_digest, verified.protection) == (NOON, "cd" * 32, "hardware")
    assert verified.until == service.keys.not_after + SKEW
    assert not verifier.due(verified)
    assert verified.published.keys == service.keys.to_bytes()
    assert len({verifier.challenge().nonce for _ in range(9)}) == 9


def test_a_verification_is_as_old_as_its_challenge() -> None:
    time = NOON
    verifier, service = make(clock=lambda: time, max_age=timedelta(minutes=10)), Service()
    challenge = verifier.challenge()
    shown = service.show(challenge)
    time = NOON + timedelta(minutes=9)
    verified = verifier.check(shown, challenge)
    assert verified.until == NOON + timedelta(minutes=10)
    time = NOON + timedelta(minutes=10)
    assert verifier.due(verified)
    assert timedelta(hours=24) == MAX_AGE


@pytest.mark.parametrize(
    "document", [b"", b"{}", b"null", b"[]", b"<html>", b"\xff", b'{"keys":"","evidence":""}']
)
def test_what_is_no_key_set_with_evidence(document: bytes) -> None:
    verifier = make()
    with pytest.raises(ProtocolError, match="no keys with evidence"):
        verifier.check(document, verifier.challenge())


def test_parts_that_are_not_strict() -> None:
    verifier, service = make(), Service()
    challenge = verifier.challenge()
    shown = Published.from_json(service.show(challenge))
    for changed in (
        msgspec.structs.replace(shown, keys=shown.keys + b" "),
        msgspec.structs.replace(shown, keys=shown.keys.replace(b'"accelerators":0', b'"accelerators": 0')),
        msgspec.structs.replace(shown, evidence=b"{}"),
    ):
        with pytest.raises(ProtocolError):
            verifier.check(changed.to_json(), challenge)
    with pytest.raises(ProtocolError):
        verifier.check(b" " * (2 * MAX_EVIDENCE), challenge)


def test_evidence_that_does_not_count() -> None:
    verifier = make()
    challenge = verifier.challenge()
    for service, why in (
        (Service(hardware=False), "not hardware-protected"),
        (Service(maker=b"somebody"), "nobody known"),
    ):
        with pytest.raises(PolicyRefused, match=why):
            verifier.check(service.show(challenge), challenge)
    honest = Service()
    with pytest.raises(PolicyRefused, match="freshness"):
        verifier.check(honest.show(verifier.challenge()), challenge)


def test_freshness_is_asked_for_whatever_the_policy_says() -> None:
    verifier, service = make(appraise=AppraiserDouble(unbound=True)), Service()
    with pytest.raises(PolicyRefused, match="does not carry these keys"):
        verifier.check(service.show(verifier.challenge()), verifier.challenge())


def test_what_appraisal_raises_is_a_refusal() -> None:
    def fails(evidence: Evidence, at: Any, expected: Any) -> Any:
        raise InputError("cut in the middle")

    verifier, service = make(appraise=fails), Service()
    challenge = verifier.challenge()
    with pytest.raises(PolicyRefused, match="cut in the middle"):
        verifier.check(service.show(challenge), challenge)


@pytest.mark.parametrize(
    ("later", "holds"),
    [
        (timedelta(), True),
        (-SKEW, True),
        (-SKEW - timedelta(seconds=1), False),
        (timedelta(hours=1) + SKEW - timedelta(seconds=1), True),
        (timedelta(hours=1) + SKEW, False),
    ],
)
def test_keys_hold_at_their_time(later: timedelta, holds: bool) -> None:
    verifier, service = make(clock=lambda: NOON + later), Service()
    challenge = verifier.challenge()
    shown = service.show(challenge)
    if holds:
        verifier.check(shown, challenge)
    else:
        with pytest.raises(VerificationError, match="not in force"):
            verifier.check(shown, challenge)


def gpu(platform: str | None, **changes: Any) -> Claims:
    return Claims(
        **{"kind": "nvidia-gpu", "signature": True, "chain": True, "freshness": True, "platform": platform}
        | changes
    )


@pytest.mark.parametrize(
    ("devices", "enough"),
    [
        ((), False),
        ((gpu("a"),), False),
        ((gpu("a"), gpu("b")), True),
        ((gpu("a"), gpu("a")), False),
        ((gpu("a"), gpu(None)), False),
        ((gpu("a"), gpu("b", chain=None)), False),
        ((gpu("a"), gpu("b", freshness=None)), False),
        ((gpu("a"), gpu("b", signature=False)), False),
        ((gpu("a"), gpu("b", kind="nvidia-switch")), False),
    ],
)
def test_every_accelerator_has_evidence_of_its_own(devices: tuple[Claims, ...], enough: bool) -> None:
    double = AppraiserDouble()

    def appraise(evidence: Evidence, at: Any, expected: Any) -> Any:
        claims, reasons = double(evidence, at, expected)
        return msgspec.structs.replace(claims, devices=devices), reasons

    verifier, service = make(appraise=appraise), Service(accelerators=2)
    challenge = verifier.challenge()
    shown = service.show(challenge)
    if enough:
        assert verifier.check(shown, challenge).keys.accelerators == 2
    else:
        with pytest.raises(PolicyRefused, match="accelerators"):
            verifier.check(shown, challenge)


def test_a_named_model_and_no_other() -> None:
    service = Service()
    for digest, right in ((DIGEST, True), ("cd" * 32, False), ("AB", False)):
        verifier = make(model_digest=digest)
        challenge = verifier.challenge()
        shown = service.show(challenge)
        if right:
            verifier.check(shown, challenge)
        else:
            with pytest.raises(VerificationError, match="another model"):
                verifier.check(shown, challenge)


def test_garbage_never_passes_and_never_surprises() -> None:
    verifier, service = make(), Service()
    challenge = verifier.challenge()
    shown = service.show(challenge)
    for at in range(0, len(shown), 7):
        changed = bytearray(shown)
        changed[at] ^= 1
        with pytest.raises(CloisterError):
            verifier.check(bytes(changed), challenge)
    for end in range(0, len(shown), 11):
        with pytest.raises(CloisterError):
            verifier.check(shown[:end], challenge)
