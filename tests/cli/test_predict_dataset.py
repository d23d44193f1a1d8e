"""`cloister predict --dataset`: rows of the vault, for their purpose, to whom a budget allows; and models that are code."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.cli.homes import PASSPHRASE, be, make_homes
from tests.enclave.broker.world import Home, InsecureAttesterDouble, permission, served
from tests.enclave.broker.world import identity as known
from tests.governance.releases import PURPOSE, World, identity, make_world, schema
from tests.runtime.workers.walls import needs_walls

from cloister.cli.brokerkeys import broker_keys, keep_broker
from cloister.cli.evidence import HomeEvidence
from cloister.cli.main import run
from cloister.crypto import ScryptCost, open_bytes, sha256
from cloister.governance.folder import MODEL
from cloister.inference import Predictor, load_model
from cloister.vault import LocalKeystore, SplitKeys, Vault
from cloister.vault.checkedfile import DATA_NAME
from cloister.vault.parquet import EncryptedFile

ROWS = 300


def table(first: int = 0, rows: int = ROWS) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table(
        {
            "age": [20 + number % 60 for number in numbers],
            "pressure": [100.0 + number / 16 for number in numbers],
            "pain": [("none", "typical", "atypical")[number % 3] for number in numbers],
            "patient": [f"canary-{number}" for number in numbers],
            "disease": [number % 2 == 0 for number in numbers],
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("batch"))
    people = (world.hub, *world.sites, identity("reader"), identity("server"))
    make_homes(world.root, {each.name: each for each in people})
    world.release()
    vault = Vault.unlock(
        world.root / "server" / "vault", identity("server"), PASSPHRASE, cost=ScryptCost(n=2**14)
    )
    vault.add_table(table(), name="patients", schema=schema(), purposes=[PURPOSE])
    vault.add_table(table(900), name="several", schema=schema(), purposes=[PURPOSE, "billing"])
    return world


@pytest.fixture(autouse=True)
def _as_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_walls()
    be(monkeypatch, world.root, "server")


def predict(world: World, *arguments: object) -> int:
    return run(["predict", str(world.root / "release"), *map(str, arguments)])


def expected(world: World, rows: pa.Table) -> pa.Table:
    return Predictor.of(load_model(world.root / "release" / MODEL)).predict(rows)


@pytest.mark.parametrize("worker", ["sandboxed", "inside"])
@pytest.mark.parametrize("output", ["csv", "parquet"])
def test_a_dataset_is_predicted_and_sealed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], worker: str, output: str
) -> None:
    out = tmp_path / "answers"
    arguments = ["--dataset", "patients", "--to", "reader", "--to", "server", "--format", output]
    assert predict(world, *arguments, "--worker", worker, "--out", out, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "dataset": "patients",
        "purpose": PURPOSE,
        "out": str(out),
        "rows": ROWS,
        "columns": ["prediction", "probability"],
        "sealed_to": [identity("reader").fingerprint, identity("server").fingerprint],
        "verified": True,
    }
    assert ("WARNING" in printed.err) == (worker == "inside")
    assert out.stat().st_mode & 0o777 == 0o600
    for name in ("reader", "server"):
        opened = io.BytesIO(open_bytes(out.read_bytes(), identity(name)))
        found = pyarrow.csv.read_csv(opened) if output == "csv" else pyarrow.parquet.read_table(opened)
        assert found.equals(expected(world, table()))


def test_this_process_opens_no_row_of_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **options: Any) -> None:
        raise AssertionError("rows were opened beside the keys")

    monkeypatch.setattr(EncryptedFile, "batches", never)
    out = tmp_path / "answers"
    assert predict(world, "--dataset", "patients", "--to", "reader", "--out", out) == 0
    assert open_bytes(out.read_bytes(), identity("reader")).count(b"\n") == ROWS + 1


def test_the_file_is_named_after_the_dataset(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict(world, "--dataset", "patients", "--to", "reader") == 0
    assert f"{ROWS} predictions are in patients.predictions.csv.sealed" in capsys.readouterr().out
    assert predict(world, "--dataset", "patients", "--to", "reader") == 2
    assert "use --force" in capsys.readouterr().err
    assert predict(world, "--dataset", "patients", "--to", "reader", "--force") == 0


def test_purposes(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["--to", "reader", "--out", tmp_path / "answers"]
    assert predict(world, "--dataset", "patients", "--purpose", "marketing", *some) == 3
    assert "may not be used for 'marketing'" in capsys.readouterr().err
    assert predict(world, "--dataset", "several", *some) == 2
    assert "--purpose, one of" in capsys.readouterr().err
    for worker in ("sandboxed", "inside"):
        asked = ["--dataset", "several", "--purpose", "marketing", "--worker", worker]
        assert predict(world, *asked, *some) == 3
    assert not (tmp_path / "answers").exists()
    assert predict(world, "--dataset", "several", "--purpose", "billing", *some) == 0


def test_what_is_refused_outright(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "answers")]
    cases = [
        (["--to", "reader"], 2, "either a file, or --dataset"),
        (["rows.csv", "--dataset", "patients", "--to", "reader"], 2, "either a file, or --dataset"),
        (["rows.csv", "--purpose", PURPOSE, "--to", "reader"], 2, "no purposes"),
        (["--dataset", "patients"], 2, "--to"),
        (["--dataset", "patients", "--plaintext"], 3, "nobody could say who reads them"),
        (["--dataset", "patients", "--plaintext", "--to", "server"], 3, "cloister open"),
        (["--dataset", "nothing", "--to", "reader"], 2, "nothing"),
        (["--dataset", "../patients", "--to", "reader"], 2, "not allowed"),
        (["--dataset", "patients", "--to", "reader", "--allow-user-code", __file__], 2, "no code"),
    ]
    for arguments, code, words in cases:
        assert predict(world, *arguments, *out) == code, arguments
        said = capsys.readouterr().err
        assert words in said, arguments
        assert "Traceback" not in said
    assert not (tmp_path / "answers").exists()


def test_an_altered_dataset_is_not_predicted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world.root / "server", tmp_path / "server")
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    (tmp_path / "passphrase").chmod(0o600)
    be(monkeypatch, tmp_path, "server")
    path = next((tmp_path / "server" / "vault").glob(f"**/patients/**/{DATA_NAME}"))
    whole = path.read_bytes()
    for data in (
        whole[:-1],
        whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
    ):
        path.write_bytes(data)
        for worker in ("sandboxed", "inside"):
            out = tmp_path / "answers"
            asked = ["--dataset", "patients", "--to", "server", "--out", out, "--worker", worker]
            assert predict(world, *asked) == 1
            assert not out.exists()
            assert "canary" not in capsys.readouterr().err


def test_rows_with_a_budget_are_told_to_their_owner_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world.root / "server", tmp_path / "server")
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    (tmp_path / "passphrase").chmod(0o600)
    be(monkeypatch, tmp_path, "server")
    assert run(["budget", "patients", "--epsilon", "8", "--delta", "1e-4"]) == 0
    out = ["--out", str(tmp_path / "answers")]
    capsys.readouterr()
    for worker in ("sandboxed", "inside"):
        for readers in (["--to", "reader"], ["--to", "server", "--to", "reader"]):
            asked = ["--dataset", "patients", "--worker", worker, *readers, *out]
            assert predict(world, *asked) == 3
            said = capsys.readouterr().err
            assert "these rows have a budget" in said
            assert "--to server" in said
    assert not (tmp_path / "answers").exists()
    assert predict(world, "--dataset", "patients", "--to", "server", *out) == 0
    assert (
        predict(world, "--dataset", "several", "--purpose", "billing", "--to", "reader", *out, "--force") == 0
    )
    assert run(["predict", str(world.root / "release"), "--dataset", "patients", "--to", "reader"]) == 3


def test_what_a_broker_keeps_is_opened_by_an_attested_worker_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker believes a double's evidence here; without any, or inside, there is no key."""
    home, alice = Home(tmp_path / "broker"), known("alice")
    make_homes(tmp_path, {"alice": alice, **{each.name: each for each in (world.hub, *world.sites)}})
    be(monkeypatch, tmp_path, "alice")
    root = tmp_path / "alice" / "vault"
    local = LocalKeystore.initialise(root / "keystore.json", PASSPHRASE, cost=ScryptCost(n=2**14))
    with served(home, tmp_path / "socket") as socket:
        keep_broker(root, socket, known("broker").public)
        keys = broker_keys(socket, known("broker").public, alice)
        vault = Vault(root, alice, SplitKeys(local, keys, new=True))
        manifest = vault.add_table(table(), name="patients", schema=schema(), purposes=[PURPOSE])
        digest = sha256(vault.hand_over("patients", purpose=PURPOSE).envelope).hex()
        keys.allow(permission(1, kek_id=manifest.kek_id, manifest=digest, plan=None, purpose=PURPOSE))
        keys.close()
        asked = ["--out", tmp_path / "answers", "--dataset", "patients", "--to", "alice"]
        assert predict(world, *asked, "--worker", "inside") == 3
        assert "attested workers alone" in capsys.readouterr().err
        monkeypatch.setattr(
            HomeEvidence, "attest", lambda self, data: InsecureAttesterDouble("bb" * 32).attest(data)
        )
        assert predict(world, *asked) == 3
        assert "none of the accepted images" in capsys.readouterr().err
        assert not (tmp_path / "answers").exists()
        monkeypatch.setattr(HomeEvidence, "attest", lambda self, data: InsecureAttesterDouble().attest(data))
        assert predict(world, *asked) == 0
        assert predict(world, *asked, "--force") == 3  # its one use is over
    home.close()
    found = pyarrow.csv.read_csv(io.BytesIO(open_bytes((tmp_path / "answers").read_bytes(), alice)))
    assert found.equals(expected(world, table()))
