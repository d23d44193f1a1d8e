"""The case `heart` as `cloister demo` takes it; its rows and split are tested beside the loader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.cases import find_case
from cloister.cases.heart import HOSPITALS
from cloister.cli.main import run
from cloister.errors import InputError
from cloister.report import load_report

CASE = find_case("heart")


def test_without_files_one_sentence_says_which_and_where() -> None:
    with pytest.raises(InputError) as caught:
        CASE.load(None)
    said = str(caught.value)
    assert all(f"processed.{word}.data" in said for word in HOSPITALS.values())
    assert "https://archive.ics.uci.edu" in said
    assert "--data" in said


def test_a_folder_without_the_files_names_the_first_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"processed\.cleveland\.data is missing"):
        CASE.load(tmp_path)


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "processed.cleveland.data").write_text("not,a,heart\n")
    with pytest.raises(InputError) as caught:
        CASE.load(tmp_path)
    assert "processed.cleveland.data" in str(caught.value)


@pytest.mark.slow
def test_the_whole_way_with_the_real_hospitals(tmp_path: Path) -> None:
    named = os.environ.get("CLOISTER_TEST_DATA")
    if not named or not (Path(named) / "disease").is_dir():
        pytest.skip("set CLOISTER_TEST_DATA to the folder of public data to run this test")
    out = tmp_path / "out"
    assert run(["demo", "heart", "--data", named, "--no-privacy", "--out", str(out)]) == 0
    report = load_report(out / "report.json")
    assert {site.name: (site.rows, site.test_rows) for site in report.participants} == {
        "cleveland": (199, 104),
        "hungary": (172, 89),
        "switzerland": (30, 16),
        "va": (85, 45),
    }
    assert report.metrics.centralised is not None
    assert report.metrics.federated > max(report.metrics.local.values()) - 0.02
    assert abs(report.metrics.federated - report.metrics.centralised) < 0.03

    assert run(["demo", "heart", "--data", named, "--out", str(out)]) == 0
    report = load_report(out / "report.json")
    assert report.privacy is not None
    assert report.privacy.baselines is not None
    assert report.privacy.epsilon == 2.0
    assert report.metrics.federated > 0.74  # noise is drawn anew: 0.80 on average, deviation 0.01
    assert report.metrics.federated > min(report.privacy.baselines.local.values()) + 0.05
