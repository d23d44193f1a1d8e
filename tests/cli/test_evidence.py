"""Plans that ask for evidence, from the command line: refused without hardware, named where software is allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.enclave.attester.machine import needs_swtpm
from tests.runtime.parties import PURPOSE, SCHEMA, table

from cloister.cli import common
from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.enclave.policy import ENCLAVE_POLICY, EnclavePolicy
from cloister.policy import sign_toml
from cloister.vault import Vault, load_schema

NAMES = ("north", "south", "west")
LENIENT = 'kinds = ["tpm"]\nallow_software_tee = true\nallow_self_reported = true\n'


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Homes of three sites and a hub, which is who runs commands, and a plan that asks for evidence."""
    (tmp_path / "schema.toml").write_bytes(SCHEMA)
    identities = {name: Identity.generate(name) for name in (*NAMES, "hub")}
    make_homes(tmp_path, identities)
    for seed, name in enumerate(NAMES):
        vault = Vault.unlock(tmp_path / name / "vault", identities[name], PASSPHRASE, cost=CHEAP)
        vault.add_table(table(60, seed), name="rows", schema=load_schema(SCHEMA), purposes=[PURPOSE])
    be(monkeypatch, tmp_path, "hub")
    plan = tmp_path / "plan.toml"
    named = ["study", "init", "loans", *sites(tmp_path), "--purpose", PURPOSE, "--rounds", "2"]
    assert run([*named, "--out", str(plan)]) == 0
    plan.write_text(plan.read_text() + "\n[enclave]\nrequired = true\n")
    yield tmp_path
    common.passphrase.cache_clear()


def sites(made: Path) -> list[str]:
    return [text for name in NAMES for text in ("--site", str(made / name))]


def allow_software(made: Path, name: str = "hub") -> None:
    path = made / name / "policy" / "enclave.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(LENIENT)
    owner = Identity.load(made / name / "identity.json", PASSPHRASE)
    sign_toml(path, EnclavePolicy, ENCLAVE_POLICY, [owner])


def test_software_alone_is_named_in_every_line_and_in_the_release(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_swtpm()
    allow_software(made)
    capsys.readouterr()
    assert run(["study", "run", str(made / "plan.toml"), *sites(made)]) == 0
    said = capsys.readouterr().err
    assert "NOT hardware-protected: a software TPM" in said
    assert said.count("is accepted (tpm): not hardware-protected") == 3
    record = (made / "hub" / "studies" / "loans" / "record.dsse.json").read_bytes()
    assert record


def up(made: Path) -> subprocess.CompletedProcess[str]:
    """Run the plan as processes; `up` is one itself, so that what it opens is closed with it."""
    command = [sys.executable, "-m", "cloister", "up", str(made / "plan.toml"), *sites(made)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_processes_over_a_network_show_each_other_software_evidence(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_swtpm()
    for name in ("hub", *NAMES):
        allow_software(made, name)
    capsys.readouterr()
    done = up(made)
    assert done.returncode == 0, done.stderr
    for name in ("hub", *NAMES):
        lines = [json.loads(line) for line in (made / name / "logs" / "loans.jsonl").read_text().splitlines()]
        shown = [line for line in lines if line["event"] == "evidence_accepted"]
        assert {line["protection"] for line in shown} == {"not hardware-protected"}
        assert {line["peer"] for line in shown} == (set(NAMES) if name == "hub" else {"hub"})
    release = made / "release"
    assert run(["release", "loans", "--out", str(release), *sites(made)]) == 0
    capsys.readouterr()
    assert run(["verify", str(release)]) == 0
    printed = capsys.readouterr()
    assert "not hardware-protected" in printed.out + printed.err


@pytest.mark.slow
def test_a_site_whose_owner_allows_no_software_leaves_a_hub_over_it(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing on the site's machine could vouch for it either, so it does not even begin."""
    needs_swtpm()
    if Path("/dev/tpmrm0").exists():
        pytest.skip("this machine has a TPM")
    plan = made / "plan.toml"
    plan.write_text(
        plan.read_text().replace("deadline_seconds = 60.0", "deadline_seconds = 2.0\npatience = 2")
    )
    for name in ("hub", "north", "south"):
        allow_software(made, name)
    capsys.readouterr()
    done = up(made)
    assert done.returncode != 0
    assert "nothing on this machine can vouch for it" in done.stderr


def test_without_hardware_the_default_policy_lets_nobody_begin(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.enclave.attester.tsm.TsmReports.kind", lambda reports: None)
    monkeypatch.setattr("cloister.enclave.attester.attest.DEVICE", made / "no-tpm")
    capsys.readouterr()
    if Path("/dev/tpmrm0").exists():
        pytest.skip("this machine has a TPM")
    assert run(["study", "run", str(made / "plan.toml"), *sites(made)]) == 3
    error = capsys.readouterr().err
    assert "nothing on this machine can vouch for it" in error
    assert "allow_software_tee = true" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", [("study", "run"), ("up",)])
def test_evidence_of_a_worker_without_walls_is_not_shown(
    made: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """It would be accepted, and say nothing about where the rows were read."""
    for name in ("hub", *NAMES):
        allow_software(made, name)
    capsys.readouterr()
    assert run([*command, str(made / "plan.toml"), *sites(made), "--worker", "inside"]) == 3
    assert "Leave out --worker inside" in capsys.readouterr().err
    assert not (made / "hub" / "studies").exists()


@pytest.mark.parametrize(
    "text", ['kinds = ["snp"]\nallow_software_tee = true\n', "alow_debug = true\n", "kinds = []\n"]
)
def test_a_policy_that_contradicts_itself_cannot_be_signed_nor_used(
    made: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = made / "hub" / "policy" / "enclave.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    capsys.readouterr()
    assert run(["enclave", "policy", "sign"]) == 2
    assert run(["study", "run", str(made / "plan.toml"), *sites(made)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error


def test_a_policy_that_was_changed_after_it_was_signed_counts_for_nothing(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow_software(made)
    path = made / "hub" / "policy" / "enclave.toml"
    path.write_text(LENIENT + "allow_debug = true\n")
    capsys.readouterr()
    assert run(["study", "run", str(made / "plan.toml"), *sites(made)]) == 1
    assert "Traceback" not in capsys.readouterr().err
