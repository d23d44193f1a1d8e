"""`cloister he`: a card, encrypted rows, encrypted scores, answers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.cli.homes import be, make_homes, tampered
from tests.governance.releases import World, identity, make_world
from tests.runtime.workers.walls import needs_walls

from cloister.cli.main import run
from cloister.crypto import open_bytes, seal_bytes, sealed_recipients
from cloister.governance.folder import MODEL
from cloister.inference import Predictor, load_model

pytest.importorskip("tenseal")

ROWS = b"patient,age,pressure,pain\np-1,40,120.5,none\np-2,77,180,typical\np-3,18,60,atypical\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("he"))
    people = (world.hub, *world.sites, identity("client"), identity("server"))
    make_homes(world.root, {each.name: each for each in people})
    world.release()
    (world.root / "rows.csv").write_bytes(ROWS)
    return world


@pytest.fixture
def work(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    needs_walls()
    monkeypatch.chdir(tmp_path)
    be(monkeypatch, world.root, "server")
    return tmp_path


def prepared(world: World, monkeypatch: pytest.MonkeyPatch, rows: Path | None = None) -> None:
    """card.json by the server, rows.ckks and key.ckks by the client, scores.ckks by the server; client's turn."""
    be(monkeypatch, world.root, "server")
    assert run(["he", "card", str(world.root / "release"), "--out", "card.json"]) == 0
    be(monkeypatch, world.root, "client")
    file = str(rows or world.root / "rows.csv")
    assert run(["he", "encrypt", "card.json", file, "--out", "rows.ckks", "--key", "key.ckks"]) == 0
    be(monkeypatch, world.root, "server")
    assert run(["he", "score", str(world.root / "release"), "rows.ckks", "--out", "scores.ckks"]) == 0
    be(monkeypatch, world.root, "client")


def expected(world: World) -> pa.Table:
    return Predictor.of(load_model(world.root / "release" / MODEL)).predict_file(world.root / "rows.csv")


def agree(found: pa.Table, wanted: pa.Table) -> None:
    assert found.column_names == ["prediction", "probability"]
    assert found["prediction"].equals(wanted["prediction"])
    for own, other in zip(found["probability"].to_pylist(), wanted["probability"].to_pylist(), strict=True):
        assert own == pytest.approx(other, abs=1e-5)


