"""`cloister query`: answers, their price, and every way to be refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.runtime.asked import SCHEMA, WITH_UNIT, rows
from tests.runtime.parties import PURPOSE

from cloister.cli import common
from cloister.cli.main import COMMANDS, Entry, run
from cloister.crypto import Identity
from cloister.privacy.ledger import Cap, Ledger
from cloister.vault import Vault, load_schema

pytest.importorskip("opendp")

SITES = ("north", "south", "west")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of an owner, three sites and a hub; datasets with budgets, one of them small."""
    root = tmp_path_factory.mktemp("homes")
    identities = {name: Identity.generate(name) for name in ("ann", *SITES, "hub")}
    make_homes(root, identities)
    for seed, (name, identity) in enumerate(identities.items()):
        if name == "hub":
            continue
        vault = Vault.unlock(root / name / "vault", identity, PASSPHRASE, cost=CHEAP)
        add(root / name, identity, vault, "rows", rows(80, seed), SCHEMA, Cap.of(20.0, 1e-4))
        add(root / name, identity, vault, "few", rows(60, 50 + seed), SCHEMA, Cap.of(1.0, 1e-4))
        if name == "ann":
            units = rows(90, 60, people=30)
            add(root / name, identity, vault, "visits", units, WITH_UNIT, Cap.of(20.0, 1e-4))
            vault.add_table(rows(50, 70), name="free", schema=load_schema(SCHEMA), purposes=[PURPOSE])
            vault.add_table(rows(50, 71), name="two", schema=load_schema(SCHEMA), purposes=[PURPOSE, "other"])
    return root


def add(home: Path, identity: Identity, vault: Vault, name: str, table: Any, text: bytes, cap: Cap) -> None:
    vault.add_table(table, name=name, schema=load_schema(text), purposes=[PURPOSE])
    with Ledger.open(home / "ledger", identity) as ledger:
        ledger.declare(name, cap)
        ledger.bind(name, vault.manifest(name).dataset_id, vault.fingerprints(name))


