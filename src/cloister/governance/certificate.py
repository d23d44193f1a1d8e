"""The certificate of a release: who did what with which data, signed by whoever releases.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) with the predicate type
`urn:cloister:release:v2`, in a DSSE envelope. The subjects are every other file of the release folder
but the proof; the predicate holds what was agreed (the plan's hash), who took part (with the digest of
the manifest each site signed itself), how the sums were protected, and, for each epoch, its roster, the
digests of its members' countersignatures, and which of them survived each round.

Invariants, checked on reading:
- the payload is exactly the canonical JSON (RFC 8785) of its decoded form, so that one certificate has
  one spelling;
- unknown fields are refused at every level;
- names and fingerprints are distinct, rounds follow one another through the epochs, whoever is named as
  dropped is a member of that epoch, and every participant is a member of one.

Participants stand in the plan's order, an epoch's members in roster order. Version 1 knew one epoch alone;
this version does not read it. The plan itself is a file of the folder, `plan.toml`, and its
canonical digest stands here.

Where the plan claims differential privacy, the predicate holds the events that were accounted for, both
epsilons, the digest of each site's debit, and the audit's bound if there was one; a reader recomputes them.

Where the plan asks for evidence of what ran where, the predicate holds what was accepted, and whether
hardware vouches for it (`governance.enclave`).

What it does not do: it is a signed record, not a proof of honest execution. The predicate says in `absent`
what was not done, with a reason for each part that is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from cloister.crypto import Identity, VerifyKey, canonical_bytes, open_envelope, sha256, sign_envelope
from cloister.errors import IntegrityError, VerificationError
from cloister.governance.statement import (
    ABSENT,
    PREDICATE_TYPE,
    Aggregation,
    AskedSecrets,
    Audited,
    Digest,
    Enclave,
    Epoch,
    Hex,
    LanguageFacts,
    Moment,
    Participant,
    Predicate,
    Privacy,
    Recipient,
    Rounds,
    Statement,
    Subject,
    Text,
    Training,
)

__all__ = [
    "ABSENT",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "Aggregation",
    "AskedSecrets",
    "Audited",
    "Certificate",
    "Digest",
    "Enclave",
    "Epoch",
    "Hex",
    "LanguageFacts",
    "Moment",
    "Participant",
    "Predicate",
    "Privacy",
    "Recipient",
    "Rounds",
    "Statement",
    "Subject",
    "Text",
    "Training",
    "decode_statement",
    "moment",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
CERTIFICATE_LIMIT = 16 << 20


def moment() -> str:
    """Return the time now in UTC, as certificates and audits state it: "2026-01-31T12:00:00Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _distinct(values: Sequence[str], what: str) -> None:
    if len(set(values)) != len(values):
        raise VerificationError(
            f"the certificate names a {what} twice", fix="Ask the releaser for a correct one"
        )


def _refuse(what: str) -> VerificationError:
    return VerificationError(
        f"the certificate contradicts itself: {what}", fix="Ask the releaser for a correct one"
    )


def _check_consistent(statement: Statement) -> None:
    """Raise VerificationError where fields contradict each other."""
    predicate = statement.predicate
    names = [participant.name for participant in predicate.participants]
    _distinct([subject.name for subject in statement.subject], "file")
    _distinct(names, "participant")
    _distinct([participant.fingerprint for participant in predicate.participants], "participant's key")
    _distinct([recipient.fingerprint for recipient in predicate.recipients], "recipient")
    missing = {part for part in ABSENT if getattr(predicate, part) is None}
    if set(predicate.absent) != missing:
        raise _refuse("'absent' does not give a reason for each part that is null")
    if predicate.privacy is not None and set(predicate.privacy.debits) != set(names):
        raise _refuse("the debits are not those of the participants")
    language = predicate.language
    if predicate.privacy is not None and language is not UNSET and language.audit is not UNSET:
        raise _refuse("an audit stands beside no claim, and there is one")
    _check_epochs(predicate.aggregation.epochs, names)
    _check_rounds(predicate)


def _check_epochs(epochs: Sequence[Epoch], names: Sequence[str]) -> None:
    number = -1
    for epoch in epochs:
        if epoch.number <= number:
            raise _refuse("the epochs do not ascend")
        number = epoch.number
        _distinct(epoch.members, f"member of epoch {number}")
        if not set(epoch.members) <= set(names):
            raise _refuse(f"a member of epoch {number} is no participant")
        if set(epoch.countersignatures) != set(epoch.members):
            raise _refuse(f"the countersignatures of epoch {number} are not those of its members")
        if epoch.parties != len(epoch.members):
            raise _refuse(f"it counts other parties in epoch {number} than it names")
    if {name for epoch in epochs for name in epoch.members} != set(names):
        raise _refuse("a participant was a member of no epoch")


def _check_rounds(predicate: Predicate) -> None:
    following, attempt = 1, -1
    for epoch, run in predicate.aggregation.runs():
        if run.first != following:
            raise _refuse(f"round {following} is missing or told twice")
        if run.attempt <= attempt:
            raise _refuse(f"round {run.first} reuses an attempt")
        _distinct(run.dropped, f"dropped site of round {run.first}")
        if not set(run.dropped) <= set(epoch.members):
            raise _refuse(f"round {run.first} lost a site that is no member of its epoch")
        following, attempt = run.first + run.count, run.attempt + run.count - 1
    if following != predicate.training.rounds + 1:
        raise _refuse("the rounds listed are not as many as the rounds trained")


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
