"""`cloister site`: the policy's file, approvals by hand, and the dry run, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pytest
import typer
from click.testing import Result
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.runtime.invitations import NAMES, hub, known, own, people, plan_of
from tests.runtime.parties import PURPOSE, SCHEMA, schema, table
from typer.testing import CliRunner

from cloister.cli import common
from cloister.cli.main import run
from cloister.cli.sitepolicy import TEMPLATE, approvals, dry_run, policy
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.learning import Plan, SiteEntry
from cloister.policy import decode_toml
from cloister.runtime.approvals import Approvals, admit
from cloister.runtime.sitepolicy import SitePolicy, load_site_policy, site_policy_path
from cloister.vault import Vault

app = typer.Typer()
app.add_typer(policy, name="policy")
app.add_typer(approvals, name="approvals")


@app.callback(invoke_without_command=True)
def _site(
    plan: Annotated[Path | None, typer.Option("--dry-run")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    if plan is not None:
        dry_run(plan, as_json=as_json)


Call = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """North's home, with rows, trusting everybody but eve."""
    make_homes(tmp_path, {name: people()[name] for name in NAMES[:-1]})
    vault = Vault.unlock(tmp_path / "north" / "vault", people()["north"], PASSPHRASE, cost=CHEAP)
    vault.add_table(table(60, 1), name="rows", schema=schema(), purposes=[PURPOSE])
    be(monkeypatch, tmp_path, "north")
    yield tmp_path / "north"
    common.passphrase.cache_clear()


