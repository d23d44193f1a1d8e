from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.governance.audits import (
    CREATED,
    PRIVACY,
    SURE,
    audit_of,
    mechanism_to_audit,
    plan_to_audit,
    rows_of,
)
from tests.learning.attacks.mechanisms import fixed_bytes
from tests.runtime.parties import schema, table

from cloister.errors import InputError, PlanError, VerificationError
from cloister.governance.audit import CONSISTENT, VIOLATES, AuditReport, audited, judge
from cloister.governance.auditmechanism import StudyMechanism
from cloister.governance.auditrun import STAGES, audit
from cloister.learning import LogisticHead, Model, PrivacySection
from cloister.learning.attacks import Check, DistributedMechanism
from cloister.learning.attacks.mechanism import deal
from cloister.learning.private import NumpyPrivate
from cloister.privacy.accounting import epsilon


@cache
def small_report() -> AuditReport:
    return audit_of(plan_to_audit(), canaries=60)


def test_a_report_says_what_was_claimed_and_what_was_found() -> None:
    report = small_report()
    assert report.claimed == pytest.approx(2.0, abs=2e-3)
    assert report.bound is not None
    assert report.bound <= report.claimed
    assert report.verdict == CONSISTENT
    assert report.confidence == SURE
    assert report.claim is not None
    assert report.claim.adversary == "colluders"
    assert report.claim.epsilon_hub < report.claim.epsilon_colluders == report.claimed
    assert report.claim.steps == 12 + 3
    assert report.claim.shares == 2  # of four sites three survive, one colludes
    assert report.canaries is not None
    assert report.canaries.total == report.canaries.each * report.canaries.runs >= 60
    assert [check.holds for check in report.checks] == [True] * 5
    assert report.membership is not None
    assert report.membership.rows == 80
    assert [each.view for each in report.inversion] == ["one row", "one site", "sum", "noised sum", "masked"]
    assert report.rows == "synthetic"
    assert report.created == CREATED
    assert report.plan == plan_to_audit().digest.hex()


def test_it_is_plain_json_with_the_names_that_programs_read() -> None:
    report = small_report()
    data = msgspec.json.decode(report.to_json())
    assert {"claimed", "bound", "confidence", "verdict", "explanation"} <= set(data)
    assert msgspec.json.decode(report.to_json(), type=AuditReport) == report


def test_the_word_private_is_never_a_verdict() -> None:
    text = small_report().to_json().decode().lower()
    assert "is private" not in text
    assert "does not prove" in text


def test_without_a_claim_there_is_no_verdict_but_findings() -> None:
    report = audit_of(plan_to_audit(None))
    assert report.claimed is None
    assert report.bound is None
    assert report.verdict is None
    assert "No privacy was claimed" in report.explanation
    assert report.claim is None
    assert report.checks == report.bounds == ()
    assert [each.view for each in report.inversion] == ["one row", "one site", "sum", "masked"]
    assert report.inversion[0].exact == 1.0
    assert report.membership is not None


CHECK = Check("divisor", False, 1.0, 2.0, "")


@pytest.mark.parametrize(
    ("bound", "checks", "verdict"),
    [(0.5, (), CONSISTENT), (1.0, (), CONSISTENT), (1.01, (), VIOLATES), (0.5, (CHECK,), VIOLATES)],
)
def test_the_verdict(bound: float, checks: tuple[Check, ...], verdict: str) -> None:
    found, said = judge(1.0, bound, 0.95, checks)
    assert found == verdict
    assert ("divisor" in said) == bool(checks)
    assert ("above the claim" in said) == (bound > 1.0)


def test_a_certificate_may_state_a_consistent_audit_of_nobodys_rows() -> None:
    report = small_report()
    stated = audited(report)
    assert (stated.bound, stated.confidence, stated.verdict) == (report.bound, SURE, CONSISTENT)
    assert len(stated.report) == 64
    other = msgspec.structs.replace(report, seconds=report.seconds + 1)
    assert audited(other).report != stated.report


def test_and_no_other() -> None:
    report = small_report()
    with pytest.raises(InputError, match="owner"):
        audited(msgspec.structs.replace(report, rows="own"))
    with pytest.raises(VerificationError, match="not consistent"):
        audited(msgspec.structs.replace(report, verdict=VIOLATES))
    with pytest.raises(VerificationError, match="claims nothing"):
        audited(msgspec.structs.replace(report, verdict=None, claimed=None, bound=None))


def test_owners_rows_are_attacked_and_marked() -> None:
    plan = plan_to_audit(None)
    own = table(30, 1)
    report = audit_of(plan, tables={"site0": own})
    assert report.rows == "own"
    assert report.membership is not None
    assert report.membership.rows == 30
    assert any("stays with them" in said for said in report.conditions)
    text = report.to_json().decode()
    for column in ("a", "b"):
        for value in own.column(column).to_pylist():
            assert f"{value:.6f}" not in text


def test_too_few_rows_for_membership_are_left_out() -> None:
    plan = plan_to_audit(None)
    report = audit_of(plan, tables={"site0": table(5, 1)})
    assert report.membership is None
    assert report.inversion


