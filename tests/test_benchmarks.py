from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.common import peer

ROOT = Path(__file__).resolve().parent.parent


def test_a_peer_that_is_not_installed_is_null_with_a_reason() -> None:
    assert peer("no-such-peer", "flower_secagg.py") == (
        None,
        "the peer is not installed; run `make bench-setup`",
    )


@pytest.mark.parametrize(("name", "figure"), [("heart", "federated"), ("heart_dp", "1.0")])
def test_figures_without_data_are_null_with_a_reason(name: str, figure: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CLOISTER_TEST_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(done.stdout)
    assert printed[figure] is None
    assert "no data" in printed["reasons"]["data"]
    assert printed["conditions"]["cores"] >= 1
