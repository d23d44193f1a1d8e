"""What a report says: frozen facts, and the words made from them.

Invariants, checked on construction and again on every write and read:
1. `stages` are the seven, each once, in their order.
2. A figure that is a fraction lies in [0, 1]; a figure that was not measured is null, never a guess.
3. `metrics`, `testing`, `privacy` and epochs name participants only.
4. Where rows are not declared public, nothing that could only be computed from rows in the open is here: no
   centralised or local figures, and beside a claim of privacy one accuracy and nothing else.

The facts come from the pipeline, `certificate_in_words` from the certificate itself. The other sentences
(`headline`, `privacy_note`, `who_could_see_what`, `not_protected`) are made from the facts when the report is
written. The facts of differential privacy are in `privacy.py`.

It holds figures about the study, never a row.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloister.report.enclave import Enclave
from cloister.report.kinds import Count, Digest, Fraction, NotNegative
from cloister.report.privacy import Privacy

__all__ = [
    "STAGES",
    "Aggregation",
    "Certificate",
    "Epoch",
    "Metrics",
    "Participant",
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
Verdict = Literal["sees", "noised", "own", "sealed", "never"]
STAGES: tuple[StageName, ...] = ("collect", "encrypt", "federate", "train", "infer", "seal", "release")


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the seven stages.

    Args:
        name: which.
        seconds: wall-clock time it took.
        bytes: what it read, wrote or sent; `words.py` says which of these for each stage.
    """

    name: StageName
    seconds: NotNegative
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


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rounds over one roster: from round `first` to round `last`, by these sites."""

    first: Annotated[int, msgspec.Meta(ge=1)]
    last: Annotated[int, msgspec.Meta(ge=1)]
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError("an epoch ends before it begins")


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
        epochs: who took part when; empty where nobody said so.
    """

    hub: str
    rounds: Count
    attempts: Count
    fewest_sites: Count
    plan_sha256: Digest
    average_last: Count = 0
    epochs: tuple[Epoch, ...] = ()


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
    """One cell of who could see what.

    `sees`, `noised` (under differential privacy), `own` (its own only), `sealed` (ciphertext only),
    `never`.
    """

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
    enclave: Enclave | None = None
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
        named = set(self.metrics.local) | set(self.testing.federated_by_site)
        if not named <= set(names):
            raise ValueError("metrics name a site that is no participant")
        if not {name for epoch in self.study.epochs for name in epoch.sites} <= set(names):
            raise ValueError("an epoch names a site that is no participant")
        if self.privacy is not None and not self.privacy.names() <= set(names):
            raise ValueError("privacy names a site that is no participant")
        if not self.source.public_rows:
            self._require_closed()

    def _require_closed(self) -> None:
        """Refuse figures that only rows in the open can give."""
        privacy = self.privacy
        if self.metrics.centralised is not None or self.metrics.local:
            raise ValueError("rows that are not public have no centralised or local figures")
        if privacy is None:
            return
        if self.curves or privacy.curve or privacy.baselines:
            raise ValueError("private rows that are not public have no curve and no baselines")
        if self.testing.federated_by_site or self.testing.more:
            raise ValueError("private rows that are not public have no measures but one accuracy")