@pytest.mark.parametrize(
    ("privacy", "changes"),
    [
        (
            PrivacySection(mode="local", epsilon=3.0, delta=1e-4, clip=1.0, rate=0.3),
            {"training": {"local_steps": 2}},
        ),
        pytest.param(
            PrivacySection(
                unit="person",
                sites_per_unit=2,
                expected_units=20,
                epsilon=3.0,
                delta=1e-4,
                clip=1.0,
                rate=0.3,
                adaptive_quantile=0.5,
            ),
            {"training": {"local_steps": 2, "rounds": 5}},
            marks=pytest.mark.slow,
        ),
        (PrivacySection(epsilon=3.0, delta=1e-4, clip=0.5, rate=1.0, adversary="hub"), {}),
    ],
    ids=["local", "unit", "everyone"],
)
def test_every_mode_is_audited(privacy: PrivacySection, changes: dict[str, Any]) -> None:
    sites = 6 if privacy.unit != "record" else 4
    report = audit_of(plan_to_audit(privacy, sites=sites, **changes), canaries=30)
    assert report.verdict == CONSISTENT
    assert [check.name for check in report.failed] == []
    assert report.claim is not None
    assert (report.claim.mode, report.claim.unit) == (privacy.mode, privacy.unit)


def test_progress_goes_through_all_stages() -> None:
    told: list[tuple[str, int, int]] = []
    audit_of(plan_to_audit(), canaries=30, progress=lambda *step: told.append(step))
    assert tuple(dict.fromkeys(stage for stage, _, _ in told)) == STAGES
    assert all(0 <= done <= total for _, done, total in told)
    for stage in STAGES:
        assert told[[at for at, step in enumerate(told) if step[0] == stage][-1]][1:] in (
            (1, 1),
            (10, 10),
            (32, 32),
        )


def test_bad_input_is_refused_before_anything_runs() -> None:
    for options in ({"confidence": 1.0}, {"confidence": 0.0}, {"canaries": 1}):
        with pytest.raises(InputError):
            audit_of(plan_to_audit(), **options)
    impossible = msgspec.structs.replace(PRIVACY, noise_multiplier=0.8)
    with pytest.raises(PlanError, match="claimed"):
        audit_of(plan_to_audit(impossible))
    many = msgspec.structs.replace(PRIVACY, delta=0.5)
    with pytest.raises(PlanError, match="whole row"):
        audit_of(plan_to_audit(many))


def test_the_claim_is_the_accountants() -> None:
    made, _ = mechanism_to_audit(plan_to_audit())
    claim = made.claim
    assert isinstance(made, StudyMechanism)
    events = made.terms.privacy.events_colluders  # type: ignore[union-attr]
    assert epsilon(events, PRIVACY.delta) == pytest.approx(small_report().claimed, abs=2e-4)
    (event,) = events
    assert event.mechanism.variance == pytest.approx(claim.variance)  # type: ignore[union-attr]
    assert event.mechanism.sensitivity == claim.sensitivity  # type: ignore[union-attr]
    assert event.count == claim.steps


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_a_studys_step_is_the_formulas(algorithm: str) -> None:
    """`GlobalModel` against the composition that the learning room tests against `simulate`, bit by bit."""
    plan = plan_to_audit(training={"algorithm": algorithm, "l2": 0.1, "average_last": 4})
    made, start = mechanism_to_audit(plan)
    assert isinstance(made, StudyMechanism)
    private = NumpyPrivate(Model((2, 1), LogisticHead()))
    rows = (np.full((6, 2), 0.5), np.ones(6))
    ends = []
    for kind in (DistributedMechanism(private, made.claim, insecure_test_random=fixed_bytes(1)), None):
        used = kind or StudyMechanism(
            DistributedMechanism(private, made.claim, insecure_test_random=fixed_bytes(1)), plan, made.terms
        )
        run = used.begin(start, deal([rows], 2))
        for _ in range(made.claim.steps):
            run.look()
        ends.append(run.finish())
    assert np.array_equal(*ends)
    assert np.abs(ends[0]).max() > 0


def test_synthetic_rows_are_about_as_many_as_the_sites_have() -> None:
    plan = plan_to_audit(None)
    uneven = dict(zip(rows_of(plan), (5, 7, 400, 11), strict=True))
    report = audit_of(plan, rows=uneven)
    assert report.membership is not None
    assert report.membership.rows == 5 + 7 + 100 + 11
    unsaid = audit(plan, schema(), 4, created=CREATED)
    assert unsaid.membership is not None
    assert unsaid.membership.rows == 400
    with pytest.raises(InputError, match="rows of 2 sites"):
        audit(plan, schema(), 4, created=CREATED, rows={"site0": 3, "site1": 4})


def test_a_table_that_is_not_of_the_schema_is_refused() -> None:
    plan = plan_to_audit(None)
    wrong = pa.table({"a": [1.0], "b": [99.0], "y": ["yes"]})
    with pytest.raises(InputError, match="outside the bounds"):
        audit_of(plan, tables={"site0": wrong})
