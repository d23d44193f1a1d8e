"""`cloister predict`: verified model, checked rows, sealed answers."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.cli.homes import be, make_homes, tampered
from tests.governance.releases import World, identity, make_world
from tests.runtime.workers.walls import needs_walls

from cloister.cli.main import run
from cloister.crypto import open_bytes, seal_bytes
from cloister.governance.folder import MODEL
from cloister.inference import Predictor, load_model

ROWS = b"patient,age,pressure,pain\np-1,40,120.5,none\np-2,77,180,typical\np-3,18,60,atypical\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("predict"))
    people = (world.hub, *world.sites, identity("reader"), identity("server"))
    make_homes(world.root, {each.name: each for each in people})
    world.release()
    world.release("sealed", recipients=[identity("server").public], created="2026-04-01T00:00:00Z")
    (world.root / "rows.csv").write_bytes(ROWS)
    return world


@pytest.fixture(autouse=True)
def _as_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_walls()
    be(monkeypatch, world.root, "server")


def expected(world: World) -> pa.Table:
    predictor = Predictor.of(load_model(world.root / "release" / MODEL))
    return predictor.predict_file(world.root / "rows.csv")


def test_answers_are_sealed_to_their_reader(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers"
    arguments = ["predict", str(world.root / "release"), str(world.root / "rows.csv"), "--to", "reader"]
    assert run([*arguments, "--out", str(out)]) == 0
    assert "3 predictions" in capsys.readouterr().out
    sealed = out.read_bytes()
    assert b"probability" not in sealed
    assert out.stat().st_mode & 0o777 == 0o600
    table = pyarrow.csv.read_csv(io.BytesIO(open_bytes(sealed, identity("reader"))))
    assert table.column_names == ["prediction", "probability"]
    assert table.equals(expected(world))
    be(monkeypatch, world.root, "reader")
    assert run(["open", str(out), "--out", str(tmp_path / "opened.csv")]) == 0
    assert (tmp_path / "opened.csv").read_bytes() == open_bytes(sealed, identity("reader"))


def test_several_readers_and_parquet(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers"
    arguments = ["predict", str(world.root / "release"), str(world.root / "rows.csv"), "--out", str(out)]
    assert run([*arguments, "--to", "reader", "--to", "server", "--format", "parquet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "out": str(out),
        "rows": 3,
        "columns": ["prediction", "probability"],
        "sealed_to": [identity("reader").fingerprint, identity("server").fingerprint],
        "verified": True,
    }
    for name in ("reader", "server"):
        opened = open_bytes(out.read_bytes(), identity(name))
        assert pyarrow.parquet.read_table(io.BytesIO(opened)).equals(expected(world))


def test_plaintext_must_be_asked_for(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes(ROWS)
    arguments = ["predict", str(world.root / "release"), str(rows)]
    assert run(arguments) == 2
    assert "--plaintext" in capsys.readouterr().err
    assert run([*arguments, "--plaintext", "--to", "reader"]) == 2
    assert list(tmp_path.iterdir()) == [rows]
    assert run([*arguments, "--plaintext"]) == 0
    assert "unencrypted" in capsys.readouterr().out
    assert pyarrow.csv.read_csv(tmp_path / "rows.csv.predictions.csv").equals(expected(world))
    assert run([*arguments, "--to", "reader"]) == 0
    assert (tmp_path / "rows.csv.predictions.csv.sealed").exists()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_sealed_rows_are_opened_in_memory_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(io.BytesIO(ROWS)), parquet)
    content = ROWS if kind == "csv" else parquet.getvalue()
    sealed, out = tmp_path / "rows.sealed", tmp_path / "answers"
    sealed.write_bytes(seal_bytes(content, [identity("server").public]))
    touched: list[str] = []
    opened = os.open

    def watch(path: object, flags: int, *rest: object, **more: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            touched.append(str(path))
        return opened(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watch)
    arguments = ["predict", str(world.root / "release"), str(sealed), "--to", "reader"]
    assert run([*arguments, "--out", str(out)]) == 0
    monkeypatch.undo()
    answer = open_bytes(out.read_bytes(), identity("reader"))
    assert pyarrow.csv.read_csv(io.BytesIO(answer)).equals(expected(world))
    assert touched
    assert all(".answers." in path for path in touched if path != os.devnull)  # the worker's standard input
    for path in tmp_path.iterdir():
        assert b"p-1" not in path.read_bytes()
        assert b"120.5" not in path.read_bytes()


def test_rows_sealed_to_somebody_else(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = tmp_path / "rows.sealed"
    sealed.write_bytes(seal_bytes(ROWS, [identity("reader").public]))
    arguments = ["predict", str(world.root / "release"), str(sealed), "--to", "reader"]
    assert run(arguments) == 2
    assert "not sealed to server" in capsys.readouterr().err
    damaged = bytearray(seal_bytes(ROWS, [identity("server").public]))
    damaged[-1] ^= 1
    sealed.write_bytes(damaged)
    assert run(arguments) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_sealed_model(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "answers"
    arguments = ["predict", str(world.root / "sealed"), str(world.root / "rows.csv"), "--to", "reader"]
    assert run([*arguments, "--out", str(out)]) == 0
    answer = open_bytes(out.read_bytes(), identity("reader"))
    assert pyarrow.csv.read_csv(io.BytesIO(answer)).equals(expected(world))
    be(monkeypatch, world.root, "reader")
    assert run([*arguments, "--out", str(tmp_path / "more")]) == 2
    assert run([*arguments, "--out", str(tmp_path / "more"), "--unverified"]) == 2
    assert not (tmp_path / "more").exists()


def test_a_release_that_does_not_verify_is_not_used(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tampered(world.root / "release", tmp_path / "release", MODEL)
    arguments = ["predict", str(folder), str(world.root / "rows.csv"), "--plaintext"]
    arguments += ["--out", str(tmp_path / "answers")]
    assert run(arguments) == 1
    assert "step 4, files" in capsys.readouterr().err
    assert not (tmp_path / "answers").exists()
    assert run([*arguments, "--unverified", "--json"]) == 0
    printed = capsys.readouterr()
    assert "NOT verified" in printed.err
    assert json.loads(printed.out)["verified"] is False


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        (ROWS + b"p-4,17,100,none\n", "line 5, column age"),
        (ROWS + b"p-4,50,100,severe\n", "line 5, column pain"),
        (ROWS + b"p-4,50,,none\n", "line 5, column pressure"),
        (ROWS + b"p-4,50\n", "line 5"),
        (ROWS.replace(b"pressure", b"weight"), "column pressure"),
        (b"", "empty"),
    ],
)
def test_rows_that_break_the_schema(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: bytes, place: str
) -> None:
    file = tmp_path / "rows.csv"
    for content in (rows, seal_bytes(rows, [identity("server").public])):
        file.write_bytes(content)
        assert run(["predict", str(world.root / "release"), str(file), "--to", "reader"]) == 2
        error = capsys.readouterr().err
        assert place in error
        assert "severe" not in error
        assert "/proc" not in error
        assert len(list(tmp_path.iterdir())) == 1


def test_bad_input(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release, rows = str(world.root / "release"), str(world.root / "rows.csv")
    for arguments in (
        [release, str(tmp_path / "absent"), "--plaintext"],
        [str(tmp_path / "absent"), rows, "--plaintext"],
        [release, rows, "--to", "nobody"],
        [release, rows, "--to", "reader", "--format", "pickle"],
    ):
        assert run(["predict", *arguments]) == 2, arguments
        assert "Traceback" not in capsys.readouterr().err


def test_no_file_is_replaced_unasked_and_the_rows_never(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "answers.csv"
    rows.write_bytes(ROWS)
    out.write_bytes(b"kept")
    arguments = ["predict", str(world.root / "release"), str(rows), "--plaintext", "--out"]
    assert run([*arguments, str(out)]) == 2
    assert "use --force" in capsys.readouterr().err
    assert out.read_bytes() == b"kept"
    assert run([*arguments, str(rows), "--force"]) == 2
    assert rows.read_bytes() == ROWS
    assert run([*arguments, str(out), "--force"]) == 0
    assert pyarrow.csv.read_csv(out).equals(expected(world))


def test_a_folder_without_a_model(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["predict", str(tmp_path / "empty"), str(world.root / "rows.csv"), "--plaintext"]
    assert run([*arguments, "--unverified", "--out", str(tmp_path / "answers")]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_local_scaling_asks_for_a_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, data={"scaling": "local"})
    make_homes(tmp_path, {each.name: each for each in (world.hub, *world.sites)})
    be(monkeypatch, tmp_path, "hub")
    world.release()
    (tmp_path / "rows.csv").write_bytes(ROWS)
    arguments = ["predict", str(tmp_path / "release"), str(tmp_path / "rows.csv"), "--plaintext"]
    assert run(arguments) == 2
    assert "local" in capsys.readouterr().err
    assert run([*arguments, "--reference", str(tmp_path / "rows.csv")]) == 0
