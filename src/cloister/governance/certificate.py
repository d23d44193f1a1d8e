"""The certificate of a release: who did what with which data, signed by whoever releases.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) with the predicate type
`urn:cloister:release:v1`, in a DSSE envelope. The subjects are every other file of the release folder
but the proof; the predicate holds what was agreed (plan and roster hash), who took part (with the
digests of the manifest and the countersignature each site signed itself), how the sums were protected,
and which sites survived each round.

Invariants, checked on reading:
- the payload is exactly the canonical JSON (RFC 8785) of its decoded form, so that one certificate has
  one spelling;
- unknown fields are refused at every level;
- names and fingerprints are distinct, rounds follow one another, whoever is named as dropped took part.

Participants stand in roster order. The plan itself is a file of the folder, `plan.toml`, and its
canonical digest stands here.

Where the plan claims differential privacy, the predicate holds the events that were accounted for, both
epsilons, the digest of each site's debit, and the audit's bound if there was one; a reader recomputes them.

What it does not do: it is a signed record, not a proof of honest execution. Nothing was measured by
hardware; the predicate says so in `absent`, with a reason for each part that is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cloister.crypto import Identity, VerifyKey, canonical_bytes, open_envelope, sha256, sign_envelope
from cloister.errors import IntegrityError, VerificationError
from cloister.learning.privacy import PrivacyFacts

__all__ = [
    "ABSENT",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "Aggregation",
    "Audited",
    "Certificate",
    "Participant",
    "Predicate",
    "Privacy",
    "Recipient",
    "Rounds",
    "Statement",
    "Subject",
    "Training",
    "decode_statement",
    "moment",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:cloister:release:v1"
CERTIFICATE_LIMIT = 16 << 20

ABSENT = {
    "privacy": "no differential privacy was applied: nothing bounds what the model may reveal about a "
    "single row to its readers",
    "inference": "the certificate covers the training of the model, not the answers given with it",
    "enclave": "no hardware evidence was collected: honest execution rests on the parties that signed",
}
"""Why a part of the predicate is null where it is. The texts belong to version 1 of the predicate:
verification compares them."""

Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z", max_length=63)]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Count = Annotated[int, Meta(ge=0, le=2**48)]
Positive = Annotated[int, Meta(ge=1, le=2**48)]
FilePath = Annotated[str, Meta(pattern=r"^[a-z0-9_-]+(?:/[a-z0-9_-]+)?(?:\.[a-z0-9]+)+\Z", max_length=160)]
Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", max_length=20)]


def moment() -> str:
    """Return the time now in UTC, as certificates and audits state it: "2026-01-31T12:00:00Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen, and strict about unknown fields."""


class Digest(_Record, frozen=True):
    """SHA-256 in lower-case hex."""

    sha256: Hex


class Subject(_Record, frozen=True):
    """One file of the release: its path in the folder, its digest."""

    name: FilePath
    digest: Digest


class Participant(_Record, frozen=True):
    """One site, with the digests of what it signed itself: its manifest and its consent to plan and
    roster."""

    name: Name
    fingerprint: Hex
    rows: Count
    manifest: Hex
    countersignature: Hex


class Rounds(_Record, frozen=True):
    """`count` rounds in a row from round `first` (1-based), attempted one after the other, that all lost
    `dropped`."""

    first: Positive
    count: Positive
    attempt: Count
    dropped: tuple[Name, ...]


class Aggregation(_Record, frozen=True):
    """The secure sum: its epoch with the digest of its set-up; n, c, t, m; ring width; what the hub saw.

    `value_range` is the clamp on each coordinate, in units of the update.
    """

    secure: Literal[True]
    epoch: Count
    setup: Hex
    parties: Positive
    colluders: Count
    threshold: Positive
    minimum: Positive
    bits: Literal[16, 32]
    hub_view: Literal["sum", "none"]
    value_range: Annotated[float, Meta(gt=0)]
    rounds: Annotated[tuple[Rounds, ...], Meta(min_length=1)]


class Training(_Record, frozen=True):
    """What was trained, and with which versions of which software."""

    algorithm: Text
    model: Text
    rounds: Positive
    software: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=64)]], Meta(max_length=32)
    ]


class Recipient(_Record, frozen=True):
    """A reader the model is sealed to."""

    name: Name
    fingerprint: Hex


class Audited(_Record, frozen=True):
    """What an attack that was run showed: a lower bound on epsilon at a confidence, beside the claim."""

    bound: Annotated[float, Meta(ge=0)]
    confidence: Annotated[float, Meta(gt=0, lt=1)]
    verdict: Literal["consistent with the claim"]
    report: Hex


