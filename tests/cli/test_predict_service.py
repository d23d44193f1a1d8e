"""`cloister predict https://SERVICE`: a table model that is served somewhere, asked by a client that verified it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest
from tests.cli.homes import PASSPHRASE, be, make_homes
from tests.enclave.doubles import AppraiserDouble, AttesterDouble
from tests.inference.artifacts import make_artifact
from tests.inference.batchworld import OWNER, READER, add, table
from tests.inference.client.doubles import DIGEST, TOKEN, ServiceDouble, running
from tests.inference.modules import CODE, make_module
from tests.inference.service.real import running as served

from cloister.cli.main import run
from cloister.crypto import ScryptCost, open_bytes, seal_bytes, sha256
from cloister.enclave.policy import EnclavePolicy
from cloister.inference import Predictor, servicescores
from cloister.inference.client import privateclient
from cloister.inference.client.verify import Verifier
from cloister.inference.exchange import KeyRing
from cloister.inference.openai import TableApp
from cloister.inference.service import TableModel
from cloister.inference.torchpredict import torch_predictor
from cloister.learning.sections import ModelSection
from cloister.vault import Vault

PREDICTOR = Predictor.of(make_artifact("boolean", ModelSection(kind="logistic")))
ROWS = b"patient,age,pain,fluid\ncanary-row,40,none,1.5\np-2,77,typical,\np-3,18,atypical,0\n"
FEATURES = ["age", "pain", "fluid"]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("homes")
    make_homes(root, {"owner": OWNER, "reader": READER})
    vault = Vault.unlock(root / "owner" / "vault", OWNER, PASSPHRASE, cost=ScryptCost(n=2**14))
    add(vault, table(80))
    (root / "token").write_text(TOKEN + "\n")
    (root / "token").chmod(0o600)
    (root / "rows.csv").write_bytes(ROWS)
    return root


@pytest.fixture
def world(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, ServiceDouble, str]]:
    """The owner's home, and a service whose evidence a double of the appraiser believes."""

    def verifier_of(policy: EnclavePolicy, *, model_digest: str = "") -> Verifier:
        appraiser = AppraiserDouble(software=policy.allow_software_tee)
        return Verifier(appraiser, policy_digest="cd" * 32, model_digest=model_digest)

    monkeypatch.setattr(privateclient, "verifier_of", verifier_of)
    be(monkeypatch, homes, "owner")
    service = ServiceDouble(TableApp(PREDICTOR, "heart"))
    with running(service) as url:
        yield homes, service, url


def predict(world: Any, *arguments: object) -> int:
    root, _, url = world
    return run(["predict", url, *map(str, arguments), "--token-file", str(root / "token")])


@pytest.mark.parametrize("sealed", [False, True])
def test_a_file_is_asked_about_and_the_answers_are_sealed(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], sealed: bool
) -> None:
    root, service, _ = world
    file = tmp_path / "rows"
    file.write_bytes(seal_bytes(ROWS, [OWNER.public]) if sealed else ROWS)
    out, kept = tmp_path / "answers", tmp_path / "receipts"
    options = ["--to", "reader", "--out", out, "--receipts", kept, "--json"]
    assert predict(world, file, *options) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["rows"], result["model_digest"], result["protection"]) == (3, DIGEST, "hardware")
    assert result["sealed_to"] == [READER.fingerprint]
    assert "Rows are read in this process" in printed.err
    expected = PREDICTOR.predict_file(root / "rows.csv")
    assert pyarrow.csv.read_csv(io.BytesIO(open_bytes(out.read_bytes(), READER))).equals(expected)
    assert service.credentials == [TOKEN]
    assert b"canary" not in service.wire
    assert len(kept.read_bytes().splitlines()) >= 1


