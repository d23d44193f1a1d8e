"""Audits of language models: reports, verdicts, the study that is rehearsed, lists of canaries. Small and quick."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.governance.languageaudits import CREATED, PRIVACY, audit_of, language_plan
from tests.runtime.languageparties import base, schema

from cloister.crypto import StreamRandom
from cloister.errors import InputError, IntegrityError, VerificationError
from cloister.governance import languagestage
from cloister.governance.audit import (
    CONSISTENT,
    MEMORISED,
    VIOLATES,
    AuditReport,
    LanguageFindings,
    audited,
    judge,
    numbers_digest,
    read_report,
)
from cloister.governance.auditlanguage import Planting, ask_model
from cloister.governance.plantfile import PlantFile, label_classes_of, plant_rows, read_plant
from cloister.learning.attacks import Check
from cloister.learning.attacks.languageexposure import Exposure
from cloister.learning.attacks.languagememory import Remembered
from cloister.learning.attacks.languagesecrets import make_plant
from cloister.report.audit import audit_html, audit_summary
from cloister.vault import load_schema

FEW = Planting((2,), 2, 4, ("code",), 60)
HIDDEN = Exposure("code", 20, 26.6, 1.0, 0.9, 1.1, None, None, 0.4, 1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return base(tmp_path_factory.mktemp("audits"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> AuditReport:
    plan = language_plan("causal-lm", folder, sites=3, training={"rounds": 2})
    return audit_of(plan, "causal-lm", folder, FEW, rows=12)


@pytest.fixture(scope="module")
def private(folder: Path) -> AuditReport:
    changes = {"training": {"rounds": 1, "batch": 20}, "language": {"rank": 2}}
    written = PRIVACY | {"noise_multiplier": 0.578}  # epsilon 8; looking for it takes seconds
    plan = language_plan("causal-lm", folder, sites=3, privacy=written, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(languagestage, "_CHECK_STEPS", (20, 30))  # the slow tests take all
        patch.setattr(languagestage, "_CHECK_SECONDS", 1e6)  # so many on a busy machine, too
        return audit_of(plan, "causal-lm", folder, FEW, rows=12)


def kept(verdict: str = "memorised") -> Remembered:
    reasons = ("so it is",) if verdict == MEMORISED else ()
    return Remembered("as planned", verdict, reasons, (HIDDEN,), 0.4, (), 1e-5, None)  # type: ignore[arg-type]


def test_without_a_claim_there_is_one_run(plain: AuditReport) -> None:
    assert isinstance(plain.language, LanguageFindings)
    (run,) = plain.language.runs
    assert [each.copies for each in run.exposures] == [2, 2]
    assert all(each.others == 60 for each in run.exposures)
    assert [bound.method for bound in run.bounds] == ["f-DP, epsilon and delta", "Steinke"]
    assert run.scan is not None
    assert (run.scan.asked, run.scan.texts) == (2, 10)
    assert (plain.claimed, plain.bound, plain.bounds, plain.claim) == (None, None, (), None)
    assert plain.language.rows + 4 <= 36


def test_with_one_there_is_another_without_its_noise(private: AuditReport) -> None:
    assert isinstance(private.language, LanguageFindings)
    assert [run.run for run in private.language.runs] == ["as planned", "without noise"]
    assert private.claimed == pytest.approx(8.0, abs=0.05)
    assert private.bounds[0].method == "f-DP"
    assert private.bound == private.bounds[0].epsilon < private.claimed
    assert private.claim is not None
    assert {check.name: check.holds for check in private.checks if not check.holds} == {}
    assert len(private.checks) == 5


@pytest.mark.parametrize("name", ["plain", "private"])
def test_a_report_reads_back_and_has_a_page(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    report: AuditReport = request.getfixturevalue(name)
    file = tmp_path / "audit.json"
    file.write_bytes(report.to_json())
    assert read_report(file) == report
    for lang in ("en", "zh"):
        page, said = audit_html(report, lang), audit_summary(report, lang)  # type: ignore[arg-type]
        assert 'id="audit-exposure-wide-title"' in page
        assert "<script" not in page
        assert len(said.splitlines()) >= 4
    assert "secret" not in msgspec.to_builtins(report)


def test_reports_of_tables_have_no_such_part(plain: AuditReport) -> None:
    table = msgspec.structs.replace(plain, language=msgspec.UNSET)
    assert b'"language"' not in table.to_json()
    assert msgspec.json.decode(table.to_json(), type=AuditReport) == table


@pytest.mark.slow
@pytest.mark.parametrize("unit", [False, True])
def test_persons_and_turns_are_rehearsed_too(folder: Path, unit: bool) -> None:
    changes = {"training": {"rounds": 2, "batch": 8}, "language": {"rank": 2}}
    privacy = PRIVACY
    if unit:
        privacy = PRIVACY | {"unit": "person", "sites_per_unit": 1, "expected_units": 10}
    else:
        changes["language"]["method"] = "lora-alternating"
    plan = language_plan("causal-lm", folder, sites=3, privacy=privacy, **changes)
    report = audit_of(plan, "causal-lm", folder, Planting((2,), 1, 2, ("code",), 40), rows=8)
    assert report.checks == ()
    assert report.verdict is not None
    assert any("were not checked" in said for said in report.conditions)


def test_a_verdict_is_the_worst_that_was_found() -> None:
    broken = (Check("divisor", False, 1.0, 2.0, "x"),)
    assert judge(8.0, 1.0, 0.95, (), kept("at chance"))[0] == CONSISTENT
    assert judge(8.0, 1.0, 0.95, (), kept())[0] == MEMORISED
    assert judge(8.0, 9.0, 0.95, (), kept())[0] == VIOLATES
    assert judge(8.0, 1.0, 0.95, broken, kept())[0] == VIOLATES
    assert judge(None, None, 0.95, (), kept("at chance"))[0] is None
    verdict, said = judge(None, None, 0.95, (), kept())
    assert verdict == MEMORISED
    assert "so it is" in said


def test_a_model_that_remembers_is_not_released(plain: AuditReport, private: AuditReport) -> None:
    for report in (plain, private):
        with pytest.raises(VerificationError, match="remembers"):
            audited(msgspec.structs.replace(report, verdict=MEMORISED))
    assert audited(msgspec.structs.replace(plain, verdict=None)) is None
    stated = audited(msgspec.structs.replace(private, verdict=CONSISTENT))
    assert stated is not None
    assert stated.bound == private.bound
    with pytest.raises(InputError, match="owner's rows"):
        audited(msgspec.structs.replace(private, rows="own"))


def test_a_finished_model_is_asked_for_its_owners_list(folder: Path, tmp_path: Path) -> None:
    """The start itself is asked: it knows nothing. With the list of another kind of model it is not."""
    plan = language_plan("causal-lm", folder, sites=3, training={"rounds": 2})
    own = schema("causal-lm")
    plant = make_plant(copies=(3,), each=4, coins=6, kinds=("code",))
    path = tmp_path / "canaries.json"
    path.write_bytes(PlantFile(schema=own.digest().hex(), texts="pairs", plant=plant).to_json())
    assert read_plant(path).plant == plant
    from cloister.runtime.worker import model_facts

    facts = model_facts(plan, own, base=folder)
    start = facts.initial
    rows = {site.name: 20 for site in plan.sites}
    report = ask_model(
        plan, own, folder, start, plant, created=CREATED, rows=rows, others=60, confidence=0.999999
    )
    assert isinstance(report.language, LanguageFindings)
    assert report.language.source == "planted"
    assert report.verdict is None
    assert "finished model" in report.conditions[0]
    assert audit_summary(report)
    ends = np.cumsum([tensor.size for tensor in facts.tensors])
    parts = zip(facts.tensors, np.split(start, ends[:-1]), strict=True)
    released = {tensor.name: part.reshape(tensor.shape) for tensor, part in parts}
    options = {"created": CREATED, "rows": rows, "others": 20}
    found = ask_model(plan, own, folder, released, plant, **options).language
    assert isinstance(found, LanguageFindings)
    assert found.model == report.language.model == numbers_digest(start), "the same model, whole or by tensor"
    with pytest.raises(IntegrityError, match="does not fit this base"):
        ask_model(plan, own, folder, dict(list(released.items())[1:]), plant, **options)
    phrases = make_plant(copies=(1,), each=1, coins=0, classes=3)
    with pytest.raises(InputError, match="another kind of model"):
        ask_model(plan, own, folder, start, phrases, created=CREATED, rows=rows)
    path.write_text('{"format": "cloister-canaries/1", "digits": "4821"}')
    with pytest.raises(InputError, match="not a list") as raised:
        read_plant(path)
    assert "4821" not in str(raised.value)


@pytest.mark.parametrize("kind", ["causal-lm", "text-classifier"])
def test_planted_rows_are_rows_of_the_schema(kind: str) -> None:
    own = schema(kind, persons=True)  # type: ignore[arg-type]
    classes = label_classes_of(own)
    assert classes == (3 if kind == "text-classifier" else 0)
    plant = make_plant(
        copies=(1, 3), each=2, coins=4, classes=classes, insecure_test_random=StreamRandom(b"c" * 32)
    )
    file = PlantFile(schema=own.digest().hex(), texts="text" if classes else "pairs", plant=plant)
    data = plant_rows(own, file)
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert len(rows) == len(plant.planted)
    assert {row["person"] for row in rows} == {each.name for each in plant.planted}
    label = own.label or ""
    if classes:
        names = own.columns[label].categories or ()
        assert [row[label] for row in rows] == [names[int(each.digits)] for each in plant.planted]
    else:
        assert [row[label] for row in rows] == [each.sentence for each in plant.planted]
        assert [row["question"] for row in rows] == [each.question for each in plant.planted]


def test_a_schema_without_texts_has_no_canaries() -> None:
    numbers = load_schema(
        b'[columns.x]\ntype = "number"\nbounds = [0, 1]\n[columns.y]\ntype = "boolean"\nrole = "label"\n'
    )
    plant = make_plant(copies=(1,), each=1, coins=0, classes=2)
    with pytest.raises(InputError, match="no feature is a text"):
        plant_rows(numbers, PlantFile(schema="", texts="text", plant=plant))
    with pytest.raises(InputError, match="no label"):
        label_classes_of(load_schema(b'[columns.x]\ntype = "text"\n'))
