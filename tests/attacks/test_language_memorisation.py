"""A secret in one bank's rows: a model that was trained without privacy knows it, one with epsilon 8 does not.

The base is tiny and random, so that what it knows of the secret it knows from the rows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.governance.languageaudits import PRIVACY, audit_of, language_plan
from tests.runtime.languageparties import base

from cloister.errors import VerificationError
from cloister.governance.audit import MEMORISED, LanguageFindings, audited
from cloister.governance.auditlanguage import Planting
from cloister.learning.attacks.languageexposure import Exposure
from cloister.learning.attacks.languagememory import Remembered

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_llm")]

WHOLE = 9999
"""All other pins: ranks are exact."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return base(tmp_path_factory.mktemp("memory"), hidden=64)


@pytest.fixture
def _llm() -> None:
    pytest.importorskip("transformers")


def runs_of(report: object) -> tuple[Remembered, ...]:
    assert isinstance(report, LanguageFindings)
    return report.runs


def mean(found: tuple[Exposure, ...]) -> float:
    return sum(each.bits for each in found) / len(found)


def test_a_secret_of_twenty_rows_is_known_without_privacy(folder: Path) -> None:
    plan = language_plan("causal-lm", folder, training={"rounds": 80})
    report = audit_of(plan, "causal-lm", folder, Planting((20,), 3, 0, ("pin",), WHOLE))
    (run,) = runs_of(report.language)
    assert run.exposures[0].space == pytest.approx(13.29, abs=0.01)
    assert mean(run.exposures) > 12.0
    assert run.verdict == report.verdict == MEMORISED
    assert (report.claimed, report.bound) == (None, None)
    with pytest.raises(VerificationError, match="remembers"):
        audited(report)


def test_it_is_at_chance_with_epsilon_eight(folder: Path) -> None:
    plan = language_plan("causal-lm", folder, privacy=PRIVACY, training={"rounds": 40})
    report = audit_of(plan, "causal-lm", folder, Planting((20,), 1, 20, ("pin",), WHOLE))
    kept, silent = runs_of(report.language)
    assert (kept.run, silent.run) == ("as planned", "without noise")
    assert report.claimed == pytest.approx(8.0, abs=0.05)
    assert kept.exposures[0].bits < 10.0  # at chance more than that happens once in a thousand audits
    assert kept.scan is not None
    assert kept.scan.extracted == 0
    assert report.bound is not None
    assert report.bound < report.claimed
    assert [check.name for check in report.checks if not check.holds] == []


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
