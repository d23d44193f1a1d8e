from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "local_privacy.py"


def test_the_four_cases_run_and_are_estimated() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for case in (
        "score of person-0",
        "noisy prediction",
        "treatment surgery",
        "vehicle person-0",
        "mean reading",
    ):
        assert case in done.stdout
    ranges = re.findall(r": ([\d.]+)(?: people| degrees)?, estimated ([\d.]+) to ([\d.]+)", done.stdout)
    assert len(ranges) == 6
    held = sum(float(low) <= float(true) <= float(high) for true, low, high in ranges)
    assert held >= 3  # of six at 95 %: fewer once in 10**5 runs
    assert "asked about person-0 again: 2 more answers, then: 1 of 1 people have too little" in done.stdout
