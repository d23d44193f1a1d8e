"""What an audit found, as frozen data, and its verdict.

The verdict is "violates the claim" where the bound is above the claimed epsilon or a check fails, else
"memorised" where a language model knows secrets that were planted among its rows, otherwise "consistent with
the claim". Nothing here can say that a study is private: an attack that finds little may be a weak attack.
Without a claim there is no verdict but "memorised", only what the attacks found.

A certificate may state an audit beside the claim (`audited`), if it is consistent and touched nobody's rows.
Where nothing is claimed it may state that a language model remembered nothing that was planted (`asked`): a
finding that bounds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import InputError, VerificationError
from cloister.files import read_bytes
from cloister.governance.certificate import AskedSecrets, Audited
from cloister.learning.attacks import Bound, Check, Inversion, Membership
from cloister.learning.attacks.languagememory import MEMORISED, Remembered

__all__ = [
    "CONSISTENT",
    "MEMORISED",
    "VIOLATES",
    "AuditReport",
    "CanaryFacts",
    "ClaimFacts",
    "LanguageFindings",
    "Verdict",
    "asked",
    "audited",
    "judge",
    "numbers_digest",
    "read_report",
]

Verdict = Literal["consistent with the claim", "violates the claim", "memorised"]
_LIMIT: Final = 16 << 20
CONSISTENT: Final = "consistent with the claim"
VIOLATES: Final = "violates the claim"


class ClaimFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is claimed, and by what mechanism.

    Attributes:
        epsilon_hub, epsilon_colluders, delta, adversary, unit, mode: as the plan's terms say.
        noise_multiplier, rate, steps, shares: of the mechanism in the view that is claimed.
    """

    epsilon_hub: float
    epsilon_colluders: float
    delta: float
    adversary: Literal["colluders", "hub"]
    unit: str
    mode: Literal["distributed", "local"]
    noise_multiplier: float
    rate: float
    steps: int
    shares: int


class CanaryFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The game: `each` canaries in each of `runs` runs, `total` coins in all."""

    each: int
    runs: int
    total: int


class LanguageFindings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What language models of a plan have kept of planted secrets.

    Attributes:
        base: digest of the base, hex.
        kind: of the model.
        source: "rehearsed": the plan's training was run anew; "planted": a finished model was asked for what
            its owner had planted.
        rows: rows that were not planted; 0 of a finished model.
        runs: what each model has kept; the verdict speaks of the first.
        model: of a finished model, SHA-256 of its numbers as `numbers_digest` has it, hex.
    """

    base: str
    kind: Literal["causal-lm", "text-classifier"]
    source: Literal["rehearsed", "planted"]
    rows: int
    runs: Annotated[tuple[Remembered, ...], msgspec.Meta(min_length=1)]
    model: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | msgspec.UnsetType = msgspec.UNSET


class AuditReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an audit found.

    Attributes:
        version: of this format.
        claimed: epsilon of the claim, rounded up to four digits; None where the plan claims nothing.
        bound: with `confidence`, epsilon of the mechanism is larger than this; None without a claim.
        confidence: of the bound.
        verdict: None without a claim, unless a language model remembers what was planted.
        explanation: the verdict in one sentence, and what it does not say.
        study: its name.
        plan: digest of the plan, hex.
        hub_view: what the plan lets the hub see; where "none", views of sums are a colluding site's.
        rows: whose rows membership and inversion attacked: "synthetic", or their owner's "own".
        claim, canaries, bounds, checks: empty without a claim.
        membership: None where there were too few rows.
        inversion: one entry for each view of the hub's.
        conditions: what the result holds under, one sentence each.
        seconds: how long it took.
        created: the time, "2026-01-31T12:00:00Z".
        language: of a language model's plan; reports of others are without it.
    """

    version: Literal[1] = 1
    claimed: float | None
    bound: float | None
    confidence: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    verdict: Verdict | None
    explanation: str
    study: str
    plan: str
    hub_view: Literal["sum", "none"]
    rows: Literal["synthetic", "own"]
    claim: ClaimFacts | None
    canaries: CanaryFacts | None
    bounds: tuple[Bound, ...]
    checks: tuple[Check, ...]
    membership: Membership | None
    inversion: tuple[Inversion, ...]
    conditions: tuple[str, ...]
    seconds: float
    created: str
    language: LanguageFindings | msgspec.UnsetType = msgspec.UNSET

    def to_json(self) -> bytes:
        """Return the report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.holds)


