"""A private study on the command line, and everything that is refused before a row is touched."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.runtime.parties import PURPOSE, SCHEMA, table

from cloister.cli import common
from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.runtime import LocalWorker
from cloister.runtime.workers.asking import KeyLender
from cloister.vault import Vault, load_schema

NAMES = ("north", "south", "west")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of three sites and a hub with rows in the vaults; no budget yet."""
    root = tmp_path_factory.mktemp("homes")
    (root / "schema.toml").write_bytes(SCHEMA)
    identities = {name: Identity.generate(name) for name in (*NAMES, "hub")}
    make_homes(root, identities)
    for seed, name in enumerate(NAMES):
        vault = Vault.unlock(root / name / "vault", identities[name], PASSPHRASE, cost=CHEAP)
        vault.add_table(table(60, seed), name="rows", schema=load_schema(SCHEMA), purposes=[PURPOSE])
    return root


@pytest.fixture
def made(homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the homes for one test, as the hub."""
    root = tmp_path / "homes"
    shutil.copytree(homes, root)
    be(monkeypatch, root, "hub")
    yield root
    common.passphrase.cache_clear()


def budgets(root: Path, monkeypatch: pytest.MonkeyPatch, *options: str, epsilon: str = "8") -> None:
    for name in NAMES:
        be(monkeypatch, root, name)
        assert run(["budget", "rows", "--epsilon", epsilon, "--delta", "1e-3", *options]) == 0
    be(monkeypatch, root, "hub")


def sites(root: Path) -> list[str]:
    return [text for name in NAMES for text in ("--site", str(root / name))]


def write_plan(root: Path, *options: str, name: str = "loans", epsilon: str = "4") -> Path:
    plan = root / f"{name}.toml"
    arguments = ["study", "init", name, *sites(root), "--purpose", PURPOSE, "--rounds", "4"]
    assert run([*arguments, "--epsilon", epsilon, "--out", str(plan), *options]) == 0
    return plan


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Rows that were opened; a test that ends with any has read before it refused."""
    opened: list[str] = []
    before, lend = LocalWorker._open, KeyLender.lend

    def watched(self: LocalWorker) -> object:
        opened.append(repr(self))
        return before(self)

    def lent(self: KeyLender, wrapped: bytes) -> bytes:
        opened.append("a data key")
        return lend(self, wrapped)

    monkeypatch.setattr(LocalWorker, "_open", watched)
    monkeypatch.setattr(KeyLender, "lend", lent)
    yield opened
    assert not opened


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *words: str) -> None:
    capsys.readouterr()
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_a_private_study_from_plan_to_release(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets(made, monkeypatch)
    plan = write_plan(made)
    capsys.readouterr()
    assert run(["study", "check", str(plan), "--schema", str(made / "schema.toml"), "--json"]) == 0
    privacy = json.loads(capsys.readouterr().out)["privacy"]
    assert privacy["epsilon_hub"] < privacy["epsilon_colluders"] <= 4.0
    assert privacy["noise_calibrated"]
    assert privacy["rounds_that_fit"] == 4
    assert {"charged", "public", "kept"} <= privacy.keys()
    assert run(["study", "run", str(plan), *sites(made), "--json"]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert ran["privacy"]["epsilon_colluders"] == privacy["epsilon_colluders"]
    assert ran["metrics"] is None
    assert "public" in ran["reasons"]["metrics"]
    assert run(["release", "loans", "--out", str(made / "out"), *sites(made)]) == 0
    be(monkeypatch, made, "north")
    capsys.readouterr()
    assert run(["verify", str(made / "out")]) == 0
    assert "recomputed; 3 debits" in capsys.readouterr().out
    assert run(["budget", "--json"]) == 0
    (population,) = json.loads(capsys.readouterr().out)["populations"]
    assert population["entries"][0]["name"] == "loans"
    assert population["spent"]["rdp"] > 0


def test_no_budget_no_study(made: Path, capsys: pytest.CaptureFixture[str], unread: list[str]) -> None:
    refused(capsys, ["study", "run", str(write_plan(made)), *sites(made)], 3, "budget", "north")


def test_a_spent_budget_says_what_is_left_and_what_it_would_need(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unread: list[str]
) -> None:
    budgets(made, monkeypatch, epsilon="1")
    refused(capsys, ["study", "run", str(write_plan(made)), *sites(made)], 3, "left", "need")


@pytest.mark.slow
def test_a_dataset_added_again_under_another_name_shares_the_budget(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets(made, monkeypatch, epsilon="4")
    assert run(["study", "run", str(write_plan(made, epsilon="3")), *sites(made)]) == 0
    for seed, name in enumerate(NAMES):
        identity = Identity.load(made / name / "identity.json", PASSPHRASE)
        vault = Vault.unlock(made / name / "vault", identity, PASSPHRASE)
        vault.add_table(table(60, seed), name="fresh", schema=load_schema(SCHEMA), purposes=[PURPOSE])
    plan = write_plan(made, "--dataset", "fresh", name="again", epsilon="3")
    refused(capsys, ["study", "run", str(plan), *sites(made)], 3, "left")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("epsilon = 4.0", "epsilon = 0.0", "epsilon"),
        ("epsilon = 4.0", "epsilon = 99.0", "epsilon"),
        ("delta = ", "delta = 2", "delta"),
        ('sampler = "poisson"', 'sampler = "shuffle"', "half of the true epsilon"),
        ('unit = "record"', 'unit = "b"', "also a feature"),
        ('scaling = "bounds"', 'scaling = "local"', "means and deviations"),
        ("local_steps = 1", "local_steps = 5", "local"),
        ("bits = 32", "bits = 16\n", "rounding"),
    ],
)
def test_an_unsound_plan_is_refused(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unread: list[str],
    old: str,
    new: str,
    word: str,
) -> None:
    budgets(made, monkeypatch)
    plan = write_plan(made)
    text = plan.read_text()
    assert old in text
    if old == "bits = 32":  # so many rows a step that a clip is worth too few units
        text = text.replace("batch = 90", "batch = 9000")
    plan.write_text(text.replace(old, new))
    refused(capsys, ["study", "run", str(plan), *sites(made)], 2, word)


def test_a_delta_of_one_row_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unread: list[str]
) -> None:
    arguments = ["study", "init", "loans", *sites(made), "--purpose", PURPOSE, "--epsilon", "1"]
    refused(capsys, [*arguments, "--delta", "0.01", "--out", str(made / "x.toml")], 2, "whole row")
    budgets(made, monkeypatch)
    plan = write_plan(made)
    lines = plan.read_text().splitlines()
    plan.write_text("\n".join("delta = 0.02" if line.startswith("delta") else line for line in lines) + "\n")
    refused(capsys, ["study", "run", str(plan), *sites(made)], 2, "whole row")


