"""Evidence between a hub and a site, over an open link: who asks, what counts, and for how long.

    site -> hub   Challenge     the site's nonce, first in every session
    hub  -> site  Challenge     the hub's nonce
    hub  -> site  Attested      evidence of the hub's aggregator
    site -> hub   Attested      evidence of the site's worker, and the site's signed appraisal of the hub's
    site -> hub   Join          and all the rest

Invariants, at both ends:
- a site says nothing but its nonce before it has accepted the hub's evidence; a hub hears nothing else of a
  site, its Join included, before it has accepted the site's;
- evidence counts for the nonce that asked for it, once, and for this session between these two for this plan:
  report data commits to all of them, so that what is shown to one verifier is worth nothing to another. No
  enclave policy can waive that;
- evidence of the hub vouches for the hub's own identity, the one the plan names;
- evidence that is older than the plan's `reattest_seconds` counts no more, and is as old as the challenge
  that it answers. It is asked for again when three quarters of that time are over; whose evidence lapses, or
  is refused then, is out;
- who is refused learns that, and nothing about why. The reasons are for the owner.

A state machine for one link: messages and times in, messages out. Making evidence may take long and is left
to whoever runs the machine (`Question`). Age is counted by the clock of the loop, which a machine that sleeps
may stop; the time of appraisal is the party's own clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Final, Protocol

from cloister.crypto import Identity, PublicIdentity, constant_time_equal, sha256
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence, report_data
from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.runtime.appraisal import (
    AGGREGATOR,
    WORKER,
    Appraisal,
    Appraised,
    appraisal_of,
    open_appraisal,
    sign_appraisal,
)
from cloister.runtime.messages import Attested, Challenge
from cloister.types import RandomBytes

__all__ = [
    "FIRST_SECONDS",
    "REFUSED",
    "AppraisesEvidence",
    "Attestation",
    "Attesting",
    "Attests",
    "GivesEvidence",
    "Question",
    "attesting_by",
    "binding",
    "key_digest",
]

REFUSED: Final = "evidence refused"
"""All that a peer learns."""
FIRST_SECONDS: Final = 120.0
"""How long evidence may take to come in a new session."""
_LABEL: Final = b"cloister/attested-session/v1"

AppraisesEvidence = Callable[[Evidence, datetime, bytes | None], tuple[Claims, Sequence[str]]]
"""(evidence, time, the 64 bytes it must carry) -> claims, and the owner's reasons to refuse it."""


class GivesEvidence(Protocol):
    """Makes evidence of what it is called for: a worker, an aggregator."""

    def __call__(self, challenge: bytes, session: bytes) -> Evidence:
        """Return evidence whose report data is
        `report_data(purpose, challenge, key digest, session=session.hex())`.

        May be called from another thread, while a worker works: it must not wait for that.
        """


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Attesting:
    """What a party needs where a plan asks for evidence.

    Attributes:
        key: SHA-256 of the exported public identity that its evidence vouches for (`key_digest`): the hub's
            own at a hub, the worker's at a site.
        evidence_for: makes evidence.
        appraise: judges the peer's, by the owner's enclave policy.
        clock: the time of appraisals, aware UTC.
    """

    key: bytes
    evidence_for: GivesEvidence
    appraise: AppraisesEvidence
    clock: Callable[[], datetime] = _now