def test_a_long_run_says_how_far_it_is(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cloister.cli.predictservice._TELL_SECONDS", 0.0)
    monkeypatch.setattr(servicescores, "CHUNK", 2)
    file = tmp_path / "rows.csv"
    file.write_bytes(ROWS)
    assert predict(world, file, "--to", "owner", "--out", tmp_path / "answers") == 0
    said = capsys.readouterr().err
    assert "2 rows are answered ..." in said
    assert "3 rows are answered ..." in said


def test_a_dataset_sends_its_features_and_nothing_else(world: Any, tmp_path: Path) -> None:
    _, service, _ = world
    out = tmp_path / "answers"
    assert predict(world, "--dataset", "patients", "--to", "owner", "--out", out) == 0
    sent = [json.loads(request.body)["columns"] for request in service.asked]
    assert [sorted(each) for each in sent] == [sorted(FEATURES)]
    expected = PREDICTOR.predict(table(80))
    assert pyarrow.csv.read_csv(io.BytesIO(open_bytes(out.read_bytes(), OWNER))).equals(expected)
    named = [text for name in FEATURES for text in ("--column", name)]
    assert predict(world, "--dataset", "patients", "--to", "owner", "--out", out, "--force", *named) == 0


def test_bad_rows_are_named_by_their_line(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "rows.csv", tmp_path / "answers"
    for content, place in (
        (ROWS + b"p-4,17,none,1\n", "line 5, column age"),
        (ROWS + b"p-4,50\n", "line 5"),
        (ROWS + b'"p\n4",50,none,1\np-5,50,severe,1\n', "line 7, column pain"),
        (ROWS.splitlines()[0] + b"\n", "no rows"),
    ):
        file.write_bytes(content)
        assert predict(world, file, "--plaintext", "--out", out) == 2
        said = capsys.readouterr().err
        assert place in said
        assert "severe" not in said
    assert predict(world, file, "--plaintext", "--out", out, "--column", "height") == 2
    assert not out.exists()


def test_options_belong_together(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, service, _ = world
    rows = root / "rows.csv"
    for options in (["--unverified"], ["--worker", "inside"], ["--reference", rows], ["--trust", rows]):
        assert predict(world, rows, "--plaintext", "--out", tmp_path / "answers", *options) == 2
        assert "Leave --reference" in capsys.readouterr().err
    assert predict(world, "--dataset", "patients", "--plaintext") == 3
    assert run(["predict", str(root), str(rows), "--plaintext", "--token-file", str(root / "token")]) == 2
    assert "Leave them out" in capsys.readouterr().err
    assert service.outside == []


def test_a_service_that_does_not_pass_is_sent_nothing(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, service, _ = world
    asked = [root / "rows.csv", "--to", "reader", "--out", tmp_path / "answers"]
    assert predict(world, *asked, "--model-digest", "11" * 32) in (1, 3)
    service.attester = AttesterDouble(hardware=False)
    assert predict(world, *asked) == 3
    assert "hardware" in capsys.readouterr().err
    service.attester = AttesterDouble(maker=b"somebody else")
    assert predict(world, *asked) in (1, 3)
    assert service.asked == []
    assert not (tmp_path / "answers").exists()


def test_another_model_on_the_way_ends_it(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is started anew with another model between two chunks; the client verifies it anew, and stops."""
    root, service, _ = world
    monkeypatch.setattr(servicescores, "CHUNK", 2)
    score = service.app._score

    async def scored_and_exchanged(request: Any) -> Any:
        service.ring = KeyRing("other", "ef" * 32, lifetime=3600, overlap=600, max_body=1 << 20)
        return await score(request)

    monkeypatch.setattr(service.app, "_score", scored_and_exchanged)
    out = tmp_path / "answers"
    assert predict(world, root / "rows.csv", "--to", "reader", "--out", out) == 1
    assert "no receipt of the model that was verified" in capsys.readouterr().err
    assert not out.exists()


def test_purpose_and_budget_hold_here_too(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, service, _ = world
    shutil.copytree(root / "owner", tmp_path / "owner")
    shutil.copy(root / "passphrase", tmp_path / "passphrase")
    be(monkeypatch, tmp_path, "owner")
    out = ["--dataset", "patients", "--out", tmp_path / "answers"]
    assert predict(world, *out, "--to", "owner", "--purpose", "marketing") == 3
    assert predict(world, *out, "--to", "reader") == 0
    assert run(["budget", "patients", "--epsilon", "8", "--delta", "1e-3"]) == 0
    before = len(service.asked)
    capsys.readouterr()
    assert predict(world, *out, "--to", "reader", "--force") == 3
    assert "these rows have a budget" in capsys.readouterr().err
    lax = tmp_path / "policy.toml"
    lax.write_text(_LAX)
    service.attester = AttesterDouble(hardware=False)
    assert predict(world, *out, "--to", "owner", "--force", "--policy", lax) == 3
    assert "These rows have a budget: evidence" in capsys.readouterr().err
    assert len(service.asked) == before
    rows = root / "rows.csv"
    assert predict(world, rows, "--to", "owner", "--out", tmp_path / "more", "--policy", lax) == 0
    assert "NOT HARDWARE-PROTECTED" in capsys.readouterr().err
    service.attester = AttesterDouble()
    assert predict(world, *out, "--to", "owner", "--force", "--policy", lax) == 0


_LAX = """
kinds = ["tpm"]
allow_software_tee = true
"""


@pytest.mark.parametrize("kind", ["logistic", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_service_behind_its_walls(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root, _, _ = world
    code = None
    artifact = PREDICTOR.artifact
    if kind == "torch":
        pytest.importorskip("torch", reason="needs the extra torch")
        artifact, code = make_module(scratch=tmp_path), CODE
    out = tmp_path / "answers"
    with served(TableModel(artifact, code=code)) as here:
        asked = [here.url, "--dataset", "patients", "--to", "owner", "--out", str(out), "--json"]
        assert run(["predict", *asked]) == 0
        assert run(["predict", here.url, str(root / "rows.csv"), "--plaintext", "--out", str(out) + "2"]) == 0
    said = json.loads(capsys.readouterr().out.partition("\n}\n")[0] + "}")
    assert said["model_digest"] == sha256(artifact.to_bytes()).hex()
    found = pyarrow.csv.read_csv(io.BytesIO(open_bytes(out.read_bytes(), OWNER)))
    predictor = PREDICTOR if code is None else torch_predictor(artifact, code, scratch=tmp_path)
    expected = predictor.predict(table(80))
    assert found["prediction"].equals(expected["prediction"])
    assert found["probability"].to_pylist() == pytest.approx(expected["probability"].to_pylist(), rel=1e-6)