def test_a_ledger_edited_by_hand_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unread: list[str]
) -> None:
    budgets(made, monkeypatch)
    plan = write_plan(made)
    (database,) = (made / "south" / "ledger").glob("*.db")
    with sqlite3.connect(database) as connection:
        connection.execute("delete from rows where rowid = (select max(rowid) from rows)")
    connection.close()
    refused(capsys, ["study", "run", str(plan), *sites(made)], 3, "ledger")


def test_a_ledger_restored_from_yesterday_is_refused_where_an_anchor_stands(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anchors = made.parent / "anchors"
    anchors.mkdir()
    for name in NAMES:
        be(monkeypatch, made, name)
        anchor = ["--anchor", str(anchors / name)]
        assert run(["budget", "rows", "--epsilon", "8", "--delta", "1e-3", *anchor]) == 0
    be(monkeypatch, made, "hub")
    yesterday = made.parent / "yesterday"
    shutil.copytree(made / "west", yesterday)
    assert run(["study", "run", str(write_plan(made)), *sites(made)]) == 0
    shutil.rmtree(made / "west")
    shutil.copytree(yesterday, made / "west")
    plan = write_plan(made, name="second")
    refused(capsys, ["study", "run", str(plan), *sites(made)], 3, "older")


MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
"""


@pytest.mark.slow
def test_a_module_of_ones_own_from_init_to_release(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    budgets(made, monkeypatch)
    code = made / "model.py"
    code.write_text(MODULE)
    allowed = ["--allow-user-code", str(code)]
    plan = write_plan(made, "--model", "torch", *allowed)
    checked = ["study", "check", str(plan), "--schema", str(made / "schema.toml")]
    refused(capsys, checked, 3, "--allow-user-code")
    assert run([*checked, *allowed]) == 0
    refused(capsys, ["study", "run", str(plan), *sites(made)], 3, "--allow-user-code")
    assert run(["study", "run", str(plan), *sites(made), *allowed]) == 0
    assert run(["release", "loans", "--out", str(made / "out"), *sites(made)]) == 0
    be(monkeypatch, made, "north")
    capsys.readouterr()
    assert run(["verify", str(made / "out")]) == 0
    assert "float error of the user's own module" in capsys.readouterr().out
    refused(capsys, ["study", "init", "x", *sites(made), "--purpose", PURPOSE, "--model", "torch"], 2, "FILE")


UNIT_SCHEMA = SCHEMA + b'\n[columns.person]\ntype = "text"\nrole = "unit"\npseudonym = true\n'


def test_a_schema_with_a_unit_asks_whose_privacy_it_is(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(NAMES):
        identity = Identity.load(made / name / "identity.json", PASSPHRASE)
        vault = Vault.unlock(made / name / "vault", identity, PASSPHRASE)
        people = [f"{name}-{row % 12}" for row in range(60)]
        rows = table(60, seed).append_column("person", [people])
        vault.add_table(rows, name="visits", schema=load_schema(UNIT_SCHEMA), purposes=[PURPOSE])
    arguments = ["study", "init", "visits", *sites(made), "--purpose", PURPOSE, "--dataset", "visits"]
    arguments += ["--rounds", "4", "--epsilon", "6", "--out", str(made / "visits.toml")]
    refused(capsys, arguments, 2, "--unit person")
    refused(capsys, [*arguments, "--unit", "person"], 2, "--sites-per-unit")
    assert run([*arguments, "--unit", "person", "--sites-per-unit", "1", "--units", "36"]) == 0
    for name in NAMES:
        be(monkeypatch, made, name)
        assert run(["budget", "visits", "--epsilon", "12", "--delta", "1e-3"]) == 0
    be(monkeypatch, made, "hub")
    capsys.readouterr()
    assert run(["study", "run", str(made / "visits.toml"), *sites(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["privacy"]["unit"] == "person"
