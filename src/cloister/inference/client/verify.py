"""Verification of a service: from a nonce of one's own to a key set that may be sealed to. Bytes in, bytes
out; no sockets.

    verifier = Verifier.of(policy)
    challenge = verifier.challenge()              fetch the published keys for challenge.nonce
    verified = verifier.check(published, challenge)

Steps of `check`; nothing is sealed to a key set that has not passed all of them:

1. what was published parses, within its size;
2. the key set in it is strictly one;
3. the evidence in it is read;
4. it is appraised against the report data that this nonce and this key set ask for;
5. no reason of the owner's policy refuses it, and it is fresh, whatever the policy says;
6. every accelerator it speaks of has evidence of its own that was accepted;
7. the key set is in force now, give or take `SKEW` between the two clocks;
8. where the caller named a model's digest, it is this one.

Evidence is as old as the challenge that it answers: keeping it back does not make it younger. What was
verified counts until `max_age` later or until its key set ends, whichever is first.

It does not say who runs the service; the policy's reference values and the model's digest do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cloister.crypto import constant_time_equal
from cloister.enclave.claims import Claims, Protection
from cloister.enclave.evidence import Evidence
from cloister.enclave.policy import EnclavePolicy
from cloister.errors import CloisterError, PolicyRefused, ProtocolError, VerificationError
from cloister.inference.exchange.keyset import KeySet, Published, keys_report_data
from cloister.text import printable
from cloister.types import RandomBytes

__all__ = ["MAX_AGE", "SKEW", "Challenge", "Verified", "Verifier", "in_force", "now_utc", "unvouched"]

MAX_AGE: Final = timedelta(hours=24)
"""How long a verification counts."""
SKEW: Final = timedelta(minutes=5)
"""How far the clocks of client and service may be apart."""

_MAX_WORDS: Final = 4000

AppraisesEvidence = Callable[[Evidence, datetime, bytes | None], tuple[Claims, Sequence[str]]]


def now_utc() -> datetime:
    """Return the time, aware UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a verifier asks for.

    Attributes:
        nonce: 32 fresh bytes.
        at: when it was drawn.
    """

    nonce: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class Verified:
    """A key set that evidence vouches for, and how that was found out.

    Attributes:
        keys: what is sealed to, and what receipts are signed with.
        claims: what the evidence showed.
        published: key set and evidence as they came.
        nonce: what the evidence answers.
        at: when that was asked, aware UTC.
        until: from when on it has to be verified again.
        policy_digest: of the policy that accepted it, hexadecimal; empty where the verifier has none.
    """

    keys: KeySet
    claims: Claims
    published: Published = field(repr=False)
    nonce: bytes = field(repr=False)
    at: datetime
    until: datetime
    policy_digest: str

    @property
    def protection(self) -> Protection:
        """What vouches for it, in words."""
        return self.claims.protection


class Verifier:
    """How one client judges services.

    Args:
        appraise: the owner's judgement: (evidence, time, expected report data) -> claims, reasons to refuse.
        policy_digest: of the policy behind it, hexadecimal; it is told to the service, inside the exchange,
            and stands in receipts.
        model_digest: the one model that is accepted, hexadecimal; empty for any that the evidence vouches
            for.
        clock: gives the time, aware UTC.
        max_age: how long a verification counts.
        insecure_test_random: source of nonces in tests.
    """

    def __init__(
        self,
        appraise: AppraisesEvidence,
        *,
        policy_digest: str = "",
        model_digest: str = "",
        clock: Callable[[], datetime] = now_utc,
        max_age: timedelta = MAX_AGE,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._appraise, self._model_digest = appraise, model_digest
        self._max_age, self._random = max_age, insecure_test_random or os.urandom
        self.policy_digest, self.clock = policy_digest, clock

    @classmethod
    def of(cls, policy: EnclavePolicy, *, model_digest: str = "") -> Verifier:
        """Return the verifier of one enclave policy."""
        from cloister.enclave.appraise import appraiser

        return cls(appraiser(policy), policy_digest=policy.digest, model_digest=model_digest)

    def challenge(self) -> Challenge:
        """Return what to ask a service for."""
        return Challenge(self._random(32), self.clock())

    def due(self, verified: Verified) -> bool:
        """Tell whether the service has to be verified again before anything else is sealed to it."""
        return self.clock() >= verified.until

    def check(self, published: bytes, challenge: Challenge) -> Verified:
        """Return what may be sealed to.

        Args:
            published: what the service answered.
            challenge: what it was asked.

        Raises:
            ProtocolError: it is no key set with evidence.
            PolicyRefused: the evidence does not count, with all reasons.
            VerificationError: the key set is not in force, or of another model.
        """
        try:
            found = Published.from_json(published)  # 1
            keys = KeySet.from_bytes(found.keys)  # 2
            evidence = Evidence.from_json(found.evidence)  # 3
        except CloisterError as error:
            raise ProtocolError(
                f"the service shows no keys with evidence: {_line(error.what)}", fix="Check its address"
            ) from None
        now = self.clock()
        try:
            claims, found_reasons = self._appraise(
                evidence, now, keys_report_data(challenge.nonce, keys)
            )  # 4
        except CloisterError as error:
            raise _refused([str(error)]) from None
        reasons = list(found_reasons)
        if claims.freshness is not True:  # 5
            reasons.append("freshness: it does not carry these keys and this nonce")
        reasons += unvouched(keys, claims)  # 6
        if reasons:
            raise _refused(reasons)
        if not in_force(keys, now):  # 7
            raise VerificationError(
                "the service's keys are not in force now",
                where=f"{keys.not_before.isoformat()} to {keys.not_after.isoformat()}",
                fix="Check this machine's clock; then ask the service's operator",
            )
        if self._model_digest and not constant_time_equal(  # 8
            keys.model_digest.encode(), self._model_digest.encode()
        ):
            raise VerificationError(
                "the service answers with another model than the one that was asked for",
                where=keys.model,
                fix="Ask its operator; or name the digest of this model, if it is wanted",
            )
        until = min(challenge.at + self._max_age, keys.not_after + SKEW)
        return Verified(keys, claims, found, challenge.nonce, challenge.at, until, self.policy_digest)


def in_force(keys: KeySet, at: datetime) -> bool:
    """Tell whether a key set holds at a time, give or take `SKEW`."""
    return keys.not_before - SKEW <= at < keys.not_after + SKEW


def unvouched(keys: KeySet, claims: Claims) -> list[str]:
    """Return the reason to refuse a key set that speaks of more GPUs than have evidence that is signed,
    chained and fresh; else nothing."""
    sound = (
        device.platform
        for device in claims.devices
        if device.kind == "nvidia-gpu" and device.signature and device.chain and device.freshness
    )
    accepted = len({name for name in sound if name is not None})
    if keys.accelerators <= accepted:
        return []
    return [f"accelerators: {keys.accelerators} compute, and {accepted} have accepted evidence"]


def _line(text: str) -> str:
    """Return text that may hold somebody else's words as one line that steers no terminal."""
    return printable(text[:_MAX_WORDS])


def _refused(reasons: list[str]) -> PolicyRefused:
    return PolicyRefused(
        f"the service's evidence was refused: {_line('; '.join(dict.fromkeys(reasons)))}",
        where="enclave policy",
        fix="Send nothing to it; if your enclave policy is wrong, see `cloister enclave policy draft URL`",
    )
