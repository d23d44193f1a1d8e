"""`cloister demo`: the whole way, its output, its errors, and Ctrl-C in every stage."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.cases import find_case
from cloister.cli.demo import _in_words, _runnable
from cloister.cli.main import run
from cloister.errors import InputError
from cloister.pipeline import run_case
from cloister.report import STAGES, load_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one private run in English."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert run(["demo", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run without privacy."""
    out = tmp_path_factory.mktemp("bare") / "out"
    assert run(["demo", "--no-privacy", "--out", str(out)]) == 0
    return out


class _Quiet:
    """A `Progress` that can press Ctrl-C: at the end of a stage, or after a round."""

    def __init__(self, *, at_stage: str | None = None, at_round: int | None = None) -> None:
        self.at_stage, self.at_round = at_stage, at_round

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield
        if name == self.at_stage:
            signal.raise_signal(signal.SIGINT)

    def round(self, number: int, total: int, metric: float | None) -> None:
        if number == self.at_round:
            signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None:
        pass


def test_the_report_is_whole(finished: Path) -> None:
    report = load_report(finished / "report.json")
    assert tuple(stage.name for stage in report.stages) == STAGES
    assert all(stage.seconds > 0 and stage.bytes > 0 for stage in report.stages)
    assert [site.name for site in report.participants] == list(find_case("diagnosis").sites)
    assert sum(site.rows + site.test_rows for site in report.participants) == 569
    assert report.testing.rows == sum(site.test_rows for site in report.participants)
    assert report.headline.startswith("Four hospitals trained one model.")
    assert len(report.curves) == report.study.rounds == find_case("diagnosis").private.training.rounds
    assert all(point.accuracy is not None for point in report.curves)


def test_privacy_is_whole(finished: Path) -> None:
    case, report = find_case("diagnosis"), load_report(finished / "report.json")
    privacy, cap = report.privacy, find_case("diagnosis").private.cap
    assert privacy is not None
    assert privacy.epsilon == case.private.privacy.epsilon == 3.0
    assert 0 < privacy.epsilon_hub < privacy.epsilon_colluders <= privacy.epsilon
    assert [budget.site for budget in privacy.budgets] == list(case.sites)
    for budget in privacy.budgets:
        assert (budget.cap_epsilon, budget.cap_delta) == cap
        assert 0 < budget.spent_epsilon < budget.cap_epsilon
        assert 0 < budget.left_epsilon < budget.cap_epsilon
        assert 0.1 < budget.spent_share < 0.9
    assert len(privacy.curve) == 6
    assert privacy.epsilon_colluders in [point.epsilon for point in privacy.curve]
    assert privacy.curve[0].accuracy < privacy.curve[-1].accuracy
    assert privacy.baselines is not None
    assert list(privacy.baselines.local) == list(case.sites)
    assert privacy.audit is None or privacy.audit.verdict == "consistent with the claim"


def test_with_privacy_it_is_better_together(finished: Path) -> None:
    """Wide margins: noise is drawn anew in each run."""
    report = load_report(finished / "report.json")
    assert report.privacy is not None
    assert report.privacy.baselines is not None
    assert report.metrics.federated > 0.88
    assert report.metrics.federated > report.privacy.baselines.centralised - 0.07
    assert report.metrics.federated > min(report.privacy.baselines.local.values()) + 0.05


def test_without_privacy_it_is_about_as_good_as_one_place(bare: Path) -> None:
    metrics = load_report(bare / "report.json").metrics
    assert metrics.centralised is not None
    assert metrics.federated > 0.95
    assert metrics.federated > metrics.centralised - 0.03
    assert metrics.federated > min(metrics.local.values())


def test_without_privacy_nothing_is_claimed(bare: Path) -> None:
    report = load_report(bare / "report.json")
    assert report.privacy is None
    assert any("No differential privacy" in line for line in report.not_protected)
    assert '<h2 id="h-given">' not in (bare / "report.html").read_text(encoding="utf-8")
    assert not (bare / "ledgers").exists()


def test_the_table_shows_accuracies_with_privacy_and_without(finished: Path, bare: Path) -> None:
    report = load_report(finished / "report.json")
    lines = _in_words(report, finished).splitlines()
    assert lines[2].split() == ["private", "without"]
    assert lines[3].split()[2:] == ["Together"]
    assert all(line.count("%") == 2 for line in lines[4:9])
    assert any(
        line.startswith("Privacy: epsilon 2.36 against the hub and every reader, 3.00") for line in lines
    )
    assert any(line.startswith("Budget of each hospital: epsilon 6 in all, 3.") for line in lines)
    plain = _in_words(load_report(bare / "report.json"), bare)
    assert "rivacy" not in plain
    assert "psilon" not in plain


