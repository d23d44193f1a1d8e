"""`cloister audit`: a study of this home, a release, owners' rows; exit codes, files and their modes."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.governance.audits import PRIVACY, SURE
from tests.runtime.parties import PURPOSE, plan_for, schema, table

from cloister.cli import common
from cloister.cli.audit import _TEXT_STAGES, _watching
from cloister.cli.main import run
from cloister.crypto import Identity, TrustStore
from cloister.governance.audit import CONSISTENT, VIOLATES, AuditReport
from cloister.learning import PrivacySection
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import Party, Study, globalmodel, save_study
from cloister.vault import Vault

NAMES = ("north", "south", "west")
QUICK = ("--canaries", "30", "--confidence", str(SURE))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of a hub and three sites, and studies: `claims` with privacy, `open` and `hidden` without."""
    root = tmp_path_factory.mktemp("homes")
    identities = {name: Identity.generate(name) for name in (*NAMES, "hub", "other")}
    make_homes(root, identities)
    hub, parties = identities["hub"], []
    for seed, name in enumerate(NAMES):
        vault = Vault.unlock(root / name / "vault", identities[name], PASSPHRASE, cost=CHEAP)
        vault.add_table(table(40, seed), name="train", schema=schema(), purposes=[PURPOSE])
        trusted = tuple(TrustStore(root / name / "trust").list())
        parties.append(Party(identities[name], vault, trusted=trusted))

    def keep(name: str, members: Sequence[Party], privacy: PrivacySection | None, view: str) -> None:
        training = {"rounds": 6, "batch": 30, "local_steps": 1}
        changes = {"study": {"name": name}, "aggregation": {"hub_view": view}, "training": training}
        plan = msgspec.structs.replace(plan_for(hub, members, **changes), privacy=privacy)
        save_study(root / "hub" / "studies", Study(plan, hub, members).run(), hub)

    keep("open", parties, None, "sum")
    keep("hidden", parties, None, "none")
    with ExitStack() as ledgers:
        paying = []
        for party in parties:
            home = root / party.identity.name
            ledger = ledgers.enter_context(Ledger.open(home / "ledger", party.identity))
            ledger.declare("people", Cap.of(20.0, 1e-3))
            dataset = party.vault.manifest("train").dataset_id
            ledger.bind("people", dataset, party.vault.fingerprints("train"))
            paying.append(replace(party, ledger=ledger))
        keep("claims", paying, PRIVACY, "sum")
    return root


@pytest.fixture(autouse=True)
def _as_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be(monkeypatch, root, "hub")
    yield
    common.passphrase.cache_clear()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_study_that_claims(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "claims", *QUICK, "--json"]) == 0
    printed = capfd.readouterr()
    result = json.loads(printed.out)
    assert result["claimed"] == pytest.approx(2.0, abs=2e-3)
    assert 0.0 <= result["bound"] <= result["claimed"]
    assert result["confidence"] == SURE
    assert result["verdict"] == CONSISTENT
    assert msgspec.convert(result, AuditReport).study == "claims"
    assert printed.err == ""


def test_a_mechanism_that_is_not_the_claimed_one_ends_with_1(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = globalmodel.server_mean
    monkeypatch.setattr(
        globalmodel, "server_mean", lambda *all_, divisor, **more: right(*all_, divisor=divisor / 2, **more)
    )
    assert run(["audit", "claims", *QUICK, "--json"]) == 1
    result = json.loads(capfd.readouterr().out)
    assert result["verdict"] == VIOLATES
    assert [check["name"] for check in result["checks"] if not check["holds"]] == ["divisor"]
    assert run(["audit", "claims", *QUICK]) == 1
    assert capfd.readouterr().out.startswith("Violates the claim")


def test_a_study_that_claims_nothing(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "open", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["claimed"] is None
    assert result["bound"] is None
    assert result["verdict"] is None
    assert "No privacy was claimed" in result["explanation"]
    assert result["inversion"][0]["exact"] == 1.0
    assert run(["audit", "open", "--lang", "zh"]) == 0
    assert capfd.readouterr().out.startswith("没有声明任何隐私保护")


def test_files_are_written_once_and_for_everybody_where_no_row_is_in_them(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "audit.html", tmp_path / "out"
    assert run(["audit", "open", "--html", str(page), "--out", str(out)]) == 0
    assert (mode_of(page), mode_of(out / "audit.json"), mode_of(out)) == (0o644, 0o644, 0o755)
    assert msgspec.json.decode((out / "audit.json").read_bytes(), type=AuditReport).study == "open"
    assert page.read_bytes() == (out / "audit.html").read_bytes()
    capfd.readouterr()
    for option, target in (("--html", page), ("--out", out)):
        assert run(["audit", "open", option, str(target)]) == 2
        assert "exists" in capfd.readouterr().err


def test_owners_rows_stay_with_their_owner(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "own.html", tmp_path / "own"
    homes = [text for name in ("north", "west") for text in ("--site", str(root / name))]
    assert run(["audit", "open", *homes, "--html", str(page), "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert "north, west" in printed.err
    assert "owner alone" in printed.err
    assert "Owners' rows" in printed.out
    assert (mode_of(page), mode_of(out / "audit.json"), mode_of(out)) == (0o600, 0o600, 0o700)
    report = msgspec.json.decode((out / "audit.json").read_bytes(), type=AuditReport)
    assert report.rows == "own"
    assert report.membership is not None
    assert report.membership.rows == 80
    everything = page.read_text() + (out / "audit.json").read_text() + printed.out + printed.err
    for seed in (0, 2):
        for column in ("a", "b"):
            assert not any(
                f"{value:.8f}" in everything for value in table(40, seed).column(column).to_pylist()
            )


def test_a_study_that_the_hub_cannot_open_is_audited_with_a_sites_key(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "hidden"]) == 2
    assert "--site" in capfd.readouterr().err
    assert run(["audit", "hidden", "--site", str(root / "north"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["hub_view"] == "none"


def test_a_release_is_verified_first(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "release"
    sites = [text for name in NAMES for text in ("--site", str(root / name))]
    assert run(["release", "claims", "--out", str(folder), *sites]) == 0
    capfd.readouterr()
    be(monkeypatch, root, "other")
    assert run(["audit", str(folder), *QUICK, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["study"], result["verdict"]) == ("claims", CONSISTENT)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "plan.toml").write_bytes((broken / "plan.toml").read_bytes() + b"\n# more\n")
    assert run(["audit", str(broken), *QUICK]) == 1
    assert "does not verify" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "no study"),
        (["open", "--confidence", "1"], "--confidence"),
        (["open", "--canaries", "3"], "3 canaries are not between 10 and 1000000 (--canaries)"),
        (["./nowhere"], "cannot read"),
        (["open", "--site", "nowhere"], "cannot read"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_ends_with_2_and_one_sentence(
    arguments: list[str], said: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", *arguments]) == 2
    printed = capfd.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_home_that_is_no_member_is_refused(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "open", "--site", str(root / "other")]) == 2
    assert "no member" in capfd.readouterr().err


def test_training_says_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    with _watching(_TEXT_STAGES, shown=True) as progress:
        for done in range(13):
            progress("training", done, 12)
        progress("asking", 0, 2)
        progress("asking", 2, 2)
    said = ["training: 25 %", "training: 50 %", "training: 75 %", "training: done", "asking: done"]
    assert capfd.readouterr().err.splitlines() == said
    with _watching(_TEXT_STAGES, shown=False) as progress:
        progress("training", 12, 12)
    assert capfd.readouterr().err == ""