class Attests(Protocol):
    """What gives evidence of this machine; an attester of the enclave room is one."""

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence that carries these 64 bytes."""


def attesting_by(
    attester: Attests,
    purpose: str,
    vouched_for: PublicIdentity,
    appraise: AppraisesEvidence,
    *,
    clock: Callable[[], datetime] = _now,
) -> Attesting:
    """Return what a party needs, its evidence made by this machine's attester, one piece after another.

    Args:
        attester: of the machine.
        purpose: `WORKER` at a site, `AGGREGATOR` at a hub.
        vouched_for: the worker's own identity, or the hub's.
        appraise: the owner's judgement.
        clock: the time of appraisals, aware UTC.
    """
    key, alone = key_digest(vouched_for), Lock()

    def evidence_for(challenge: bytes, session: bytes) -> Evidence:
        data = report_data(purpose, challenge, key, session=session.hex())
        with alone:  # questions of several studies come from several threads
            return attester.attest(data)

    return Attesting(key, evidence_for, appraise, clock)


def key_digest(identity: PublicIdentity) -> bytes:
    """Return the 32 bytes by which evidence names an identity: SHA-256 of its exported form."""
    return sha256(identity.to_json())


def binding(session: bytes, study: bytes, prover: PublicIdentity, verifier: PublicIdentity) -> bytes:
    """Return the 32 bytes that tie evidence to one session between two parties for one plan."""
    parties = bytes.fromhex(prover.fingerprint), bytes.fromhex(verifier.fingerprint)
    return sha256(_LABEL, session, study, *parties)


@dataclass(frozen=True)
class Question:
    """A challenge of the peer that evidence is due to.

    Attributes:
        peer: who asks.
        session: of the link it was asked in.
        challenge: its nonce.
        bound: what the evidence must be tied to.
        attesting: the party's own.
    """

    peer: str
    session: bytes
    challenge: bytes
    bound: bytes
    attesting: Attesting

    def evidence(self) -> Evidence:
        """Make the evidence; may take long. Raises CloisterError where it cannot be made."""
        return self.attesting.evidence_for(self.challenge, self.bound)


class Attestation:
    """One party's half of one link; see the module's docstring.

    Args:
        attesting: what this party shows, and how it judges.
        identity: this party's keys.
        peer: the other.
        study: 32-byte digest of the plan.
        hub: whether this party is the hub.
        reattest_seconds: how old evidence may be.
        insecure_test_random: source of nonces in tests.

    Attributes:
        accepted: the appraisal of the peer's evidence that counts, None where there is none.
        appraised: at a hub, what it keeps of the site.
    """

    def __init__(
        self,
        attesting: Attesting,
        identity: Identity,
        peer: PublicIdentity,
        study: bytes,
        *,
        hub: bool,
        reattest_seconds: float,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._attesting, self._identity, self._peer, self._study = attesting, identity, peer, study
        self._hub = hub
        self._own_purpose, self._purpose = (AGGREGATOR, WORKER) if hub else (WORKER, AGGREGATOR)
        self._seconds = float(reattest_seconds)
        self._random = insecure_test_random or os.urandom
        self.close()

    def close(self) -> None:
        """Forget the session: nothing counts any more."""
        self.session = b""
        self.accepted: Appraisal | None = None
        self.appraised: Appraised | None = None
        self._nonce = b""
        self._since = 0.0  # of the challenge that what counts answers; of the session where nothing counts
        self._challenged_at = 0.0  # of the challenge that is open
        self._question: Question | None = None
        self._asked: float | None = None  # when the peer asked last
        self._shown: set[str] = set()  # digests of what was shown in this session

    def open(self, session: bytes, now: float) -> Challenge:
        """Begin in a session that has opened; return what is to be asked."""
        self.close()
        self.session, self._since = session, now
        return self._challenge(now)

    def tick(self, now: float) -> Challenge | None:
        """Let time pass; return what is to be asked.

        Raises:
            PolicyRefused: the peer's evidence has lapsed, or none came.
        """
        if not self.session:
            return None
        age = now - self._since
        if self.accepted is None:
            if age > FIRST_SECONDS:
                raise self._refused([f"none came within {FIRST_SECONDS:.0f} seconds"])
            return None
        if age >= self._seconds:
            raise self._refused(["it has lapsed, and no newer came"])
        return self._challenge(now) if not self._nonce and age >= 0.75 * self._seconds else None

    # --- what the peer asks ---------------------------------------------------------------------

    def challenged(self, message: Challenge, now: float) -> None:
        """Take a challenge. Raises ProtocolError where the peer asks more often than it has reason to."""
        if self._asked is not None and now - self._asked < 0.5 * self._seconds:
            raise ProtocolError("asked for evidence again too soon", peer=self._peer.name)
        self._asked = now
        bound = binding(self.session, self._study, self._identity.public, self._peer)
        self._question = Question(self._peer.name, self.session, message.nonce, bound, self._attesting)

    def question(self) -> Question | None:
        """Return, once, the challenge to which evidence may be shown now: a site's waits for the hub's."""
        if self._question is None or (self.accepted is None and not self._hub):
            return None
        question, self._question = self._question, None
        return question

    def show(self, question: Question, evidence: Evidence) -> Attested | None:
        """Return the answer to a question, None where its session is over."""
        if question.session != self.session or (self.accepted is None and not self._hub):
            return None
        self._shown.add(evidence.digest.hex())
        signed = None if self.accepted is None or self._hub else sign_appraisal(self.accepted, self._identity)
        return Attested(self._attesting.key, evidence.to_json(), signed)

    @property
    def mutual(self) -> bool:
        """Whether the peer's evidence counts and it has been shown ours: what was agreed may follow."""
        return self.accepted is not None and bool(self._shown)

    # --- what the peer shows --------------------------------------------------------------------

    def attested(self, message: Attested, now: float) -> Appraisal:
        """Judge the peer's evidence.

        Raises:
            PolicyRefused: it does not count; with all reasons, which are for the owner alone.
            ProtocolError: nobody asked for it.
        """
        nonce, self._nonce = self._nonce, b""
        if not nonce:
            raise ProtocolError("showed evidence that nobody asked for", peer=self._peer.name)
        at, signed = self._attesting.clock(), b""
        try:
            evidence, claims, reasons = self._judged(message, nonce, at)
        except CloisterError as error:  # it cannot even be read
            self.accepted = None
            raise self._refused([str(error)]) from error
        if self._hub:
            try:
                signed = self._signed(message)
            except CloisterError as error:
                reasons.append(str(error))
        if now - self._challenged_at >= self._seconds:
            reasons.append("it had lapsed when it came")
        if reasons:
            self.accepted = None
            raise self._refused(reasons)
        appraisal = appraisal_of(
            claims,
            evidence,
            plan=self._study,
            party=self._peer.name,
            by=self._identity.name,
            purpose=self._purpose,
            key=message.key,
            at=at,
        )
        self.accepted, self._since = appraisal, self._challenged_at
        if self._hub:
            self.appraised = Appraised(appraisal, signed.decode())
        return appraisal

    def _judged(self, message: Attested, nonce: bytes, at: datetime) -> tuple[Evidence, Claims, list[str]]:
        """Return the evidence, what was found, and all reasons to refuse it."""
        bound = binding(self.session, self._study, self._peer, self._identity.public)
        expected = report_data(self._purpose, nonce, message.key, session=bound.hex())
        evidence = Evidence.from_json(message.evidence)
        claims, found = self._attesting.appraise(evidence, at, expected)
        return evidence, claims, [*found, *self._unbound(claims, message)]

    def _unbound(self, claims: Claims, message: Attested) -> list[str]:
        """Return what no policy can waive."""
        reasons = []
        if claims.freshness is not True:
            why = claims.reasons.get("freshness", "it does not carry this session and nonce")
            reasons.append(f"freshness: {why}")
        if not self._hub and not constant_time_equal(message.key, key_digest(self._peer)):
            reasons.append("key: it vouches for another key than the hub's")
        return reasons

    def _signed(self, message: Attested) -> bytes:
        """Return the site's signed appraisal of this hub's evidence, checked."""
        envelope = message.appraisal or b""
        said = open_appraisal(envelope, self._peer)
        ours = (self._study.hex(), self._identity.name, AGGREGATOR, self._attesting.key.hex())
        if (said.plan, said.party, said.purpose, said.key) != ours or said.evidence not in self._shown:
            raise ProtocolError("signed an appraisal of other evidence", peer=self._peer.name)
        return envelope

    # --- helpers --------------------------------------------------------------------------------

    def _challenge(self, now: float) -> Challenge:
        self._nonce, self._challenged_at = self._random(32), now
        return Challenge(self._nonce)

    def _refused(self, reasons: Sequence[str]) -> PolicyRefused:
        return PolicyRefused(
            f"the evidence of {self._peer.name} was refused: {'; '.join(dict.fromkeys(reasons))}",
            where="enclave policy",
            fix="Have that party mend it; or change your enclave policy, if it is wrong",
        )
