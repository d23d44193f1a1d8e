"""`cloister enclave` from the command line: evidence, verdicts, the policy's file, sealed files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.enclave.attester.machine import needs_swtpm
from tests.enclave.samples import VARIABLE, sample

from cloister.cli.enclavepolicy import TEMPLATE
from cloister.crypto import Identity, keyring
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence
from cloister.enclave.policy import EnclavePolicy
from cloister.enclave.policyfile import read_enclave_policy
from cloister.enclave.token import open_token

NONCE = "00112233445566778899aabbccddeeff"
SOFT = 'kinds = ["tpm"]\nallow_software_tee = true\nallow_self_reported = true\n'


@pytest.fixture
def snp(homes: Path, cloister: Command) -> Path:
    """A genuine SEV-SNP report, packed from the files it came in."""
    sample("PROVENANCE.md")
    folder = Path(os.environ[VARIABLE]) / "snp"
    out = Path("snp.json")
    done = cloister(
        *("enclave", "pack", "snp", folder / "coco_test-report.bin", "--out", out),
        *("--endorse", f"vcek={folder / 'coco_test-vcek.der'}"),
        *("--endorse", f"ask_ark={folder / 'amd_ask_ark_milan.pem'}"),
    )
    assert done.code == 0, done.err
    return out


def asked(path: Path) -> str:
    return Evidence.from_json(path.read_bytes()).evidence[0x50:0x90].hex()


def test_genuine_hardware_is_accepted_and_says_so(snp: Path, cloister: Command) -> None:
    given = ("--nonce", asked(snp), "--raw-nonce", "--at", "2024-06-01T00:00:00Z")
    done = cloister("enclave", "verify", snp, *given, "--json")
    assert done.code == 0
    found = done.json
    assert found["accepted"] is True
    assert found["protection"] == "hardware"
    assert found["revocation_checked"] is None
    assert {*Claims.__struct_fields__} - {"reasons"} <= found.keys()
    words = cloister("enclave", "verify", snp, *given).out
    assert words.startswith("accepted")
    assert "NOT HARDWARE-PROTECTED" not in words


def test_without_a_nonce_it_may_be_anybodys(snp: Path, cloister: Command) -> None:
    done = cloister("enclave", "verify", snp, "--at", "2024-06-01T00:00:00Z")
    assert done.code == 1
    assert "REFUSED" in done.out
    assert "because freshness" in done.out


def test_policies_only_tighten_together(snp: Path, cloister: Command) -> None:
    Path("wide.toml").write_text("allow_unbound = true\n")
    Path("narrow.toml").write_text('allow_unbound = true\nplatforms = ["00"]\n')
    at = ("--at", "2024-06-01T00:00:00Z")
    assert cloister("enclave", "verify", snp, *at, "--policy", "wide.toml").code == 0
    both = cloister("enclave", "verify", snp, *at, "--policy", "wide.toml", "--policy", "narrow.toml")
    assert both.code == 1
    assert "because platforms" in both.out


def test_a_token_can_be_kept(snp: Path, cloister: Command, people: dict[str, Identity]) -> None:
    given = ("--nonce", asked(snp), "--raw-nonce", "--at", "2024-06-01T00:00:00Z", "--token", "token.json")
    assert cloister("enclave", "verify", snp, *given).code == 0
    from datetime import UTC, datetime

    at = datetime(2024, 6, 1, tzinfo=UTC)
    token = open_token(
        Path("token.json").read_bytes(), keyring([people["ann"].public]), at=at, max_age_seconds=1
    )
    assert token.accepted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kinds = 3", "kinds"),
        ("allow_debugs = true", "allow_debug"),
        ("require_measurement = true", "none is given"),
    ],
)
def test_a_policy_that_cannot_be_is_a_sentence(snp: Path, cloister: Command, text: str, said: str) -> None:
    Path("p.toml").write_text(text)
    done = cloister("enclave", "verify", snp, "--policy", "p.toml")
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 40, b'{"type":"cloister/evidence/v1","kind":"snp"}'])
def test_what_is_no_evidence_is_a_sentence(homes: Path, cloister: Command, data: bytes) -> None:
    Path("evidence.json").write_bytes(data)
    done = cloister("enclave", "verify", "evidence.json")
    assert done.code == 2
    assert "this is not evidence" in done.err


@pytest.mark.parametrize(
    "option", [("--at", "yesterday"), ("--at", "2024-06-01T00:00:00"), ("--nonce", "zz"), ("--nonce", "00")]
)
def test_options_that_cannot_be_are_a_sentence(snp: Path, cloister: Command, option: tuple[str, str]) -> None:
    assert cloister("enclave", "verify", snp, *option).code == 2


def test_the_policy_file(homes: Path, cloister: Command) -> None:
    shown = cloister("enclave", "policy", "show", "--json").json
    assert shown["signed"] is False
    assert shown["digest"] == EnclavePolicy().digest
    assert cloister("enclave", "policy", "init").code == 0
    assert cloister("enclave", "policy", "init").code == 2  # it would be overwritten
    path = homes / "ann" / "policy" / "enclave.toml"
    path.write_text(SOFT)
    unsigned = cloister("enclave", "policy", "show")
    assert unsigned.code == 2
    assert "cloister enclave policy sign" in unsigned.err
    assert cloister("enclave", "policy", "sign").code == 0
    shown = cloister("enclave", "policy", "show").out
    assert "allow_software_tee = true" in shown
    assert "NOT HARDWARE-PROTECTED" in shown
    path.write_text(SOFT + "allow_debug = true\n")
    assert cloister("enclave", "policy", "show").code == 1


def test_every_line_of_the_template_can_be_had() -> None:
    lines = [
        line.removeprefix("# ")
        for line in TEMPLATE.splitlines()
        if not line.startswith(("# Which", "# evid", "# Take"))
    ]
    text = (
        "\n".join(lines)
        .replace('"..."', '"00"')
        .replace("[[measurements]]                 #", "[[measurements]] #")
    )
    assert read_enclave_policy(text.encode()).gpu.count == 1


def test_evidence_of_a_software_tpm_is_refused_unless_that_is_allowed(homes: Path, cloister: Command) -> None:
    needs_swtpm()
    refused = cloister("enclave", "attest")
    assert refused.code in (0, 3)
    if refused.code == 0:
        pytest.skip("this machine has a TPM or is a confidential guest")
    assert "not hardware-protected" in refused.err
    assert "--allow-software-tpm" in refused.err
    empty = cloister("enclave", "attest", "--allow-software-tpm", "--nonce", "")
    assert empty.code == 2  # a shell's variable that is not set
    assert "the nonce is empty" in empty.err
    assert not Path("evidence.json").exists()
    done = cloister("enclave", "attest", "--allow-software-tpm", "--nonce", NONCE, "--json")
    assert done.code == 0
    assert done.json["protection"] == "not hardware-protected"
    assert "NOT HARDWARE-PROTECTED" in done.err
    verdict = cloister("enclave", "verify", "evidence.json", "--nonce", NONCE)
    assert verdict.code == 1
    assert "NOT HARDWARE-PROTECTED" in verdict.out
    Path("p.toml").write_text(SOFT)
    found = cloister("enclave", "verify", "evidence.json", "--nonce", NONCE, "--policy", "p.toml", "--json")
    assert found.code == 0
    assert found.json["protection"] == "not hardware-protected"
    assert found.json["measurements"]["start:package"]
    other = cloister("enclave", "verify", "evidence.json", "--nonce", NONCE[::-1], "--policy", "p.toml")
    assert other.code == 1
    assert "because freshness" in other.out


def test_a_sealed_file_opens_here_and_an_older_copy_does_not(homes: Path, cloister: Command) -> None:
    needs_swtpm()
    secret, soft = Path("secret"), "--allow-software-tpm"
    secret.write_text("first")
    assert cloister("enclave", "seal", secret, soft).code == 0
    older = Path("secret.tpm-sealed").read_bytes()
    secret.write_text("second")
    assert cloister("enclave", "seal", secret, soft).code == 0
    done = cloister("enclave", "unseal", "secret.tpm-sealed", "--out", "open", soft)
    assert done.code == 0
    assert Path("open").read_text() == "second"
    assert Path("open").stat().st_mode & 0o777 == 0o600
    assert cloister("enclave", "unseal", "secret.tpm-sealed", "--out", "open", soft).code == 2  # there is one
    Path("secret.tpm-sealed").write_bytes(older)
    assert cloister("enclave", "unseal", "secret.tpm-sealed", "--out", "old", soft).code == 3
    data = bytearray(older)
    data[-1] ^= 1
    Path("secret.tpm-sealed").write_bytes(data)
    assert cloister("enclave", "unseal", "secret.tpm-sealed", "--out", "old", soft).code in (1, 3)
    assert not Path("old").exists()
    assert json.loads(older.split(b"\n")[0])["protection"].startswith("not hardware-protected")


def test_two_files_of_one_name_do_not_end_each_other(homes: Path, cloister: Command) -> None:
    """A label has one counter: sealing the second would have closed the first for good, without a word."""
    needs_swtpm()
    soft = "--allow-software-tpm"
    first, second = Path("first/key"), Path("second/key")
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    assert cloister("enclave", "seal", first, soft).code == 0
    refused = cloister("enclave", "seal", second, soft)
    assert refused.code == 2
    assert "--label" in refused.err
    assert not Path("second/key.tpm-sealed").exists()
    assert cloister("enclave", "seal", second, "--label", "second", soft).code == 0
    assert cloister("enclave", "seal", second, "--label", "second", soft).code == 0  # in its own place
    assert cloister("enclave", "unseal", "first/key.tpm-sealed", "--out", "open", soft).code == 0
    assert Path("open").read_text() == "first"
    Path("first/key.tpm-sealed").unlink()
    assert cloister("enclave", "seal", first, soft).code == 2
    assert cloister("enclave", "seal", first, "--replace", soft).code == 0
