from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.homes import CHEAP, PASSPHRASE
from tests.vault.world import PURPOSE, SCHEMA, rows

from cloister.cli import common
from cloister.cli.budget import ledger_folder
from cloister.cli.main import COMMANDS, Entry
from cloister.crypto import Identity
from cloister.privacy.ledger import Cost, Ledger
from cloister.vault import LocalKeystore

DECLARE = ("--epsilon", "3", "--delta", "1e-5")


@pytest.fixture
def home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ann's home, with a dataset "heart" of 30 rows."""
    monkeypatch.setitem(COMMANDS, "budget", Entry("budget", "budget", "Budgets.", "Studies"))
    LocalKeystore.initialise(homes / "ann" / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    Path("schema.toml").write_text(SCHEMA)
    rows(Path("rows.csv"), 30)
    return homes / "ann"


@pytest.fixture
def heart(home: Path, cloister: Command) -> Path:
    add(cloister, "heart")
    return home


def add(cloister: Command, name: str, source: str = "rows.csv", purpose: str = PURPOSE) -> None:
    line = ("vault", "add", source, "--name", name, "--schema", "schema.toml", "--purpose", purpose)
    assert cloister(*line).code == 0


def spend(people: dict[str, Identity], population: str = "heart", rdp: float = 0.2) -> None:
    with Ledger.open(ledger_folder(), people["ann"]) as ledger:
        cost = Cost(rdp, 1e-9, ledger.order(population))
        ledger.spend(population, "mean age", cost)
        admission = ledger.admit(population, "a" * 64, "heart-study", Cost(0.05, 0.0, cost.order), 4)
        ledger.start(admission, 0)
        ledger.commit(admission, 0)


def test_a_worked_session(heart: Path, cloister: Command, people: dict[str, Identity]) -> None:
    assert "No budget is declared" in cloister("budget").out
    declared = cloister("budget", "heart", *DECLARE)
    assert declared.code == 0, declared.err
    assert "heart: at most epsilon 3 at delta 1e-05, kept at Renyi order 8" in declared.out
    assert "left      100.0% of it: one more study of epsilon about 2." in declared.out
    assert "There is no anchor" in declared.out
    spend(people)
    shown = cloister("budget", "heart").out
    assert "A study that is open runs, or was killed." in shown
    assert ["query", "mean", "age", "once", "11.3%"] in [line.split() for line in shown.splitlines()]
    assert "study  heart-study  1 of 4 blocks, open" in shown
    assert "reserved  8.5% of it" in shown
    assert cloister("budget").out == shown


def test_json(heart: Path, cloister: Command, people: dict[str, Identity]) -> None:
    assert cloister("budget", "--json").json == {
        "ledger": None,
        "rollback_detected": "not detectable",
        "populations": [],
    }
    cloister("budget", "heart", *DECLARE)
    spend(people)
    ended = cloister("budget", "--json")
    assert (ended.code, ended.err) == (0, "")
    (found,) = ended.json["populations"]
    assert (found["population"], found["epsilon"], found["delta"], found["order"]) == ("heart", 3.0, 1e-5, 8)
    assert [each["name"] for each in found["datasets"]] == ["heart"]
    assert found["spent"]["rdp"] == pytest.approx(0.25)
    assert found["reserved"]["rdp"] == pytest.approx(0.15)
    assert found["left"]["rdp"] == pytest.approx(found["rdp"] - 0.4)
    assert found["spent"]["share"] + found["reserved"]["share"] + found["left"]["share"] == pytest.approx(1)
    assert 0 < found["left"]["epsilon"] < 3
    assert {entry["kind"]: entry["name"] for entry in found["entries"]} == {
        "study": "heart-study",
        "query": "mean age",
    }


def test_the_same_rows_under_another_name_and_purpose_share_the_budget(
    heart: Path, cloister: Command, people: dict[str, Identity]
) -> None:
    cloister("budget", "heart", *DECLARE)
    spend(people)
    add(cloister, "other", purpose="something else")
    shown = cloister("budget", "other", "--json").json["populations"]
    assert [each["population"] for each in shown] == ["heart"]
    assert shown[0]["spent"]["rdp"] == pytest.approx(0.25)
    raised = cloister("budget", "other", "--epsilon", "8", "--delta", "1e-5")
    assert raised.code == 3
    assert "only ever lowered" in raised.err


def test_rows_of_nobody_known_have_no_budget(heart: Path, cloister: Command) -> None:
    refused = cloister("budget", "heart")
    assert refused.code == 3
    assert "--epsilon" in refused.err
    cloister("budget", "heart", *DECLARE)
    rows(Path("more.csv"), 30, start=1000)
    Path("more.csv").write_text(Path("more.csv").read_text().replace("CANARY", "OTHER"))
    add(cloister, "more", "more.csv")
    refused = cloister("budget", "more")
    assert refused.code == 3
    assert "no budget covers" in refused.err
    joined = cloister("budget", "more", "--population", "heart", "--json").json["populations"]
    assert [each["name"] for each in joined[0]["datasets"]] in (["heart", "more"], ["more", "heart"])


def test_a_budget_is_lowered_and_never_raised(heart: Path, cloister: Command) -> None:
    cloister("budget", "heart", *DECLARE)
    lower = cloister("budget", "--population", "heart", "--epsilon", "2.5", "--delta", "1e-6", "--json")
    assert lower.json["populations"][0]["epsilon"] == 2.5
    assert lower.json["populations"][0]["order"] == 8
    for line in (("--epsilon", "3", "--delta", "1e-6"), ("--epsilon", "2", "--delta", "1e-5")):
        assert cloister("budget", "heart", *line).code == 3
    nothing_left = cloister("budget", "heart", "--epsilon", "0.5", "--delta", "1e-6")
    assert nothing_left.code == 2
    assert "order 8" in nothing_left.err


BAD = [
    (("heart", "--epsilon", "3"), 2, "--delta"),
    (("heart", "--epsilon", "0", "--delta", "1e-5"), 2, "epsilon must be"),
    (("heart", "--epsilon", "nan", "--delta", "1e-5"), 2, "epsilon must be"),
    (("heart", "--epsilon", "30", "--delta", "1e-5"), 2, "epsilon must be"),
    (("heart", "--epsilon", "3", "--delta", "0"), 2, "delta must be"),
    (("heart", "--epsilon", "3", "--delta", "1"), 2, "delta must be"),
    (("heart", "--epsilon", "3", "--delta", "0.04"), 2, "1 / n"),
    (("--epsilon", "3", "--delta", "1e-5"), 2, "whose budget"),
    (("--population", "heart"), 2, "which dataset"),
    (("nothing", *DECLARE), 2, "no dataset"),
    (("heart", "--population", "nobody"), 3, "no budget"),
    (("heart", "--population", "Not A Name", *DECLARE), 2, "not allowed"),
    (("--anchor", "anchor"), 3, "no budget"),
]


def test_bad_input_is_one_sentence(heart: Path, cloister: Command) -> None:
    for line, code, says in BAD:
        ended = cloister("budget", *line)
        assert (ended.code, ended.out) == (code, ""), line
        assert says in ended.err
        assert len(ended.err.strip().splitlines()) == 1
        assert not ledger_folder().exists()


def test_showing_needs_no_passphrase(homes: Path, heart: Path, cloister: Command) -> None:
    cloister("budget", "heart", *DECLARE)
    (homes / "passphrase").write_text("not the one")
    common.passphrase.cache_clear()
    assert cloister("budget").code == 0
    assert cloister("budget", "heart").code == 0
    assert cloister("budget", "heart", "--epsilon", "1", "--delta", "1e-5").code == 2


def test_an_anchor_is_kept_and_required(heart: Path, cloister: Command, people: dict[str, Identity]) -> None:
    cloister("budget", "heart", *DECLARE)
    set_ = cloister("budget", "--anchor", "elsewhere/anchor", "--json")
    assert set_.json["rollback_detected"] == f"against {Path('elsewhere/anchor').absolute()}"
    yesterday = heart.parent / "yesterday"
    shutil.copytree(heart, yesterday)
    spend(people)
    assert cloister("budget").code == 0
    shutil.rmtree(heart)
    shutil.copytree(yesterday, heart)
    refused = cloister("budget")
    assert refused.code == 3
    assert "restored from an older copy" in refused.err
    Path("elsewhere/anchor").unlink()
    refused = cloister("budget")
    assert refused.code == 3
    assert "anchor cannot be used" in refused.err


def test_new_keys_open_the_old_ledger(heart: Path, cloister: Command) -> None:
    cloister("budget", "heart", *DECLARE)
    assert cloister("keys", "rotate").code == 0
    assert cloister("budget").code == 0
    assert cloister("budget", "heart", "--epsilon", "2", "--delta", "1e-5").code == 0
    assert cloister("budget", "--json").json["populations"][0]["epsilon"] == 2.0


def test_a_ledger_of_somebody_else(homes: Path, heart: Path, cloister: Command) -> None:
    cloister("budget", "heart", *DECLARE)
    shutil.copytree(heart / "ledger", homes / "eve" / "ledger")
    refused = cloister("budget", home=homes / "eve")
    assert refused.code == 3
    assert "another identity" in refused.err


def test_a_table_on_a_terminal(
    heart: Path, cloister: Command, people: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloister("budget", "heart", *DECLARE)
    spend(people)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown = cloister("budget").out
    assert "\x1b[" in shown
    assert "of the budget" in shown
    assert "heart-study" in shown


def test_a_tpm_counter_notices_a_home_put_back_and_says_what_it_is(
    heart: Path, cloister: Command, people: dict[str, Identity], tmp_path: Path
) -> None:
    from cloister.cli.ledgercounter import counters
    from cloister.enclave.attester import why_no_swtpm

    missing = why_no_swtpm()
    if missing is not None:
        pytest.skip(missing)
    assert cloister("budget", "heart", *DECLARE).code == 0
    refused = cloister("budget", "--tpm-counter")
    assert refused.code == 3
    assert "no TPM" in refused.err
    begun = cloister("budget", "--tpm-counter", "--allow-software-tpm")
    assert begun.code == 0, begun.err
    assert "A counter in a TPM anchors it" in begun.out
    assert "NOT HARDWARE-PROTECTED" in begun.out
    assert cloister("budget", "--json").json["ledger"]["tpm_counter"] is True
    shutil.copytree(heart / "ledger", tmp_path / "ledger")
    shutil.copy(heart / "ledger.head", tmp_path)
    with common.open_ledger(heart, people["ann"]) as ledger:
        ledger.spend("heart", "mean age", Cost(0.01, 0.0, ledger.order("heart")))
    shutil.rmtree(heart / "ledger")
    shutil.copytree(tmp_path / "ledger", heart / "ledger")
    shutil.copy(tmp_path / "ledger.head", heart)
    older = cloister("budget", "heart", "--epsilon", "2", "--delta", "1e-5")
    assert older.code == 3
    assert "restored from an older copy: its counter has moved on" in older.err
    with pytest.raises(Exception, match="older copy"):
        Ledger.open(heart / "ledger", people["ann"], counters=counters(heart))
