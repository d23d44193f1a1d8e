from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.cli.conftest import Command
from tests.cli.homes import CHEAP, PASSPHRASE

from cloister.cli import vault
from cloister.cli.releaselocal import estimate_local, release_local
from cloister.crypto import Identity
from cloister.vault import LocalKeystore, Vault, load_schema

if not {"release-local", "estimate-local"} & {each.name for each in vault.app.registered_commands}:
    vault.app.command("release-local")(release_local)
    vault.app.command("estimate-local")(estimate_local)

SCHEMA = """
[columns.customer]
type = "text"
role = "id"
[columns.score]
type = "integer"
bounds = [300, 850]
[columns.income]
type = "number"
bounds = [0, 200000]
missing = "allow"
[columns.treatment]
type = "category"
categories = ["surgery", "drug", "none"]
missing = "allow"
[columns.ill]
type = "boolean"
[columns.latitude]
type = "number"
bounds = [48.0, 48.3]
[columns.longitude]
type = "number"
bounds = [11.4, 11.8]
[columns.x]
type = "number"
bounds = [0, 400]
[columns.y]
type = "number"
bounds = [0, 300]
[columns.note]
type = "text"
"""
CANARY = "CANARY-C"
ROWS = 200


def line(i: int) -> str:
    income = "" if i % 9 == 0 else str(20_000 + 100 * i)
    treatment = ("surgery", "drug", "none", "")[i % 4]
    position = f"{48.1 + i / 10000:.5f},{11.5 + i / 10000:.5f},{i % 400},{i % 300}"
    return f"{CANARY}{i},{500 + i},{income},{treatment},{i % 2},{position},hello"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, people: dict[str, Identity]) -> Path:
    """A vault with the dataset `clients`, made once."""
    root = tmp_path_factory.mktemp("stored")
    schema = load_schema(SCHEMA.encode())
    (root / "rows.csv").write_text("\n".join([",".join(schema.columns), *map(line, range(ROWS))]) + "\n")
    keys = LocalKeystore.initialise(root / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    kept = Vault(root / "vault", people["ann"], keys)
    kept.add(root / "rows.csv", name="clients", schema=schema, purposes=["scoring"])
    kept.add(root / "rows.csv", name="shared", schema=schema, purposes=["scoring", "research"])
    return root / "vault"


@pytest.fixture
def home(homes: Path, stored: Path) -> Path:
    import shutil

    shutil.copytree(stored, homes / "ann" / "vault")
    return homes / "ann"


def ask(*more: str, column: str = "score", epsilon: str = "1", out: str = "out.csv") -> tuple[str, ...]:
    return (
        "vault",
        "release-local",
        "clients",
        "--column",
        column,
        "--epsilon",
        epsilon,
        "--out",
        out,
        *more,
    )


def test_a_worked_session(home: Path, cloister: Command) -> None:
    done = cloister(*ask("--budget", "2", "--estimate"))
    assert (done.code, done.err) == (0, "")
    said = done.out.splitlines()
    assert said[0] == "200 rows are in out.csv: score by laplace noise. What was done is in out.csv.json."
    assert said[1] == "Each row cost its person epsilon 1; whoever has least has 1 left."
    assert said[2].startswith("score, mean: mean ")
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert len(rows) == ROWS
    assert list(rows[0]) == ["score"]
    noise = np.array([int(row["score"]) - 500 - i for i, row in enumerate(rows)])
    assert 0.6 * 550 < np.abs(noise).mean() < 1.5 * 550
    estimated = cloister("vault", "estimate-local", "out.csv")
    assert estimated.out.splitlines() == said[2:]
    again = cloister("vault", "estimate-local", "out.csv", "--json").json
    assert again["rows"] == ROWS
    assert again["estimates"][0]["estimates"]["mean"]["confidence"] == 0.95


def test_json_says_all(home: Path, cloister: Command) -> None:
    said = cloister(*ask("--budget", "3", "--json", "--estimate", "--column", "treatment", "--keep-id")).json
    assert (said["dataset"], said["purpose"], said["rows"], said["left_out"]) == (
        "clients",
        "scoring",
        ROWS,
        0,
    )
    assert said["price"]["epsilon"] == 2.0
    assert said["budget"]["cap"]["epsilon"] == 3.0
    assert said["budget"]["least_left"]["epsilon"] == 1.0
    assert [each["mechanism"]["type"] for each in said["columns"]] == ["laplace", "response"]
    assert [each["mechanism"]["kind"] for each in said["events"]] == [
        "integer-laplace",
        "randomised-response",
    ]
    assert [each["kind"] for each in said["estimates"]] == ["mean", "counts"]
    assert list(said["estimates"][1]["estimates"]) == ["surgery", "drug", "none", ""]
    recorded = json.loads(Path("out.csv.json").read_text())
    assert recorded == {key: said[key] for key in recorded}
    assert Path("out.csv").read_text().startswith('"customer","score","treatment"')


def test_the_budget_stops_the_third_release(home: Path, cloister: Command) -> None:
    assert cloister(*ask("--budget", "2")).code == 0
    assert cloister(*ask(out="two.csv")).code == 0
    first, second = (np.loadtxt(name, skiprows=1) for name in ("out.csv", "two.csv"))
    assert not np.array_equal(first, second)  # the same question, other noise
    refused = cloister(*ask(out="three.csv"))
    assert (refused.code, refused.out) == (3, "")
    assert "200 of 200 people have too little of their epsilon left: a row costs 1" in refused.err
    assert CANARY not in refused.err
    assert not Path("three.csv").exists()
    assert not Path("three.csv.json").exists()


def test_datasets_with_the_same_people_share_their_budget(home: Path, cloister: Command) -> None:
    assert cloister(*ask("--budget", "1")).code == 0
    shared = ("vault", "release-local", "shared", *ask(out="two.csv")[3:], "--purpose", "research")
    assert cloister(*shared).code == 3


def test_the_budget_is_declared_first_and_only_lowered(home: Path, cloister: Command) -> None:
    refused = cloister(*ask())
    assert refused.code == 3
    assert "--budget 4" in refused.err
    assert cloister(*ask("--budget", "2")).code == 0
    raised = cloister(*ask("--budget", "9", out="two.csv"))
    assert raised.code == 3
    assert "only be lowered" in raised.err
    assert not Path("two.csv").exists()


def test_people_with_nothing_left_are_left_out_on_request(
    home: Path, cloister: Command, people: dict[str, Identity]
) -> None:
    keys = LocalKeystore.open(home / "vault" / "keystore.json", PASSPHRASE)
    table = "\n".join([",".join(load_schema(SCHEMA.encode()).columns), *map(line, range(50))]) + "\n"
    Path("few.csv").write_text(table)
    Vault(home / "vault", people["ann"], keys).add(
        Path("few.csv"), name="few", schema=load_schema(SCHEMA.encode()), purposes=["scoring"]
    )
    assert cloister("vault", "release-local", "few", *ask("--budget", "1", out="few.out.csv")[3:]).code == 0
    refused = cloister(*ask())
    assert "50 of 200 people" in refused.err
    done = cloister(*ask("--leave-out", "--keep-id"))
    assert "50 rows were left out" in done.out
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [row["customer"] for row in rows] == [f"{CANARY}{i}" for i in range(50, ROWS)]


@pytest.mark.parametrize(
    ("more", "kind", "columns"),
    [
        (("--mechanism", "gaussian", "--delta", "1e-6", "--budget-delta", "1e-5"), "mean", ["score"]),
        (("--mechanism", "laplace", "--step", "5.5"), "mean", ["score"]),
    ],
)
def test_mechanisms_for_numbers(
    home: Path, cloister: Command, more: tuple[str, ...], kind: str, columns: list[str]
) -> None:
    said = cloister(*ask(*more, "--budget", "1", "--estimate", "--json", out="out.parquet")).json
    assert said["estimates"][0]["kind"] == kind
    assert pq.read_table("out.parquet").column_names == columns
    assert cloister("vault", "estimate-local", "out.parquet", "--json").json["estimates"] == said["estimates"]


def test_missing_numbers_and_yes_or_no(home: Path, cloister: Command) -> None:
    refused = cloister(*ask("--budget", "9", column="income"))
    assert refused.code == 2
    assert "may be missing, and that would show" in refused.err  # by the schema, whatever the rows hold
    said = cloister(*ask("--missing", "0", "--budget", "9", "--json", column="income")).json
    assert said["columns"][0]["missing"] == 0.0
    said = cloister(*ask("--estimate", "--json", column="ill", out="two.csv")).json
    assert list(said["estimates"][0]["estimates"]) == ["false", "true"]
    assert set(Path("two.csv").read_text().split()) == {'"ill"', '"false"', '"true"'}


def test_positions(home: Path, cloister: Command) -> None:
    planar = ("--mechanism", "planar", "--column", "longitude")
    undeclared = cloister(*ask(*planar, column="latitude", epsilon="0.005"))
    assert undeclared.code == 3
    assert "--budget-metre" in undeclared.err
    done = cloister(*ask(*planar, "--budget-metre", "0.01", "--estimate", column="latitude", epsilon="0.005"))
    assert (
        "Each row cost its person epsilon for each metre 0.005; whoever has least has 0.005 left." in done.out
    )
    assert "no estimate, since truncated positions" in done.out
    beyond = (*planar, "--beyond", "--estimate", "--json")
    said = cloister(*ask(*beyond, column="latitude", epsilon="0.005", out="two.csv")).json
    assert said["columns"][0]["mechanism"]["region"]["type"] == "degrees"
    assert said["events"] == []
    mean = said["estimates"][0]["estimates"]["latitude"]
    assert mean["low"] - 0.001 < 48.11 < mean["high"] + 0.001
    assert cloister(*ask(*planar, column="latitude", epsilon="0.005", out="three.csv")).code == 3
    cells = ("--mechanism", "planar", "--column", "y", "--metres", "--step", "100", "--budget-metre", "0.009")
    said = cloister(*ask(*cells, column="x", epsilon="0.001", out="four.csv"))
    assert said.code == 3  # spent already, in degrees: metres are metres


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (ask(column="none"), 2, "no column 'none'"),
        (ask(column="customer"), 2, "only bounded numbers"),
        (ask(column="note"), 2, "only bounded numbers"),
        (ask("--column", "score"), 2, "named twice"),
        (ask(epsilon="0"), 2, "0.001 to 32"),
        (ask(epsilon="99"), 2, "0.001 to 32"),
        (ask(epsilon="nan"), 2, "0.001 to 32"),
        (ask("--mechanism", "response"), 2, "Use laplace or gaussian"),
        (ask("--mechanism", "laplace", column="ill"), 2, "Use response"),
        (ask("--mechanism", "gaussian"), 2, "--delta"),
        (ask("--delta", "1e-6"), 2, "needs a delta"),
        (ask("--mechanism", "gaussian", "--delta", "2"), 2, "1e-12 to 1e-3"),
        (ask("--step", "7"), 2, "does not divide"),
        (ask("--step", "1", column="ill"), 2, "are for numbers"),
        (ask("--mechanism", "planar"), 2, "two columns"),
        (ask("--metres"), 2, "--mechanism planar"),
        (ask("--missing", "9e9", column="income"), 2, "outside the bounds"),
        (ask("--id", "score"), 2, "does not say whose"),
        (ask("--purpose", "marketing"), 3, "may not be used"),
        (ask(out="out.txt"), 2, ".csv or .parquet"),
        (ask(out="nowhere/out.csv"), 2, "no such folder"),
        (("vault", "release-local", "shared", *ask()[3:]), 2, "several purposes"),
        (("vault", "release-local", "nothing", *ask()[3:]), 2, "no dataset"),
        (ask("--budget", "-1"), 2, "above 0"),
        (ask("--mechanism", "magic"), 2, "magic"),
        (("vault", "estimate-local", "none.csv"), 2, "No such file"),
    ],
)
def test_bad_input_is_one_sentence_and_costs_nothing(
    home: Path, cloister: Command, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ended = cloister(*arguments)
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not Path("out.csv").exists()
    store = home / "local" / "budget.sqlite"
    if store.exists():
        with sqlite3.connect(store) as connection:
            assert connection.execute("SELECT count(*) FROM people").fetchone() == (0,)
        connection.close()


def test_a_file_is_not_replaced_and_a_lost_store_is_not_taken_for_none(home: Path, cloister: Command) -> None:
    Path("out.csv").write_text("mine")
    assert cloister(*ask("--budget", "1")).code == 2
    assert Path("out.csv").read_text() == "mine"
    assert cloister(*ask("--budget", "1", out="two.csv")).code == 0
    store = home / "local" / "budget.sqlite"
    content = store.read_bytes()
    assert CANARY.encode() not in content
    for damage in (
        lambda: store.unlink(),
        lambda: store.write_bytes(b""),
        lambda: store.write_bytes(content[:-4096]),
    ):
        damage()
        ended = cloister(*ask("--budget", "1", out="three.csv"))
        assert ended.code == 1
        assert not Path("three.csv").exists()


def test_a_file_that_was_changed_is_not_estimated(home: Path, cloister: Command) -> None:
    assert cloister(*ask("--budget", "1")).code == 0
    Path("out.csv").write_text(Path("out.csv").read_text() + "9999\n")
    ended = cloister("vault", "estimate-local", "out.csv")
    assert ended.code == 1
    assert "not the one" in ended.err


def test_the_price_stays_paid_where_writing_fails(
    home: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.cli import localfile
    from cloister.errors import StorageError

    def full(*_: object, **__: object) -> None:
        raise StorageError("cannot write: no space", fix="Free space")

    with monkeypatch.context() as patch:
        patch.setattr(localfile, "write_atomic", full)
        assert cloister(*ask("--budget", "1")).code == 2
    assert cloister(*ask()).code == 3


def test_new_keys_leave_budgets_as_they_are(home: Path, cloister: Command) -> None:
    assert cloister(*ask("--budget", "1")).code == 0
    assert cloister("keys", "rotate").code == 0
    assert cloister(*ask(out="two.csv")).code == 3


def test_no_option_reaches_the_noise(cloister: Command) -> None:
    said = cloister("vault", "release-local", "--help").out
    assert "seed" not in said.lower()
    assert "random" not in said.lower()