def read_report(path: Path) -> AuditReport:
    """Return the report in a file that `AuditReport.to_json` wrote.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(read_bytes(path, limit=_LIMIT, what="audit"), type=AuditReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"this is not an audit: {error}",
            where=str(path),
            fix="Give the audit.json that `cloister audit STUDY --out DIR` wrote",
        ) from None


def audited(report: AuditReport) -> Audited | None:
    """Return what a certificate states of an audit: bound, confidence, verdict, and the report's digest.

    None where nothing was claimed and a language model remembers nothing that was planted: there is no claim
    for it to stand beside, and `asked` says what was found.

    Raises:
        VerificationError: the verdict is not "consistent with the claim", or nothing was claimed.
        InputError: it used somebody's rows; such a report stays with their owner.
    """
    if report.rows != "synthetic":
        raise InputError(
            "this audit used its owner's rows, so it stays with them",
            fix="Run `cloister audit` without --site for a certificate",
        )
    if report.verdict == MEMORISED:
        raise VerificationError(
            "the model remembers secrets that were planted among its rows",
            where=f"study {report.study}",
            fix="Train with [privacy], or fewer rounds, and audit again before anything is released",
        )
    if report.verdict is None and isinstance(report.language, LanguageFindings):
        return None
    if report.verdict != CONSISTENT or report.bound is None:
        raise VerificationError(
            "the audit is not consistent with the claim" if report.verdict else "the study claims nothing",
            where=f"study {report.study}",
            fix="Find out which part of the mechanism is not as claimed before anything is released",
        )
    return Audited(report.bound, report.confidence, CONSISTENT, sha256(canonical_bytes(report)).hex())


def asked(report: AuditReport) -> AskedSecrets | None:
    """Return what a certificate states of a language model's audit where nothing is claimed.

    None where something is, for other models, and where no secret was planted for certain.

    Raises:
        VerificationError, InputError: as `audited`; or the report contradicts itself.
    """
    found = report.language
    if audited(report) is not None or not isinstance(found, LanguageFindings):
        return None
    if found.runs[0].verdict == MEMORISED:  # nobody has signed the report
        raise VerificationError(
            "the audit says both that the model remembers secrets and that it does not",
            where=f"study {report.study}",
            fix="Run `cloister audit` again, and leave its report as it is",
        )
    secrets = len(found.runs[0].exposures)
    if not secrets:
        return None
    digest = sha256(canonical_bytes(report)).hex()
    return AskedSecrets(found.source, secrets, report.confidence, digest)


def numbers_digest(parameters: NDArray[np.floating]) -> str:
    """Return SHA-256 of a language model's trained numbers as float32, little-endian, in their order; hex."""
    return sha256(np.ascontiguousarray(parameters, "<f4").tobytes()).hex()


def judge(
    claimed: float | None,
    bound: float | None,
    confidence: float,
    checks: tuple[Check, ...],
    kept: Remembered | None = None,
) -> tuple[Verdict | None, str]:
    """Return the verdict and what it rests on, in a sentence or two.

    Args:
        claimed: epsilon; None without a claim.
        bound: on it; None without a claim.
        confidence: of the bound.
        checks: that were made.
        kept: what a language model has kept of planted secrets.
    """
    memorised = kept is not None and kept.verdict == MEMORISED
    found = f" Planted secrets are remembered: {'; '.join(kept.reasons)}." if kept and memorised else ""
    if claimed is None or bound is None:
        if memorised:
            return MEMORISED, f"No privacy was claimed.{found}"
        if kept is not None:
            return None, (
                "No privacy was claimed, so there is no verdict. Planted secrets were not told from others, "
                "which guarantees nothing of other rows."
            )
        return None, "No privacy was claimed, so there is no verdict; see what the attacks found."
    failed = [check.name for check in checks if not check.holds]
    said = f"With confidence {confidence:g} epsilon is above {bound:.3f}; {claimed:.4g} is claimed."
    if failed:
        said += f" The mechanism is not the one that was accounted for: {', '.join(failed)}."
    if bound > claimed:
        said += " The bound is above the claim."
    if failed or bound > claimed:
        return VIOLATES, said + found
    if memorised:
        return MEMORISED, f"{said}{found}"
    return CONSISTENT, f"{said} That does not prove the claim."
