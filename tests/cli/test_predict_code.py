"""`cloister predict --allow-user-code`: a module's file, by its hash, in the worker and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from tests.cli.conftest import Command
from tests.cli.homes import be
from tests.cli.test_private_study import MODULE, budgets, homes, made, sites, write_plan  # noqa: F401
from tests.inference.modules import CODE, make_module
from tests.runtime.parties import table
from tests.runtime.workers.walls import needs_walls

from cloister.cli.main import run
from cloister.crypto import Identity, open_bytes
from cloister.governance.folder import MODEL
from cloister.inference.torchpredict import torch_predictor

pytest.importorskip("torch", reason="needs the extra torch")

ROWS = b"patient,age,pain,fluid\np-1,40,none,1.5\np-2,77,typical,\np-3,18,atypical,0\n"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder with the model alone: what is tested here is after the verification."""
    needs_walls()
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / MODEL).write_bytes(make_module(scratch=tmp_path).to_bytes())
    (tmp_path / "model.py").write_bytes(CODE)
    (tmp_path / "rows.csv").write_bytes(ROWS)
    return folder


@pytest.mark.parametrize("worker", ["sandboxed", "inside"])
def test_the_file_predicts_where_it_may(
    release: Path,
    tmp_path: Path,
    cloister: Command,
    worker: str,
) -> None:
    be_of = ["predict", release, tmp_path / "rows.csv", "--unverified", "--plaintext", "--worker", worker]
    done = cloister(*be_of, "--allow-user-code", tmp_path / "model.py", "--out", tmp_path / "answers")
    assert done.code == 0, done.err
    assert ("code runs in this process" in done.err) == (worker == "inside")
    found = pyarrow.csv.read_csv(tmp_path / "answers")
    artifact = make_module(scratch=tmp_path)
    expected = torch_predictor(artifact, CODE, scratch=tmp_path).predict_file(tmp_path / "rows.csv")
    assert found["prediction"].equals(expected["prediction"])
    for one, other in zip(found["probability"], expected["probability"], strict=True):
        assert one.as_py() == pytest.approx(other.as_py(), rel=1e-6)


def test_what_is_refused(release: Path, tmp_path: Path, cloister: Command) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "other.py").write_bytes(CODE + f"\nopen({str(mark)!r}, 'w').close()\n".encode())
    asked = ["predict", release, tmp_path / "rows.csv", "--unverified", "--plaintext"]
    for worker in ("sandboxed", "inside"):
        for options, code, words in (
            ([], 3, "--allow-user-code"),
            (["--allow-user-code", tmp_path / "other.py"], 1, "SHA-256"),
            (["--allow-user-code", tmp_path / "absent.py"], 2, "absent.py"),
        ):
            done = cloister(*asked, "--worker", worker, *options, "--out", tmp_path / "answers")
            assert done.code == code
            assert words in done.err
    (tmp_path / "rows.csv").write_bytes(ROWS + b"p-4,17,none,1\n")
    done = cloister(*asked, "--allow-user-code", tmp_path / "model.py", "--out", tmp_path / "answers")
    assert done.code == 2
    assert "line 5, column age" in done.err
    assert not mark.exists()
    assert not (tmp_path / "answers").exists()


def test_the_process_with_the_keys_runs_none_of_it(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloister.learning.torch

    def never(*given: object) -> None:
        raise AssertionError("a user's code ran beside the keys")

    before = {name for name in sys.modules if name.startswith("cloister_user_code")}
    monkeypatch.setattr(cloister.learning.torch, "load_factory", never)
    asked = ["predict", str(release), str(tmp_path / "rows.csv"), "--unverified", "--plaintext"]
    asked += ["--allow-user-code", str(tmp_path / "model.py"), "--out", str(tmp_path / "answers")]
    assert run(asked) == 0
    assert {name for name in sys.modules if name.startswith("cloister_user_code")} == before


@pytest.mark.slow
def test_a_module_from_its_study_to_predictions_of_a_dataset(
    made: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needs_walls()
    budgets(made, monkeypatch)
    code = made / "model.py"
    code.write_text(MODULE)
    allowed = ["--allow-user-code", str(code)]
    plan = write_plan(made, "--model", "torch", *allowed)
    assert run(["study", "run", str(plan), *sites(made), *allowed]) == 0
    assert run(["release", "loans", "--out", str(made / "out"), *sites(made)]) == 0
    be(monkeypatch, made, "north")
    answers = made / "answers"
    asked = ["predict", str(made / "out"), "--dataset", "rows", "--out", str(answers)]
    assert run([*asked, "--to", "north"]) == 3
    assert run([*asked, "--to", "south", *allowed]) == 3
    assert "these rows have a budget" in capsys.readouterr().err
    assert run([*asked, "--to", "north", *allowed]) == 0
    north = Identity.load(made / "north" / "identity.json", (made / "passphrase").read_text().strip())
    found = pyarrow.csv.read_csv(pa.BufferReader(open_bytes(answers.read_bytes(), north)))
    assert found.num_rows == table(60, 0).num_rows
    assert found.column_names == ["prediction", "probability"]
