"""A secret in one bank's rows, twenty times: what three trainings of one model have kept of it.

    plain                                   it is remembered
    private, without the noise              it is remembered: clipping and sampling hide nothing
    private, epsilon 8                      it is at chance

So it is the noise that hides it. By person the claim covers all twenty rows, which are one person's. By record
it covers one of them: twenty may have an epsilon of 160, and that they are at chance is measured and not promised.

The base is tiny and random, so that what it knows of the secret it knows from the rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.governance.languageaudits import PRIVACY, audit_of, language_plan
from tests.runtime.languageparties import base

from cloister.errors import VerificationError
from cloister.governance.audit import MEMORISED, AuditReport, LanguageFindings, audited
from cloister.governance.auditlanguage import Planting
from cloister.learning.attacks.languageexposure import Exposure
from cloister.learning.attacks.languagememory import Remembered

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_llm")]

OTHERS = 2000
"""Pins that each is ranked among: exposure is seen up to 10.97 bits, of 13.29."""
TWENTY = Planting((20,), 2, 20, ("pin",), OTHERS)
UNITS = {
    "record": {"epsilon": 8.0, "delta": 1e-4, "clip": 4.0, "rate": 0.02},
    "person": {
        "epsilon": 8.0,
        "delta": 1e-4,
        "clip": 4.0,
        "rate": 0.2,
        "unit": "person",
        "sites_per_unit": 1,
        "expected_units": 9,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return base(tmp_path_factory.mktemp("memory"), hidden=64, spread=0.2)


@pytest.fixture
def _llm() -> None:
    pytest.importorskip("transformers")


def runs_of(report: object) -> tuple[Remembered, ...]:
    assert isinstance(report, LanguageFindings)
    return report.runs


def mean(found: tuple[Exposure, ...]) -> float:
    return sum(each.bits for each in found) / len(found)


@pytest.fixture(scope="module")
def plain(folder: Path) -> AuditReport:
    plan = language_plan("causal-lm", folder, sites=3, training={"rounds": 20})
    return audit_of(plan, "causal-lm", folder, TWENTY, rows=40)


def test_without_privacy_the_study_is_not_released(plain: AuditReport) -> None:
    assert (plain.claimed, plain.bound) == (None, None)
    with pytest.raises(VerificationError, match="remembers"):
        audited(plain)


@pytest.mark.parametrize("unit", ["record", "person"])
def test_the_noise_of_epsilon_eight_hides_a_secret_of_twenty_rows(
    folder: Path, plain: AuditReport, unit: str
) -> None:
    training = {
        "rounds": 50 if unit == "record" else 110,
        "batch": 5,
        "server_learning_rate": 0.04 if unit == "record" else 0.03,
    }
    plan = language_plan(
        "causal-lm", folder, sites=3, privacy=UNITS[unit], training=training, language={"context": 64}
    )
    planting, rows = (TWENTY, 60) if unit == "record" else (replace(TWENTY, coins=0), 27)
    report = audit_of(plan, "causal-lm", folder, planting, rows=rows)
    (open_,), (noised, silent) = runs_of(plain.language), runs_of(report.language)
    assert (noised.run, silent.run) == ("as planned", "without noise")
    assert noised.exposures[0].space == pytest.approx(13.29, abs=0.01)
    assert (open_.verdict, silent.verdict, noised.verdict) == ("memorised", "memorised", "at chance")
    assert mean(open_.exposures) > 9.0  # 10.97 each, unless one of 2,000 pins is likelier by chance
    assert mean(silent.exposures) > 7.0
    assert mean(noised.exposures) < 6.5
    assert noised.scan is not None
    assert noised.scan.extracted == 0
    assert report.claimed == pytest.approx(8.0, abs=0.05)
    assert report.bound is not None
    assert report.bound < report.claimed
    assert [check.name for check in report.checks if not check.holds] == []
    times = "about k times the epsilon of a row"
    whom = "All rows of a secret are those of one person"
    assert [any(each in said for said in report.conditions) for each in (times, whom)] == [
        unit == "record",
        unit == "person",
    ]


def test_a_phrase_with_a_false_label_is_remembered_by_a_classifier(folder: Path) -> None:
    plan = language_plan("text-classifier", folder, training={"rounds": 60})
    report = audit_of(plan, "text-classifier", folder, Planting((20,), 10, 0), rows=100)
    (run,) = runs_of(report.language)
    assert run.exposures[0].space == pytest.approx(1.585, abs=0.001)
    assert mean(run.exposures) > 1.4
    assert run.verdict == MEMORISED
    assert run.scan is None


def test_and_is_not_with_epsilon_eight(folder: Path) -> None:
    plan = language_plan("text-classifier", folder, privacy=PRIVACY, training={"rounds": 20})
    report = audit_of(plan, "text-classifier", folder, Planting((1,), 10, 20))
    kept, _ = runs_of(report.language)
    assert kept.verdict == "at chance"