@pytest.fixture(autouse=True)
def _as_ann(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(
        COMMANDS,
        "query",
        COMMANDS.get("query") or Entry("query", "query", "Ask a private statistic.", "Studies"),
    )
    be(monkeypatch, made, "ann")
    yield
    common.passphrase.cache_clear()


def sites(made: Path) -> list[str]:
    return [text for name in SITES for text in ("--site", str(made / name))]


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert run(["query", *words, "--json"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    capsys.readouterr()
    assert run(["query", *words]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def test_a_mean_by_group_with_bars_and_price(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ask(capsys, "rows", "mean", "age", "--by", "sex", "--epsilon", "0.5")
    assert (result["epsilon"], result["delta"]) == (0.5, 0.0)
    (answer,) = result["answers"]
    assert answer["title"] == "mean of age by sex"
    assert answer["confidence"] == 0.95
    assert answer["noise"] == "discrete Laplace"
    assert answer["events"][0]["mechanism"]["kind"] == "integer-laplace"
    assert [cell["group"] for cell in answer["cells"]] == [{"sex": "female"}, {"sex": "male"}]
    for cell in answer["cells"]:
        assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 120
        assert cell["error"] == max(cell["high"] - cell["value"], cell["value"] - cell["low"])
    (left,) = result["populations"]
    assert left["population"] == "rows"
    assert 0 < left["share_left"] < 1


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (("count",), 1),
        (("count", "--by", "sex", "--by", "ill"), 4),
        (("sum", "income"), 1),
        (("variance", "age"), 1),
        (("quantiles", "age", "--level", "0.5", "--level", "0.9"), 2),
        (("histogram", "income", "--bins", "4"), 5),
        (("contingency", "sex", "ill"), 4),
        (("mean", "ill", "--delta", "1e-6"), 1),
    ],
)
def test_every_statistic_answers(
    words: tuple[str, ...], cells: int, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ask(capsys, "rows", *words, "--epsilon", "0.3")
    (answer,) = result["answers"]
    assert len(answer["cells"]) == cells
    assert all(cell["low"] <= cell["value"] <= cell["high"] for cell in answer["cells"])
    assert answer["noise"] == ("discrete Gaussian" if "--delta" in words else "discrete Laplace")


def test_the_text_says_value_bar_price_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["query", "rows", "histogram", "sex", "--epsilon", "0.3", "--confidence", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "histogram of sex" in out
    assert "90 % error bar" in out
    assert "It hides each row." in out
    assert "epsilon 0.3, delta 0." in out
    assert "of its budget is left" in out


def test_a_unit_is_hidden_with_all_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    result = ask(capsys, "visits", "count", "--epsilon", "2", "--rows-per-unit", "2")
    assert "first 2 rows of each" in result["answers"][0]["protects"]


def test_a_file_of_queries_has_one_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "queries.toml").write_text(
        'epsilon = 0.4\n[[queries]]\nstatistic = "mean"\ncolumn = "age"\n'
        '[[queries]]\nstatistic = "contingency"\ncolumns = ["sex", "ill"]\nname = "who is ill"\n'
    )
    result = ask(capsys, "rows", "--file", str(tmp_path / "queries.toml"))
    assert result["epsilon"] == 0.4
    assert [answer["title"] for answer in result["answers"]] == ["mean of age", "who is ill"]
    assert [answer["epsilon"] for answer in result["answers"]] == pytest.approx([0.2, 0.2])
    (tmp_path / "queries.toml").write_text('epsilon = 0.4\n[[queries]]\nstatistic = "mean"\ncolum = "age"\n')
    assert "Did you mean 'column'?" in refused(capsys, 2, "rows", "--file", str(tmp_path / "queries.toml"))
    assert "all of it" in refused(
        capsys, 2, "rows", "mean", "age", "--file", str(tmp_path / "queries.toml"), "--epsilon", "1"
    )


def test_a_spent_budget_is_refused_with_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    codes = []
    for _ in range(20):
        codes.append(run(["query", "few", "mean", "age", "--epsilon", "0.2"]))
        printed = capsys.readouterr()
        if codes[-1]:
            break
    assert codes[-1] == 3
    assert 1 < len(codes) < 20
    assert printed.out == ""
    assert "is left" in printed.err
    assert run(["query", "few", "mean", "age", "--epsilon", "0.2"]) == 3


def test_rows_without_a_budget_are_refused_and_the_command_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "cloister budget" in refused(capsys, 3, "free", "mean", "age", "--epsilon", "0.2")


def test_a_wrong_purpose_is_refused_and_an_unclear_one_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mean", "age", "--epsilon", "0.1")
    assert "may not be used" in refused(capsys, 3, "rows", *words, "--purpose", "marketing")
    assert "'other', 'testing'" in refused(capsys, 2, "two", *words).replace(
        "'testing', 'other'", "'other', 'testing'"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("rows", "mean", "age", "--epsilon", "0"), "epsilon = 0 is out of range"),
        (("rows", "mean", "age", "--epsilon", "1000"), "out of range"),
        (("rows", "mean", "age", "--epsilon", "nan"), "out of range"),
        (("rows", "mean", "age", "--epsilon", "1", "--delta", "0.5"), "delta = 0.5 is out of range"),
        (
            ("rows", "mean", "age", "--epsilon", "1", "--delta", "0.0125"),
            "not below one in the number of rows",
        ),
        (("rows", "mean", "age"), "--epsilon"),
        (("rows",), "nothing is asked"),
        (("rows", "mean", "--epsilon", "1"), "which column"),
        (("rows", "mean", "age", "sex", "--epsilon", "1"), "one column"),
        (("rows", "mean", "agee", "--epsilon", "1"), "Did you mean 'age'?"),
        (("rows", "mean", "note", "--epsilon", "1"), "no statistic can be asked"),
        (("rows", "mean", "sex", "--epsilon", "1"), "is a category"),
        (("rows", "count", "--by", "income", "--epsilon", "1"), "too many values"),
        (("rows", "median", "age", "--epsilon", "1"), "median"),
        (("rows", "mean", "age", "--epsilon", "1", "--bins", "3"), "bins are for"),
        (("rows", "mean", "age", "--epsilon", "1", "--adversary", "hub"), "--site"),
        (("visits", "mean", "person", "--epsilon", "1"), "no statistic can be asked"),
        (("nowhere", "mean", "age", "--epsilon", "1"), "no dataset 'nowhere'"),
    ],
)
def test_bad_input_is_one_sentence_and_costs_nothing(
    made: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spent = spent_of(made)
    assert says in refused(capsys, 2, *words)
    assert spent_of(made) == spent


def spent_of(made: Path) -> float:
    identity = Identity.load(made / "ann" / "identity.json", PASSPHRASE)
    with Ledger.open(made / "ann" / "ledger", identity) as ledger:
        return ledger.status("rows").spent.rdp


def test_three_sites_are_asked_together(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, made, "hub")
    words = ("rows", "mean", "age", "--by", "sex", "--epsilon", "2", "--delta", "1e-5")
    result = ask(capsys, *words, *sites(made))
    assert result["sites"] == list(SITES)
    assert result["rows"] == 240
    assert result["transport"] == "memory"
    assert result["epsilon_hub"] < result["epsilon"] == result["epsilon_colluders"] <= 2.0
    assert result["answers"][0]["noise"] == "discrete Gaussian"
    assert len(result["answers"][0]["cells"]) == 2
    capsys.readouterr()
    assert run(["query", "rows", "count", "--epsilon", "1", "--delta", "1e-5", *sites(made)]) == 0
    out = capsys.readouterr().out
    assert "240 rows of north, south, west" in out
    assert "with 1 of the sites helping it" in out


def test_sites_refuse_what_they_cannot_do_together(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, made, "hub")
    words = ("mean", "age", "--epsilon", "1")
    assert "no delta" in refused(capsys, 2, "rows", *words, *sites(made))
    assert "third site" in refused(capsys, 2, "rows", *words, "--delta", "1e-5", *sites(made)[:4])
    error = refused(capsys, 2, "nope", *words, "--delta", "1e-5", *sites(made))
    assert str(made / "north") in error
    assert "may not be used" in refused(
        capsys, 3, "rows", *words, "--delta", "1e-5", *sites(made), "--purpose", "marketing"
    )
    error = refused(capsys, 3, "few", "mean", "age", "--epsilon", "2", "--delta", "1e-5", *sites(made))
    assert "north" in error
    assert "is left" in error


def test_without_the_extra_the_sentence_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    error = refused(capsys, 2, "rows", "mean", "age", "--epsilon", "0.1")
    assert "pip install cloister[stats]" in error


def test_a_home_without_a_ledger_is_refused_and_gets_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity.generate("new")
    make_homes(tmp_path, {"new": identity})
    vault = Vault.unlock(tmp_path / "new" / "vault", identity, PASSPHRASE, cost=CHEAP)
    vault.add_table(rows(30, 1), name="rows", schema=load_schema(SCHEMA), purposes=[PURPOSE])
    be(monkeypatch, tmp_path, "new")
    assert "cloister budget" in refused(capsys, 3, "rows", "mean", "age", "--epsilon", "0.1")
    assert not (tmp_path / "new" / "ledger").exists()
