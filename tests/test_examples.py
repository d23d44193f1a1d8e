"""The example programs run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.enclave.attester.machine import needs_swtpm
from tests.inference.client.doubles import TOKEN, ServiceDouble, running
from tests.inference.openai.engine import ScriptedEngine

from cloister.enclave.attester import find_attester, measure
from cloister.inference.openai import OpenAIApp

TRIAL = 'kinds = ["tpm"]\nallow_software_tee = true\nallow_self_reported = true\n'
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_tutorial_program_runs_and_learns():
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "tutorial.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^round ", done.stdout, re.MULTILINE)) == 10
    assert "cannot read its model" in done.stdout
    score = re.search(r"accuracy .*: (\d\.\d+)$", done.stdout, re.MULTILINE)
    assert score is not None, done.stdout
    assert 0.9 < float(score[1]) <= 1.0


def test_the_tutorial_program_stays_at_forty_lines():
    lines = (EXAMPLES / "tutorial.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def private_client(url: str, folder: Path, policy: str) -> subprocess.CompletedProcess[str]:
    (folder / "policy.toml").write_text(policy)
    (folder / "token.txt").write_text(TOKEN + "\n")
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            EXAMPLES / "private_client.py",
            url,
            "policy.toml",
            "token.txt",
            "Hi",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )


def test_the_private_client_asks_who_passes_and_nobody_else(tmp_path: Path) -> None:
    needs_swtpm()
    pytest.importorskip("openai")
    service = ServiceDouble(OpenAIApp(ScriptedEngine("Good morning to you.")))
    attester = find_attester(tmp_path / "machine", software_allowed=True, measured=measure())
    try:
        service.attester = attester
        with running(service) as url:
            done = private_client(url, tmp_path, TRIAL)
            assert done.returncode == 0, done.stderr
            assert "Good morning to you." in done.stdout
            assert (tmp_path / "receipts.jsonl").read_bytes().count(b"\n") == 2  # keys, and one receipt
            asked = len(service.asked)
            refused = private_client(url, tmp_path, "")
            assert refused.returncode == 3
            assert "hardware_rooted" in refused.stderr
            assert len(service.asked) == asked
    finally:
        attester.close()


def test_the_private_client_stays_at_forty_lines():
    lines = (EXAMPLES / "private_client.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 40
