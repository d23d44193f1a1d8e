"""What a report says: frozen facts, and the words made from them.

Invariants, checked on construction and again on every write and read:
1. `stages` are the seven, each once, in their order.
2. A figure that is a fraction lies in [0, 1]; a figure that was not measured is null, never a guess.
3. `metrics.local` names participants only.

The facts come from the pipeline, `certificate_in_words` from the certificate itself. The other sentences
(`headline`, `who_could_see_what`, `not_protected`) are made from the facts when the report is written.

It holds figures about the study, never a row.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = [
    "STAGES",
    "Aggregation",
    "Audit",
    "Budget",
    "Certificate",
    "EpsilonPoint",
    "Metrics",
    "Participant",
    "Privacy",
    "Report",
    "RoundPoint",
    "Sight",
    "Source",
    "Stage",
    "StageName",
    "Study",
    "Subject",
    "Testing",
    "Verdict",
]

StageName = Literal["collect", "encrypt", "federate", "train", "infer", "seal", "release"]
Verdict = Literal["sees", "own", "sealed", "never"]
STAGES: tuple[StageName, ...] = ("collect", "encrypt", "federate", "train", "infer", "seal", "release")

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the seven stages.

    Args:
        name: which.
        seconds: wall-clock time it took.
        bytes: what it read, wrote or sent; `words.py` says which of these for each stage.
    """

    name: StageName
    seconds: Seconds
    bytes: Count


class Participant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site: how many rows it trained with, and how many it kept back for testing."""

    name: str
    rows: Count
    test_rows: Count = 0


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy on the test rows of all sites together, as fractions.

    Args:
        federated: the released model.
        centralised: the same training with all rows in one place; null where rows are not public.
        local: by site, the same training on that site's rows alone; empty where rows are not public.
    """

    federated: Fraction
    centralised: Fraction | None
    local: dict[str, Fraction]


class Testing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies behind the metrics.

    Args:
        rows: test rows of all sites together.
        federated_by_site: the released model's accuracy on each site's own test rows.
        more: further measures of the released model on all test rows (`auc`, `loss`, ...).
    """

    rows: Count
    federated_by_site: dict[str, Fraction] = {}
    more: dict[str, float | None] = {}


class RoundPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The global model after a round, on the test rows of all sites; null where it was not measured."""

    round: Annotated[int, msgspec.Meta(ge=1)]
    accuracy: Fraction | None
    loss: float | None


class Aggregation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The secure sum: n, c, t, m, drop-outs a round tolerates, ring width, what the hub may see."""

    parties: Count
    colluders: Count
    threshold: Count
    minimum: Count
    tolerated_dropouts: Count
    bits: Literal[8, 16, 32]
    hub_view: Literal["sum", "none"]


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The study that ran.

    Args:
        hub: the hub's name.
        rounds: rounds that entered the model.
        attempts: rounds begun, burnt ones included.
        fewest_sites: the smallest number of sites in any round's sum.
        plan_sha256: digest of the plan that every site countersigned.
        average_last: the released model is the mean of the models after this many last rounds; 0 and 1:
            the last one.
    """

    hub: str
    rounds: Count
    attempts: Count
    fewest_sites: Count
    plan_sha256: Digest
    average_last: Count = 0


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one owner's ledger says of its rows: its cap, what this and everything before spent, what is left.

    Args:
        site: whose.
        cap_epsilon: what the owner allows over everything ever released from its rows, at `cap_delta`.
        cap_delta: likewise.
        spent_epsilon: what was spent so far, as the ledger's filter counts it.
        left_epsilon: what one more release could be claimed with.
    """

    site: str
    cap_epsilon: Positive
    cap_delta: Fraction
    spent_epsilon: NotNegative
    left_epsilon: NotNegative


class EpsilonPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same study at another epsilon: accuracy, the mean of `runs` runs, with its standard deviation."""

    epsilon: Positive
    accuracy: Fraction
    deviation: NotNegative
    runs: Annotated[int, msgspec.Meta(ge=1)]


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an attack that was run on the claim showed: a lower bound on epsilon, never a proof of privacy."""

    claimed: Positive
    bound: NotNegative
    confidence: Fraction
    canaries: Count
    verdict: Literal["consistent with the claim", "violates the claim"]


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Differential privacy: the claim, and what it rests on.

    Args:
        epsilon: what the plan claims at `delta`, None where it fixes the noise instead.
        epsilon_hub: against the hub and every reader of the model.
        epsilon_colluders: against a hub with `colluders` colluding sites.
        delta: of both.
        adversary: which of the two the plan's epsilon speaks of.
        colluders: how many sites are assumed to tell the hub their noise.
        unit: "record", or the column that names whose row it is.
        mode: who adds the noise: all sites together, or each for itself.
        clip, rate, noise_multiplier: of the mechanism.
        budgets: every owner's ledger.
        curve: accuracy against epsilon, on rows declared public; empty elsewhere.
        audit: an attack on the claim, None where none was run.
    """

    epsilon: Positive | None
    epsilon_hub: Positive
    epsilon_colluders: Positive
    delta: Fraction
    adversary: Literal["colluders", "hub"]
    colluders: Count
    unit: str
    mode: Literal["distributed", "local"]
    clip: Positive
    rate: Fraction
    noise_multiplier: Positive
    budgets: tuple[Budget, ...]
    curve: tuple[EpsilonPoint, ...] = ()
    audit: Audit | None = None


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed record.

    Args:
        path: of the certificate, relative to the report's folder.
        sha256: of that file.
        model_sha256: of the released model file.
        cosignatures: study members that signed the log's tree head.
        cosignatures_required: how many a verifier demands (c + 1).
        log_entries: size of the log at that tree head.
    """

    path: str
    sha256: Digest
    model_sha256: Digest
    cosignatures: Count
    cosignatures_required: Count
    log_entries: Count = 1


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How people call what the study is about, in the report's language.

    Args:
        site: one participant ("hospital").
        sites: several ("hospitals").
        rows: what a row is, several ("patients").
        positive: what the positive answer means ("malignant").
    """

    site: str
    sites: str
    rows: str
    positive: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the rows came from.

    Args:
        text: source and its citation.
        licence: as published.
        public_rows: declared public, so that curves and baselines may be shown.
        note: what a reader must know (that the sites are a division made for a demonstration); may be empty.
    """

    text: str
    licence: str
    public_rows: bool
    note: str = ""


class Sight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cell of who could see what: `sees`, `own` (its own only), `sealed` (ciphertext only) or `never`."""

    party: str
    what: str
    verdict: Verdict


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that report.json holds; report.html shows the same. See the module's invariants."""

    format: Literal["cloister-report-1"] = "cloister-report-1"
    lang: Literal["en", "zh"] = "en"
    case: str
    title: str
    question: str
    created: str
    stages: tuple[Stage, ...]
    participants: tuple[Participant, ...]
    metrics: Metrics
    privacy: Privacy | None = None
    privacy_note: str = ""
    certificate: Certificate
    verify_command: str
    subject: Subject
    source: Source
    study: Study
    aggregation: Aggregation
    testing: Testing
    certificate_in_words: tuple[str, ...]
    curves: tuple[RoundPoint, ...] = ()
    software: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    headline: str = ""
    who_could_see_what: tuple[Sight, ...] = ()
    not_protected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if tuple(stage.name for stage in self.stages) != STAGES:
            raise ValueError("stages must be the seven, in their order")
        names = [participant.name for participant in self.participants]
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError("participants must be at least two, each named once")
        if not set(self.metrics.local) | set(self.testing.federated_by_site) <= set(names):
            raise ValueError("metrics name a site that is no participant")
