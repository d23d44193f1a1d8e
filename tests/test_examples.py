"""The example programs run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
