"""What a certificate states: an in-toto Statement v1, field by field, and nothing about who signs it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from cloister.learning.privacy import PrivacyFacts
from cloister.runtime.appraisal import Appraisal

__all__ = [
    "ABSENT",
    "MOST_FILES",
    "PREDICATE_TYPE",
    "Aggregation",
    "AskedSecrets",
    "Audited",
    "Count",
    "Digest",
    "Enclave",
    "Epoch",
    "Hex",
    "LanguageFacts",
    "Moment",
    "Name",
    "Participant",
    "Positive",
    "Predicate",
    "Privacy",
    "Recipient",
    "Rounds",
    "Statement",
    "Subject",
    "Text",
    "Training",
]

PREDICATE_TYPE = "urn:cloister:release:v2"
MOST_FILES = 40_000

ABSENT = {
    "privacy": "no differential privacy was applied: nothing bounds what the model may reveal about a "
    "single row to its readers",
    "inference": "the certificate covers the training of the model, not the answers given with it",
    "enclave": "no hardware evidence was collected: honest execution rests on the parties that signed",
}
"""Why a part of the predicate is null where it is. The texts belong to version 2 of the predicate:
verification compares them."""

Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z", max_length=63)]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Count = Annotated[int, Meta(ge=0, le=2**48)]
Positive = Annotated[int, Meta(ge=1, le=2**48)]
FilePath = Annotated[
    str,
    Meta(pattern=r"^(?:[a-z0-9_-]+(?:/[a-z0-9_-]+){0,2}(?:\.[a-z0-9]+)+|MODEL_CARD\.md)\Z", max_length=160),
]
Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", max_length=20)]


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
    """One site, with the digest of the manifest it signed itself."""

    name: Name
    fingerprint: Hex
    rows: Count
    manifest: Hex


class Rounds(_Record, frozen=True):
    """`count` rounds in a row from round `first` (1-based), attempted one after the other, that all lost
    `dropped`."""

    first: Positive
    count: Positive
    attempt: Count
    dropped: tuple[Name, ...]


class Epoch(_Record, frozen=True):
    """Rounds over one roster: digest of roster and of set-up, members in roster order with the digest of each
    one's consent to plan and roster, n, c, t, m."""

    number: Count
    roster: Hex
    setup: Hex
    members: Annotated[tuple[Name, ...], Meta(min_length=2, max_length=10_000)]
    countersignatures: dict[Name, Hex]
    parties: Positive
    colluders: Count
    threshold: Positive
    minimum: Positive
    rounds: Annotated[tuple[Rounds, ...], Meta(min_length=1)]

    def survivors(self, run: Rounds) -> int:
        """Return how many members are in each sum of these rounds of the epoch."""
        return len(self.members) - len(run.dropped)


class Aggregation(_Record, frozen=True):
    """The secure sum: ring width, what the hub saw, and its epochs in the order they ran.

    `value_range` is the clamp on each coordinate, in units of the update; the plan may give some tensors of a
    language model a clamp of their own.
    """

    secure: Literal[True]
    bits: Literal[8, 16, 32]
    hub_view: Literal["sum", "none"]
    value_range: Annotated[float, Meta(gt=0)]
    epochs: Annotated[tuple[Epoch, ...], Meta(min_length=1, max_length=10_000)]

    def runs(self) -> list[tuple[Epoch, Rounds]]:
        """Return all rounds, in order, each with its epoch."""
        return [(epoch, run) for epoch in self.epochs for run in epoch.rounds]


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


class Enclave(_Record, frozen=True):
    """Evidence that hub and sites showed each other before they worked together.

    Attributes:
        reattest_seconds: how old it was at most.
        hardware: whether hardware vouches for all of it; else the study was not hardware-protected.
        workers: by site, what the hub accepted of its worker.
        aggregator: by site, the digest of its signed appraisal of the hub's aggregator.
    """

    reattest_seconds: Positive
    hardware: bool
    workers: Annotated[dict[Name, Appraisal], Meta(max_length=10_000)]
    aggregator: Annotated[dict[Name, Hex], Meta(max_length=10_000)]


class AskedSecrets(_Record, frozen=True):
    """What an audit of a language model found where no privacy is claimed: nothing. It bounds nothing.

    Attributes:
        source: "rehearsed": the training was run anew with planted secrets; "planted": the model itself was
            asked for secrets that lay among its rows.
        secrets: that were planted.
        confidence: with which they were not told from others.
        report: digest of the audit, hex.
    """

    source: Literal["rehearsed", "planted"]
    secrets: Positive
    confidence: Annotated[float, Meta(gt=0, lt=1)]
    report: Hex


class LanguageFacts(_Record, frozen=True):
    """What a language model starts from, and what of it was trained.

    Attributes:
        base, tokenizer: digests of the public files that it starts from, as the plan pins them.
        method, rank: as the plan writes them.
        trained: numbers that were trained.
        tensors: numbers in the model's file; an A that was not trained lies there too.
        audit: what one found that has no claim to stand beside; unset without one.
    """

    base: Hex
    tokenizer: Hex
    method: Literal["lora", "lora-alternating", "full"]
    rank: Count
    trained: Positive
    tensors: Positive
    audit: AskedSecrets | UnsetType = UNSET


class Predicate(_Record, frozen=True):
    """What the signer states about a release; `language` is there for language models alone."""

    study: Name
    purpose: Text
    plan: Hex
    signer: Hex
    participants: Annotated[tuple[Participant, ...], Meta(min_length=2, max_length=10_000)]
    aggregation: Aggregation
    training: Training
    privacy: Privacy | None
    inference: None
    enclave: Enclave | None
    absent: dict[str, Text]
    recipients: tuple[Recipient, ...]
    created: Moment
    # unset and not null: certificates of other models keep their bytes
    language: LanguageFacts | UnsetType = UNSET


class Statement(_Record, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    """An in-toto Statement v1 over the files of a release."""

    type_: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[tuple[Subject, ...], Meta(min_length=2, max_length=MOST_FILES)]
    predicate_type: Literal["urn:cloister:release:v2"]
    predicate: Predicate

    def subjects(self) -> dict[str, str]:
        """Path in the folder -> SHA-256 in hex."""
        return {subject.name: subject.digest.sha256 for subject in self.subject}