class Privacy(_Record, frozen=True):
    """Differential privacy: the claim with its events, both epsilons, and who was debited.

    `debits` has the digest of each participant's signed debit; `audit` is null where none was run.
    """

    claim: PrivacyFacts
    epsilon_hub: Annotated[float, Meta(gt=0)]
    epsilon_colluders: Annotated[float, Meta(gt=0)]
    debits: dict[Name, Hex]
    audit: Audited | None


class Predicate(_Record, frozen=True):
    """What the signer states about a release."""

    study: Name
    purpose: Text
    plan: Hex
    roster: Hex
    signer: Hex
    participants: Annotated[tuple[Participant, ...], Meta(min_length=2, max_length=10_000)]
    aggregation: Aggregation
    training: Training
    privacy: Privacy | None
    inference: None
    enclave: None
    absent: dict[str, Text]
    recipients: tuple[Recipient, ...]
    created: Moment


class Statement(_Record, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    """An in-toto Statement v1 over the files of a release."""

    type_: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[tuple[Subject, ...], Meta(min_length=2, max_length=30_000)]
    predicate_type: Literal["urn:cloister:release:v1"]
    predicate: Predicate

    def subjects(self) -> dict[str, str]:
        """Path in the folder -> SHA-256 in hex."""
        return {subject.name: subject.digest.sha256 for subject in self.subject}


def _distinct(values: Sequence[str], what: str) -> None:
    if len(set(values)) != len(values):
        raise VerificationError(
            f"the certificate names a {what} twice", fix="Ask the releaser for a correct one"
        )


def _check_consistent(statement: Statement) -> None:
    """Raise VerificationError where fields contradict each other."""

    def refuse(what: str) -> VerificationError:
        return VerificationError(
            f"the certificate contradicts itself: {what}", fix="Ask the releaser for a correct one"
        )

    predicate = statement.predicate
    names = [participant.name for participant in predicate.participants]
    _distinct([subject.name for subject in statement.subject], "file")
    _distinct(names, "participant")
    _distinct([participant.fingerprint for participant in predicate.participants], "participant's key")
    _distinct([recipient.fingerprint for recipient in predicate.recipients], "recipient")
    missing = {part for part in ABSENT if getattr(predicate, part) is None}
    if set(predicate.absent) != missing:
        raise refuse("'absent' does not give a reason for each part that is null")
    if predicate.privacy is not None and set(predicate.privacy.debits) != set(names):
        raise refuse("the debits are not those of the participants")
    if predicate.aggregation.parties != len(names):
        raise refuse("it counts other parties than it names")
    following, attempt = 1, -1
    for run in predicate.aggregation.rounds:
        if run.first != following:
            raise refuse(f"round {following} is missing or told twice")
        if run.attempt <= attempt:
            raise refuse(f"round {run.first} reuses an attempt")
        _distinct(run.dropped, f"dropped site of round {run.first}")
        if not set(run.dropped) <= set(names):
            raise refuse(f"round {run.first} lost a site that is no participant")
        following, attempt = run.first + run.count, run.attempt + run.count - 1
    if following != predicate.training.rounds + 1:
        raise refuse("the rounds listed are not as many as the rounds trained")


def decode_statement(payload: bytes) -> Statement:
    """Decode a statement strictly.

    Raises:
        IntegrityError: not a statement of this type, an unknown field, or not its canonical bytes.
        VerificationError: well-formed, but it contradicts itself.
    """
    try:
        statement = msgspec.json.decode(payload, type=Statement)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise IntegrityError(f"the certificate is not a {PREDICATE_TYPE} statement: {error}") from error
    if canonical_bytes(statement) != payload:
        raise IntegrityError(
            "the certificate is not in canonical form", fix="Ask the releaser for the file as it was signed"
        )
    _check_consistent(statement)
    return statement


@dataclass(frozen=True)
class Certificate:
    """A statement with the envelope that signs it.

    Attributes:
        statement: what is stated.
        envelope: the DSSE envelope, JSON, exactly as it is stored and logged.
    """

    statement: Statement
    envelope: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the envelope, 32 bytes: what the log records."""
        return sha256(self.envelope)

    @classmethod
    def sign(cls, statement: Statement, signer: Identity) -> Certificate:
        """Sign `statement`; it passes the reader's checks first.

        Raises:
            IntegrityError, VerificationError: it would be refused on reading.
        """
        payload = canonical_bytes(statement)
        return cls(decode_statement(payload), sign_envelope(PAYLOAD_TYPE, payload, [signer]))

    @classmethod
    def open(cls, envelope: bytes, keys: Mapping[str, VerifyKey]) -> Certificate:
        """Check the signature, then decode.

        Args:
            envelope: the file's bytes.
            keys: key id -> key of whoever may sign.

        Raises:
            IntegrityError: no signature of these keys, or not a statement.
            VerificationError: it contradicts itself.
        """
        return cls(decode_statement(open_envelope(envelope, PAYLOAD_TYPE, keys)), envelope)