def test_from_card_to_answers(
    world: World, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(world, monkeypatch)
    said = capsys.readouterr().out
    assert "4 numbers a row" in said
    assert "sealed to you" in said
    assert "bytes a row, 32 in the clear" in said
    assert (work / "key.ckks").stat().st_mode & 0o777 == 0o600
    assert sealed_recipients(work / "key.ckks") == (identity("client").fingerprint,)
    assert run(["he", "open", "scores.ckks", "--key", "key.ckks", "--from", "server", "--out", "a.csv"]) == 0
    captured = capsys.readouterr()
    assert "3 answers are in a.csv, unencrypted." in captured.out
    assert "0 rows could have another class" in captured.out
    assert captured.err == ""
    agree(pyarrow.csv.read_csv(work / "a.csv"), expected(world))
    assert (work / "a.csv").stat().st_mode & 0o777 == 0o600


def test_answers_may_be_sealed_and_without_a_signature_one_is_told(
    world: World, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(world, monkeypatch)
    capsys.readouterr()
    arguments = [
        "he",
        "open",
        "scores.ckks",
        "--key",
        "key.ckks",
        "--to",
        "server",
        "--format",
        "parquet",
        "--json",
    ]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "--from" in captured.err
    assert (result["rows"], result["doubtful"], result["signed_by"]) == (3, 0, None)
    assert result["sealed_to"] == [identity("server").fingerprint]
    assert 0.0 < result["noise"] < result["error"] < 1e-5
    content = open_bytes((work / "scores.ckks.parquet.sealed").read_bytes(), identity("server"))
    agree(pyarrow.parquet.read_table(io.BytesIO(content)), expected(world))


def test_sealed_rows_and_an_unprotected_key(
    world: World, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = work / "rows.sealed"
    sealed.write_bytes(seal_bytes(ROWS, [identity("client").public]))
    prepared(world, monkeypatch, sealed)
    again = [
        "he",
        "encrypt",
        "card.json",
        str(sealed),
        "--out",
        "r",
        "--key",
        "k",
        "--unprotected-key",
        "--json",
    ]
    assert run(again) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 3)[-1])["key_sealed"] is False
    be(monkeypatch, world.root, "server")
    assert run(["he", "score", str(world.root / "release"), "r", "--out", "s", "--unsigned"]) == 0
    assert run(["he", "open", "s", "--key", "k", "--out", "a.csv"]) == 0  # whoever has that key
    agree(pyarrow.csv.read_csv(work / "a.csv"), expected(world))


def test_a_report(world: World, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows = str(world.root / "release"), str(world.root / "rows.csv")
    assert run(["he", "report", model, rows]) == 0
    text = capsys.readouterr().out
    assert "milliseconds a row" in text
    assert "classes that differ: 0" in text
    assert run(["he", "report", model, rows, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label_flips"] == 0


def test_refusals_leave_nothing_behind(
    world: World, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(world, monkeypatch)
    before = {path: path.read_bytes() for path in work.iterdir()}
    rows, release = str(world.root / "rows.csv"), str(world.root / "release")
    bad = work / "bad.csv"
    bad.write_bytes(ROWS.replace(b"77", b"177"))
    before[bad] = bad.read_bytes()
    lines = [
        (["encrypt", "card.json", rows, "--out", "rows.ckks", "--key", "k"], 2, "exists"),
        (["encrypt", "card.json", rows, "--out", "r", "--key", "r"], 2, "two files"),
        (["encrypt", "card.json", str(bad), "--out", "r", "--key", "k"], 2, "line 3, column age"),
        (["encrypt", "card.json", "nowhere.csv", "--out", "r", "--key", "k"], 2, "no such file of rows"),
        (["encrypt", rows, rows, "--out", "r", "--key", "k"], 2, "not a card"),
        (["score", release, "scores.ckks", "--out", "s"], 2, "another kind: scores"),
        (["score", release, rows, "--out", "s"], 2, "not a file of encrypted scoring"),
        (["open", "rows.ckks", "--key", "key.ckks", "--out", "a"], 2, "another kind: rows"),
        (["open", "scores.ckks", "--key", "scores.ckks", "--out", "a"], 2, "another kind: scores"),
        (["open", "scores.ckks", "--key", "key.ckks", "--from", "hub", "--out", "a"], 1, "known keys"),
        (["open", "scores.ckks", "--key", "key.ckks", "--from", "nobody", "--out", "a"], 2, "nobody"),
    ]
    for arguments, code, words in lines:
        capsys.readouterr()
        assert run(["he", *arguments]) == code, arguments
        assert words in capsys.readouterr().err, arguments
    assert {path: path.read_bytes() for path in work.iterdir()} == before


def test_homes_without_an_identity_are_told_what_to_do(
    world: World, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(world, monkeypatch)
    monkeypatch.setenv("CLOISTER_HOME", str(work / "empty"))
    rows, release = str(world.root / "rows.csv"), str(world.root / "release")
    for arguments, way_out in (
        (["encrypt", "card.json", rows, "--out", "r", "--key", "k"], "--unprotected-key"),
        (["score", release, "rows.ckks", "--out", "s"], "--unsigned"),
    ):
        capsys.readouterr()
        assert run(["he", *arguments]) == 2
        assert way_out in capsys.readouterr().err


def test_the_release_is_verified_first(world: World, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tampered(world.root / "release", work / "broken", MODEL)
    assert run(["he", "card", str(broken), "--out", "c"]) == 1
    assert not (work / "c").exists()
    assert run(["he", "card", str(broken), "--out", "c", "--unverified"]) == 0
    assert "NOT verified" in capsys.readouterr().err