@pytest.fixture
def site() -> Call:
    """Run `site ...`; a refusal with a sentence is raised as the error it is."""

    def call(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, CloisterError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def ask(home: Path, plan: Plan) -> str:
    store = Approvals(home / "approvals", people()["north"].public)
    policy_now = load_site_policy(home, people()["north"].public)
    assert admit(plan, hub(), policy_now, known(), store, own=own()).verdict == "ask"
    return plan.digest.hex()


def written(folder: Path, plan: Plan) -> Path:
    path = folder / "plan.toml"
    path.write_text(plan.to_toml())
    return path


def test_the_template_asks_about_everything_and_its_rules_are_rules() -> None:
    assert decode_toml(TEMPLATE.encode(), SitePolicy, "site policy") == SitePolicy()
    plain = [line.split("  #")[0].removeprefix("# ") for line in TEMPLATE.splitlines()[4:]]
    rules = decode_toml("\n".join(plain).encode(), SitePolicy, "site policy")
    assert rules.purposes == ("credit scoring",)
    assert rules.privacy.unit == "patient"
    named = {line.partition(" =")[0] for line in plain if " =" in line}
    assert named == {*SitePolicy.__struct_fields__, *type(rules.privacy).__struct_fields__} - {
        "privacy",
        "decision",
    }


def test_a_policy_is_made_signed_and_shown(home: Path, site: Call) -> None:
    assert "every study is asked about" in site("policy", "show").stdout
    assert site("policy", "init").exit_code == 0
    with pytest.raises(InputError, match="there is a site policy"):
        site("policy", "init")
    with pytest.raises(InputError, match="not signed"):
        site("policy", "show")
    path = site_policy_path(home)
    path.write_text('decision = "accept"\nhubs = ["hub"]\n[privacy]\nmaximum_epsilon = 1.0\n')
    assert site("policy", "sign").exit_code == 0
    shown = site("policy", "show").stdout
    assert set(shown.splitlines()) == {
        "decision: accept",
        "hubs: hub",
        "hub_view: sum",
        "enclave: none",
        "privacy maximum_epsilon: 1.0",
        "privacy adversary: hub",
        "public_rows: may not be declared",
        "user_code: none",
    }
    as_json = json.loads(site("policy", "show", "--json").stdout)
    assert as_json["signed"] is True
    assert as_json["policy"]["privacy"]["maximum_epsilon"] == 1.0
    path.write_text('decision = "accept"\n')
    with pytest.raises(IntegrityError, match="changed after it was signed"):
        site("policy", "show")


def test_keys_sign_policy_signs_either_kind(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = site_policy_path(home)
    path.parent.mkdir()
    path.write_text('decision = "accept"\n')
    assert run(["keys", "sign-policy", str(path)]) == 2  # it is no release policy
    assert run(["keys", "sign-policy", str(path), "--kind", "site"]) == 0
    assert load_site_policy(home, people()["north"].public) == SitePolicy(decision="accept")
    path.write_text("minimum_sites = 3\n")  # a rule that both kinds know
    assert run(["keys", "sign-policy", str(path)]) == 0
    with pytest.raises(IntegrityError):
        load_site_policy(home, people()["north"].public)
    path.write_text("minimum_site = 3\n")
    capsys.readouterr()
    assert run(["keys", "sign-policy", str(path), "--kind", "site"]) == 2
    assert "minimum_sites" in capsys.readouterr().err


def test_approvals_from_ask_to_decision(home: Path, site: Call) -> None:
    assert site("approvals", "ls").stdout == "No plan was asked about.\n"
    digest = ask(home, plan_of())
    listed = site("approvals", "ls").stdout
    assert listed == f"{digest[:16]}  pending   loans-1  from hub\n"
    shown = site("approvals", "show", digest[:12]).stdout
    assert "Decided by hand: pending." in shown
    assert "the number of rows: 60" in shown
    assert plan_of().to_toml() in shown
    as_json = json.loads(site("approvals", "show", digest, "--json").stdout)
    assert as_json["disclosure"]["rows"] == 60
    assert site("approvals", "approve", digest[:8]).stdout.startswith("Approved: study loans-1")
    assert json.loads(site("approvals", "ls", "--json").stdout)["approvals"][0]["state"] == "approved"
    assert json.loads(site("approvals", "refuse", digest, "--json").stdout)["state"] == "refused"
    for command in ("show", "approve", "refuse"):
        with pytest.raises(InputError):
            site("approvals", command, "0" * 64)


def test_an_approval_says_where_it_is_of_no_use(home: Path, site: Call) -> None:
    digest = ask(home, plan_of())
    path = site_policy_path(home)
    path.parent.mkdir()
    path.write_text("minimum_sites = 9\n")
    assert site("policy", "sign").exit_code == 0
    assert "refused all the same" in site("approvals", "approve", digest).stderr


def test_a_dry_run_says_what_would_leave_and_leaves_nothing(home: Path, site: Call, tmp_path: Path) -> None:
    before = sorted(path for path in home.rglob("*"))
    result = site("--dry-run", written(tmp_path, plan_of()))
    assert result.exit_code == 0
    for words in ("Verdict: ask.", "rows: 60", "a masked update", "What stays: rows", "Not known: epsilons"):
        assert words in result.stdout
    assert sorted(path for path in home.rglob("*")) == before
    shown = json.loads(site("--dry-run", written(tmp_path, plan_of(privacy={})), "--json").stdout)
    assert shown["verdict"] == "ask"
    assert 0 < shown["epsilon_hub"] <= shown["epsilon_colluders"] <= 1.0
    assert shown["sent_bytes"] > 0
    assert shown["obstacles"] == []
    text = site("--dry-run", written(tmp_path, plan_of(privacy={}))).stdout
    assert "Privacy of one row: epsilon" in text


def test_a_dry_run_ends_as_the_study_would(home: Path, site: Call, tmp_path: Path) -> None:
    path = written(tmp_path, plan_of(study={"purpose": "advertising"}))
    result = site("--dry-run", path)
    assert result.exit_code == 1
    assert "not added for the plan's purpose" in result.stdout
    policy_path = site_policy_path(home)
    policy_path.parent.mkdir()
    policy_path.write_text('purposes = ["testing"]\n')
    assert site("policy", "sign").exit_code == 0
    result = site("--dry-run", path)
    assert result.exit_code == 3
    assert "Verdict: refuse. purposes:" in result.stdout
    common.trust_store().remove("hub")
    result = site("--dry-run", written(tmp_path, plan_of()))
    assert result.exit_code == 3
    assert "hub is not trusted" in result.stdout


def test_a_dry_run_never_runs_code_that_was_not_allowed(home: Path, site: Call, tmp_path: Path) -> None:
    torch = plan_of(model={"kind": "torch", "code": "c" * 64, "factory": "build", "classes": 2})
    shown = json.loads(site("--dry-run", written(tmp_path, torch), "--json").stdout)
    assert shown["sent_bytes"] is None
    assert any("Python code" in each for each in shown["unknown"])


def test_who_is_not_named_is_told(home: Path, site: Call, tmp_path: Path) -> None:
    eve = SiteEntry(name="eve", identity=people()["eve"].fingerprint, dataset="rows")
    path = written(tmp_path, plan_of(sites=(*plan_of().sites[1:], eve)))
    with pytest.raises(InputError, match="does not name this site"):
        site("--dry-run", path)


def test_study_check_predicts_memory_and_time(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cloister.cli.studycheck import in_words, meaning

    plan = plan_of()
    assert meaning(plan, None)["hub_memory_bytes"] is None
    fast, slow = (meaning(plan, schema(), link_mbit=speed) for speed in (1000.0, 0.01))
    assert fast["hub_memory_bytes"] == slow["hub_memory_bytes"] > 100 << 20
    assert slow["round_seconds"] > fast["round_seconds"]
    text = in_words(plan, slow)
    assert "Memory: about " in text
    assert "at 0.01 Mbit/s" in text
    (tmp_path / "schema.toml").write_bytes(SCHEMA)
    path = written(tmp_path, plan)
    assert run(["study", "check", str(path), "--schema", str(tmp_path / "schema.toml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["site_memory_bytes"] == fast["site_memory_bytes"]
    assert printed["link_mbit"] == 100.0