def test_the_certificate_is_the_one_named(finished: Path) -> None:
    certificate = load_report(finished / "report.json").certificate
    for path, digest in (
        (finished / certificate.path, certificate.sha256),
        (finished / "release" / "model.safetensors", certificate.model_sha256),
    ):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert certificate.cosignatures >= certificate.cosignatures_required


def test_the_command_that_the_report_shows_verifies(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = load_report(finished / "report.json").verify_command.split()
    assert command[:2] == ["cloister", "verify"]
    assert run(command[1:]) == 0
    assert "verifies" in capsys.readouterr().out


def test_no_row_lies_in_the_open(finished: Path) -> None:
    """The identifiers of the rows occur in no file of the run."""
    for path in finished.rglob("*"):
        if path.is_file():
            assert b"wdbc-" not in path.read_bytes(), path


def test_what_people_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["demo", "diagnosis", "--out", str(out), "--lang", "zh"]) == 0
    shown = capsys.readouterr()
    assert "四家医院共同训练了一个模型。" in shown.out
    assert "仅 meadow" in shown.out
    assert "隐私：面对中心和所有读者 epsilon 为 2.36，" in shown.out
    assert "每家医院的预算：epsilon 总共 6，已用 3." in shown.out
    assert str(out / "report.html") in shown.out
    assert f"cloister verify {out / 'release'} --trust {out / 'trust'}" in shown.out
    assert "✓ 7/7 发布" in shown.err
    assert 'lang="zh-CN"' in (out / "report.html").read_text(encoding="utf-8")

    # again, into the same folder: an earlier run is replaced as a whole, and stdout holds JSON alone
    assert run(["demo", "--no-privacy", "--out", str(out), "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["privacy"] is None
    assert found["metrics"]["federated"] == load_report(out / "report.json").metrics.federated
    assert found["report_html"] == str(out / "report.html")
    assert "✓ 7/7 release" in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "diagnosys"], "Did you mean 'diagnosis'?"),
        (["demo", "--lang", "fr"], "fr"),
        (["demo", "heart"], "processed.cleveland.data"),
        (["demo", "heart", "--data", "nowhere"], "processed.cleveland.data is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert run(["demo", "--out", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_any_stage_leaves_nothing(stage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_case(
            find_case("diagnosis"),
            data_dir=None,
            out=tmp_path / "out",
            progress=_Quiet(at_stage=stage),
        )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_a_round_keeps_the_earlier_run(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        run_case(find_case("diagnosis"), data_dir=None, out=finished, progress=_Quiet(at_round=7))
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert after == before
    assert [path.name for path in finished.parent.iterdir()] == ["out"]


def test_ctrl_c_ends_the_command_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cloister.pipeline.run_case", interrupted)
    assert run(["demo", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("Interrupted")


def test_a_real_interrupt_of_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from cloister.cli.main import main; main()", "demo", "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("✓ 2/7"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cloister.pipeline.write_report", full)
    assert run(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_help_imports_neither_matplotlib_nor_numpy() -> None:
    code = (
        "import sys; from cloister.cli.main import run; run(['--help']); run(['demo', '--help']);"
        "sys.exit(bool({'matplotlib', 'numpy', 'pyarrow', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_writing_a_report_is_all_that_imports_matplotlib() -> None:
    code = "import sys, cloister.report, cloister.cases, cloister.cli.demo; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_an_unknown_case_is_refused_before_anything_is_made() -> None:
    with pytest.raises(InputError):
        find_case("nothing")


@pytest.mark.parametrize(
    ("on_path", "begins"), [(True, "cloister verify"), (False, "'my env/bin/cloister' verify")]
)
def test_the_printed_command_is_one_that_runs_here(
    monkeypatch: pytest.MonkeyPatch, on_path: bool, begins: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/cloister" if on_path else None)
    monkeypatch.setattr(sys, "argv", ["my env/bin/cloister", "demo"])
    assert _runnable("cloister verify out/release --trust out/trust").startswith(begins)


def test_a_folder_that_is_not_used_is_told(tmp_path: Path, capsys: Any) -> None:
    command = ["demo", "--no-privacy", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--json"]
    assert run(command) == 0
    assert "--data is not used" in capsys.readouterr().err
