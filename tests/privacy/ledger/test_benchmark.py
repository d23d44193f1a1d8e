from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_benchmark_checks_what_it_measures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ledger", "--blocks", "30", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["overdraft"], found["lost"], found["reservations"], found["writers"]) == (0, 0, 240, 1)
    assert found["granted_of_affordable"] == [50, 50]
    assert found["wait_ms"]["median"] <= found["wait_ms"]["worst"]
    assert found["fsync_ms"]["worst"] >= found["fsync_ms"]["median"] > 0
    assert found["synchronous"] == "FULL"
    assert not list(tmp_path.iterdir())
