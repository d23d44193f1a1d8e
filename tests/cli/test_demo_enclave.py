"""`cloister demo --enclave`: keys after attestation alone, a changed package refused, and no false claim of
hardware."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.enclave.attester.machine import needs_swtpm
from tests.runtime.workers.walls import needs_walls

from cloister.cli.main import run
from cloister.enclave.broker import decode_entry, read_log
from cloister.enclave.broker.entries import Refusal, ReleaseMade
from cloister.errors import PolicyRefused
from cloister.report import load_report
from cloister.report.texts import say


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run."""
    needs_swtpm()
    needs_walls()
    out = tmp_path_factory.mktemp("enclave") / "out"
    assert run(["demo", "--enclave", "--no-privacy", "--out", str(out)]) == 0
    return out


def test_keys_are_released_to_attested_workers_and_to_no_changed_package(finished: Path) -> None:
    enclave = load_report(finished / "report.json").enclave
    assert enclave is not None
    accepted = [each for each in enclave.attestations if each.accepted]
    refused = [each for each in enclave.attestations if not each.accepted]
    assert {each.asked_by for each in accepted} == {"harbour", "lakeside", "hillcrest", "meadow"}
    assert all(each.keys > 0 for each in accepted)
    assert len({each.package for each in accepted}) == 1
    assert [each.keys for each in refused] == [0]
    assert refused[0].package not in {accepted[0].package, None}
    assert refused[0].reasons[0].startswith("measurements: it is none of the accepted images")


def test_the_report_shows_why_and_claims_no_hardware(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "one byte of secagg/encoding.py changed" in page
    assert "measurements: it is none of the accepted images" in page
    if load_report(finished / "report.json").enclave.protection == "hardware":  # type: ignore[union-attr]
        return
    assert f'<p class="unprotected">{say("en", "not_hardware")}</p>' in page
    certificate = json.loads((finished / "report.json").read_text())["certificate_in_words"]
    assert any("not hardware-protected" in sentence for sentence in certificate)


def test_every_release_and_refusal_is_in_a_brokers_log(finished: Path) -> None:
    enclave = load_report(finished / "report.json").enclave
    assert enclave is not None
    entries = []
    for folder in (finished / "brokers").iterdir():
        log = read_log(folder)
        entries += [decode_entry(log.entry(index)) for index in range(len(log))]
    made = [entry for entry in entries if isinstance(entry, ReleaseMade)]
    refusals = [entry for entry in entries if isinstance(entry, Refusal)]
    assert enclave.log_entries == len(made) + len(refusals)
    assert sum(each.keys for each in enclave.attestations) == sum(entry.count for entry in made)
    assert len(refusals) == 1


def test_the_policy_of_an_earlier_run_accepts_the_same_package_alone(
    finished: Path, tmp_path: Path, cloister: Command
) -> None:
    text = (finished / "enclave-policy.toml").read_text()
    rules = tomllib.loads(text)
    measured = rules["measurements"][0]["values"]["start:package"]
    policy, out = tmp_path / "policy.toml", tmp_path / "again"
    policy.write_text(text.replace(measured, measured[::-1]))
    done = cloister("demo", "--no-privacy", "--enclave-policy", policy, "--out", out)
    assert done.code == 3
    assert "none of the accepted images" in done.err
    assert not out.exists()


def test_a_policy_that_would_accept_a_changed_package_is_told_before_anything(
    tmp_path: Path, cloister: Command
) -> None:
    policy, out = tmp_path / "policy.toml", tmp_path / "out"
    policy.write_text('kinds = ["tpm"]\nallow_software_tee = true\nallow_self_reported = true\n')
    done = cloister("demo", "--no-privacy", "--enclave-policy", policy, "--out", out)
    assert done.code == 2
    assert "names no measurement" in done.err
    assert not out.exists()


def test_a_machine_without_walls_is_told_before_anything(
    tmp_path: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> None:
        raise PolicyRefused("this machine cannot wall in a worker: user namespace is missing")

    monkeypatch.setattr("cloister.cases.keepers.require", lacking)
    done = cloister("demo", "--no-privacy", "--enclave", "--out", tmp_path / "out")
    assert done.code == 3
    assert "--worker" not in done.err  # the demo has no such option
    assert not (tmp_path / "out").exists()
