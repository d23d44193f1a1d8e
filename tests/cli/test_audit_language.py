"""`cloister audit` and `cloister canaries` for language models: a study of this home, and a finished model."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes, tampered
from tests.runtime.languageparties import base, parties, plan_for, schema, table
from tests.runtime.parties import PURPOSE

from cloister.cli import common
from cloister.cli.audit import _own_rows, _Subject
from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.runtime import Party, Study, save_study
from cloister.vault import Vault

NAMES = ("site0", "site1", "site2")
SCHEMA = b"""
[columns.question]
type = "text"
[columns.answer]
type = "text"
role = "label"
"""
SURE = ("--confidence", "0.999999")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of a hub and three sites, and `support`, a finished study of texts."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("homes")
    hub = Identity.generate("hub")
    folder = base(root)
    members = parties(root / "rows", "causal-lm", (8, 8, 8), folder)
    make_homes(root, {"hub": hub, **{each.identity.name: each.identity for each in members}})
    changes = {"study": {"name": "support"}, "training": {"rounds": 1}, "language": {"context": 96}}
    plan = plan_for(hub, members, "causal-lm", folder, **changes)
    save_study(root / "hub" / "studies", Study(plan, hub, members).run(), hub)
    return root


@pytest.fixture(autouse=True)
def _as_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be(monkeypatch, root, "hub")
    yield
    common.passphrase.cache_clear()


def small(root: Path) -> list[str]:
    return ["--base", str(root / "base"), "--copies", "1", "--secrets", "1", "--canaries", "10", *SURE]


@pytest.mark.slow
def test_a_study_of_texts(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "audit.html"
    assert run(["audit", "support", *small(root), "--html", str(page), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["verdict"] is None
    assert result["language"]["source"] == "rehearsed"
    assert [each["copies"] for each in result["language"]["runs"][0]["exposures"]] == [1]
    assert "audit-exposure" in page.read_text()
    assert run(["audit", "support", *small(root)[2:]]) == 2
    assert "--base" in capfd.readouterr().err


@pytest.mark.slow
def test_a_finished_model_is_asked(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    schema, out = tmp_path / "schema.toml", tmp_path / "planted"
    schema.write_bytes(SCHEMA)
    assert (
        run(["canaries", str(schema), "--out", str(out), "--copies", "1,2", "--secrets", "1", "--coins", "6"])
        == 0
    )
    said = capfd.readouterr().out
    assert "rows in" in said
    assert {stat.S_IMODE((out / name).stat().st_mode) for name in ("rows.csv", "canaries.json")} == {0o600}
    planted = [
        "audit",
        "support",
        "--base",
        str(root / "base"),
        "--planted",
        str(out / "canaries.json"),
        *SURE,
    ]
    assert run([*planted, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["language"]["source"] == "planted"
    assert run([*planted, "--copies", "3"]) == 2
    assert "--planted says itself" in capfd.readouterr().err
    schema.write_bytes(SCHEMA + b'[columns.more]\ntype = "text"\n')
    assert run(["canaries", str(schema), "--out", str(tmp_path / "other")]) == 0
    other = str(tmp_path / "other" / "canaries.json")
    assert run(["audit", "support", "--base", str(root / "base"), "--planted", other]) == 2
    assert "another schema" in capfd.readouterr().err


@pytest.mark.slow
def test_a_release_is_audited_and_says_what_an_audit_found(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folder alone, by whoever has it: its training anew, and the released model itself; open or sealed."""
    base, sites = str(root / "base"), [text for name in NAMES for text in ("--site", str(root / name))]
    assert run(["audit", "support", *small(root), "--out", str(tmp_path / "audit")]) == 0
    assert "That is no guarantee, and none is claimed" in capfd.readouterr().out
    release = ["release", "support", "--base", base, *sites]
    stated = ["--audit", str(tmp_path / "audit" / "audit.json")]
    folder, sealed = str(tmp_path / "release"), str(tmp_path / "sealed")
    assert run([*release, "--out", folder, *stated]) == 0
    assert run([*release, "--out", sealed, "--to", "hub"]) == 0
    assert "No guarantee is claimed" in capfd.readouterr().out
    assert run(["verify", folder]) == 0
    assert "found nothing: the secrets that it had planted (1)" in capfd.readouterr().out
    assert "no guarantee is claimed" in (tmp_path / "release" / "MODEL_CARD.md").read_text()

    plan = json.loads((tmp_path / "audit" / "audit.json").read_text())["plan"]
    assert run(["audit", folder, *small(root), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["plan"], result["language"]["source"]) == (plan, "rehearsed")
    (tmp_path / "schema.toml").write_bytes(SCHEMA)
    made = ["canaries", str(tmp_path / "schema.toml"), "--out", str(tmp_path / "planted")]
    assert run([*made, "--copies", "1", "--secrets", "1", "--coins", "2"]) == 0
    planted = ["--planted", str(tmp_path / "planted" / "canaries.json"), "--base", base, *SURE, "--json"]
    capfd.readouterr()
    for each in (folder, sealed):
        assert run(["audit", each, *planted]) == 0
        result = json.loads(capfd.readouterr().out)
        assert (result["plan"], result["language"]["source"]) == (plan, "planted")

    assert run(["audit", folder, *small(root)[2:]]) == 2
    assert "--base" in capfd.readouterr().err
    broken = tampered(tmp_path / "release", tmp_path / "broken", "model.safetensors")
    assert run(["audit", str(broken), *planted]) == 1
    assert "model.safetensors" in capfd.readouterr().err


@pytest.mark.parametrize("copies", ["0", "x", "1,,2", "99999"])
def test_copies_are_numbers(root: Path, copies: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "support", "--base", str(root / "base"), "--copies", copies]) == 2
    assert "--copies" in capfd.readouterr().err


def test_too_few_canaries_are_told_the_bounds_of_texts(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "support", "--base", str(root / "base"), "--canaries", "5"]) == 2
    said = capfd.readouterr().err
    assert "5 canaries are not between 10 and 100000" in said
    assert "leave it out for 40" in said


def test_own_rows_come_with_their_unit(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the column every row of a customer would be a customer."""
    names = ("north", "south", "west")
    identities = {name: Identity.generate(name) for name in names}
    make_homes(tmp_path, identities)
    be(monkeypatch, tmp_path, "north")
    members = []
    for name, identity in identities.items():
        vault = Vault.unlock(tmp_path / name / "vault", identity, PASSPHRASE, cost=CHEAP)
        rows = table("causal-lm", 6, 1, persons=True)
        vault.add_table(rows, name="train", schema=schema("causal-lm", persons=True), purposes=[PURPOSE])
        members.append(Party(identity, vault))
    privacy = {"noise_multiplier": 1.0, "delta": 1e-4, "clip": 1.0, "rate": 0.5}
    unit = {"unit": "person", "sites_per_unit": 1, "expected_units": 2}
    own = schema("causal-lm", persons=True)
    plan = plan_for(Identity.generate("hub"), members, "causal-lm", root / "base", privacy=privacy | unit)
    known = _Subject(plan, own, dict.fromkeys(names, 6), lambda: None)
    name, rows = _own_rows(tmp_path / "north", known)
    assert name == "north"
    assert rows.column("person").to_pylist() == ["p0"] * 3 + ["p1"] * 3
