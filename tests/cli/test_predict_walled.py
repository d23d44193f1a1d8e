"""`cloister predict` with walls and without: the same answers, and rows that the keys' process never holds."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.cli.homes import be, make_homes
from tests.governance.releases import World, identity, make_world
from tests.runtime.workers.test_launch import Ended
from tests.runtime.workers.walls import needs_walls

import cloister.crypto
from cloister.cli.main import run
from cloister.crypto import open_bytes, seal_bytes, sealedfile
from cloister.runtime.workers import launch

HEADER = b"patient,age,pressure,pain\n"
CANARY = "Wqx7-canary-of-a-row"
ROWS = HEADER + b"".join(
    f"{CANARY}-{row},{20 + row % 60},{100 + row / 8:.3f},none\n".encode() for row in range(300)
)
SCRIPT = """
import sys
from cloister.cli.main import run
code = run(sys.argv[1:])
print("code", code, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("walled"))
    people = (world.hub, *world.sites, identity("reader"), identity("server"))
    make_homes(world.root, {each.name: each for each in people})
    world.release()
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(io.BytesIO(ROWS)), parquet)
    for name, content in (("rows.csv", ROWS), ("rows.parquet", parquet.getvalue())):
        (world.root / name).write_bytes(content)
        (world.root / f"{name}.sealed").write_bytes(seal_bytes(content, [identity("server").public]))
    return world


@pytest.fixture(autouse=True)
def _as_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, world.root, "server")


def answered(world: World, rows: str, out: Path, *options: str) -> bytes:
    arguments = ["predict", str(world.root / "release"), str(world.root / rows), "--to", "reader"]
    assert run([*arguments, "--out", str(out), *options]) == 0
    return open_bytes(out.read_bytes(), identity("reader"))


@pytest.mark.parametrize("rows", ["rows.csv", "rows.csv.sealed", "rows.parquet", "rows.parquet.sealed"])
@pytest.mark.parametrize("output", ["csv", "parquet"])
def test_the_same_answers_with_walls_and_without(
    world: World, tmp_path: Path, rows: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_walls()
    walled = answered(world, rows, tmp_path / "walled", "--format", output, "--json")
    said = capsys.readouterr()
    inside = answered(world, rows, tmp_path / "inside", "--format", output, "--json", "--worker", "inside")
    aloud = capsys.readouterr()
    assert walled == inside
    assert said.out.replace("/walled", "/inside") == aloud.out.replace("/walled", "/inside")
    assert "WARNING" not in said.err
    assert "--worker inside" in aloud.err


def test_the_same_refusals_with_walls_and_without(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_walls()
    server, reader = identity("server").public, identity("reader").public
    broken = ROWS + b"p-4,17,100,none\n"
    damaged = bytearray(seal_bytes(ROWS, [server]))
    damaged[-1] ^= 1
    for content in (
        broken,
        seal_bytes(broken, [server]),
        b"",
        seal_bytes(b"", [server]),
        HEADER + b'p,"20,30,none\n',
        b"PAR1 and nothing more",
        seal_bytes(b"PAR1 and nothing more", [server]),
        seal_bytes(ROWS, [reader]),
        bytes(damaged),
        sealedfile._MAGIC + b"\0\0\0\2{}",
    ):
        file = tmp_path / "rows"
        file.write_bytes(content)
        found = []
        for options in ([], ["--worker", "inside"]):
            code = run(["predict", str(world.root / "release"), str(file), "--to", "reader", *options])
            words = capsys.readouterr().err
            found.append((code, [line for line in words.splitlines() if "WARNING" not in line]))
        assert found[0] == found[1]
        assert found[0][0] in (1, 2)
        assert CANARY not in str(found)


def test_this_process_opens_no_rows(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_walls()

    def never(*given: Any) -> None:
        raise AssertionError("rows were opened beside the keys")

    monkeypatch.setattr(sealedfile, "_open_chunks", never)
    for name in ("open_bytes", "open_with_content_key", "seal_bytes"):
        monkeypatch.setattr(cloister.crypto, name, never)
    out = tmp_path / "answers"
    arguments = ["predict", str(world.root / "release"), str(world.root / "rows.csv.sealed")]
    assert run([*arguments, "--to", "reader", "--out", str(out)]) == 0
    monkeypatch.undo()
    assert open_bytes(out.read_bytes(), identity("reader")).count(b"\n") == 301


def memory_of(pid: int) -> bytes:
    """Return everything a process can write and read, as its parent sees it."""
    found = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(each, 16) for each in place.split("-"))
                try:
                    memory.seek(start)
                    found.append(memory.read(end - start))
                except OSError:
                    continue
    return b"\0".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["sandboxed", "inside"])
def test_a_rows_value_is_nowhere_in_the_memory_beside_the_keys(
    world: World, tmp_path: Path, worker: str
) -> None:
    """With `--worker inside` it is there, which shows that the search finds what is to be found."""
    needs_walls()
    arguments = ["predict", str(world.root / "release"), str(world.root / "rows.csv.sealed")]
    arguments += ["--to", "reader", "--out", str(tmp_path / "answers"), "--worker", worker]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ),
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        try:
            memory = memory_of(process.pid)
        except PermissionError:
            pytest.skip("this machine lets nobody read a child's memory")
        finally:
            process.communicate("")
    assert lines[1] == "code 0\n"
    assert b"cloister" in memory
    assert (CANARY.encode() in memory) == (worker == "inside")
    answer = open_bytes((tmp_path / "answers").read_bytes(), identity("reader"))
    found = [line in memory for line in answer.splitlines()[150:153]]
    assert any(found) == (worker == "inside")


def test_a_machine_without_a_wall_refuses_by_name(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Ended(3, "no user namespace can be had here: Operation not permitted.")
    monkeypatch.setattr(launch, "spawn", lambda module: child)
    out = tmp_path / "answers"
    arguments = ["predict", str(world.root / "release"), str(world.root / "rows.csv"), "--to", "reader"]
    assert run([*arguments, "--out", str(out)]) == 3
    error = capsys.readouterr().err
    assert "no user namespace can be had here" in error
    assert "--worker inside" in error
    assert not out.exists()
