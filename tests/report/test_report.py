from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.report.sample import sample

from cloister.errors import InputError
from cloister.report import (
    STAGES,
    Aggregation,
    Epoch,
    Metrics,
    Participant,
    Report,
    RoundPoint,
    Stage,
    load_report,
    report_json,
    with_words,
    write_report,
)
from cloister.report.words import (
    bytes_in_words,
    count_in_words,
    headline,
    outcome,
    percent,
    percent_range,
    seconds_in_words,
)


def test_written_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    told = write_report(tmp_path, sample())
    assert load_report(tmp_path / "report.json") == told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_json_has_the_documented_fields(tmp_path: Path) -> None:
    write_report(tmp_path, sample())
    found = json.loads((tmp_path / "report.json").read_text())
    assert [stage["name"] for stage in found["stages"]] == list(STAGES)
    assert all(set(stage) == {"name", "seconds", "bytes"} for stage in found["stages"])
    assert {"name", "rows"} <= set(found["participants"][0])
    assert set(found["metrics"]) == {"federated", "centralised", "local"}
    assert 0.0 <= found["metrics"]["federated"] <= 1.0
    assert found["privacy"] is None
    assert found["privacy_note"]
    assert {"path", "sha256"} <= set(found["certificate"])


def test_words_are_made_from_facts_and_stay(tmp_path: Path) -> None:
    told = with_words(sample())
    assert told.headline == (
        "Four hospitals trained one model. Its accuracy on patients it never saw: 96.5\u00a0%; each hospital "
        "alone: 91.2\u00a0% to 95.3\u00a0%; with all rows in one place: 97.1\u00a0%."
    )
    assert with_words(told) == told
    assert told.certificate_in_words == sample().certificate_in_words


def test_chinese_headline() -> None:
    subject = msgspec.structs.replace(sample().subject, site="医院", sites="医院", rows="病人")
    told = with_words(sample(lang="zh", subject=subject))
    assert told.headline.startswith("四家医院共同训练了一个模型。在它从未见过的病人上，准确率为 96.5%")


def test_what_was_not_measured_is_not_mentioned() -> None:
    report = sample(metrics=Metrics(0.9, None, {}))
    assert outcome(report) == "Its accuracy on patients it never saw: 90.0\u00a0%."
    assert headline(report) == "Four hospitals trained one model."
    assert not any("in the open" in line for line in with_words(report).not_protected)


def test_who_could_see_what_follows_from_the_hubs_view() -> None:
    def hub(view: Any) -> dict[str, str]:
        report = with_words(sample(aggregation=Aggregation(4, 1, 3, 3, 1, 32, view)))
        return {sight.what: sight.verdict for sight in report.who_could_see_what if sight.party == "The hub"}

    assert hub("sum") == {
        "Rows": "never",
        "One site's update": "sealed",
        "Sum of updates": "sees",
        "Model": "sees",
        "A question and its answer": "never",
    }
    assert hub("none")["Sum of updates"] == hub("none")["Model"] == "never"


def test_limits_name_the_colluders() -> None:
    limits = with_words(sample()).not_protected
    assert any("at most 1 of 4" in line for line in limits)
    assert any("No differential privacy" in line for line in limits)
    assert any("needs an enclave" in line for line in limits)


@pytest.mark.parametrize(
    "stages",
    [
        tuple(reversed(sample().stages)),
        sample().stages[:-1],
        (*sample().stages, Stage("release", 1.0, 1)),
    ],
)
def test_stages_are_the_seven_in_order(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(ValueError, match="the seven"):
        sample(stages=stages)


def test_metrics_name_participants_only() -> None:
    with pytest.raises(ValueError, match="no participant"):
        sample(metrics=Metrics(0.9, 0.9, {"stranger": 0.9}))
    with pytest.raises(ValueError, match="named once"):
        sample(participants=(Participant("a", 1), Participant("a", 1)))


def test_epochs_name_participants_only_and_end_after_they_begin() -> None:
    study = sample().study
    with pytest.raises(ValueError, match="no participant"):
        sample(study=msgspec.structs.replace(study, epochs=(Epoch(1, 40, ("harbour", "stranger")),)))
    with pytest.raises(ValueError, match="before it begins"):
        Epoch(2, 1, ("harbour",))


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": Metrics(1.5, 0.9, {})},
        {"metrics": Metrics(-0.1, 0.9, {})},
        {"metrics": Metrics(math.nan, 0.9, {})},
        {"curves": (RoundPoint(0, 0.5, 0.5),)},
        {"curves": (RoundPoint(1, 0.5, math.nan),)},
        {"certificate": msgspec.structs.replace(sample().certificate, sha256="not a digest")},
        {"participants": (Participant("harbour", -1), *sample().participants[1:])},
        {"aggregation": msgspec.structs.replace(sample().aggregation, hub_view="all")},
        {"title": 7},
    ],
)
def test_a_field_that_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        write_report(tmp_path / "out", sample(**changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        report_json(sample()).replace(b'"cloister-report-1"', b'"cloister-report-9"'),
        report_json(sample()).replace(b'"case"', b'"casse"'),
        report_json(sample()).replace(b'"privacy": null', b'"privacy": 1.0'),
        report_json(sample()).replace(b'"collect"', b'"gather"'),
        report_json(sample()) + b"{}",
    ],
)
def test_reading_is_strict(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_report(path)
    assert str(path) in str(caught.value)


def test_a_missing_report_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the report"):
        load_report(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0\u00a0B"),
        (999, "999\u00a0B"),
        (1000, "1.0\u00a0kB"),
        (48_249, "48.2\u00a0kB"),
        (999_949, "999.9\u00a0kB"),
        (999_950, "1.0\u00a0MB"),
        (1_612_000, "1.6\u00a0MB"),
        (3 * 10**12, "3.0\u00a0TB"),
        (3 * 10**15, "3000.0\u00a0TB"),
    ],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert bytes_in_words(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0\u00a0ms"),
        (0.34, "340\u00a0ms"),
        (0.9999, "1.0\u00a0s"),
        (59.94, "59.9\u00a0s"),
        (59.96, "1\u00a0min 0\u00a0s"),
        (125.2, "2\u00a0min 5\u00a0s"),
    ],
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


def test_numbers_in_words() -> None:
    assert [count_in_words(n, "en") for n in (2, 12, 13)] == ["Two", "Twelve", "13"]
    assert [count_in_words(n, "zh") for n in (2, 4, 13)] == ["两", "四", "13"]
    assert (percent(0.965, "en"), percent(0.965, "zh")) == ("96.5\u00a0%", "96.5%")
    assert percent_range(0.9121, 0.9124, "en") == "91.2\u00a0%"
    assert percent_range(0.9, 0.95, "zh") == "90.0\u2009–\u200995.0%"


def test_the_report_type_is_frozen() -> None:
    report: Report = sample()
    with pytest.raises(AttributeError):
        report.case = "other"  # type: ignore[misc]
