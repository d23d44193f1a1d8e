"""kill -9 at 50 random instants of private studies: what left was debited, rows stay, and nothing runs twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.runtime import killed

from cloister.privacy.ledger import Ledger

ROOT = Path(__file__).parents[2]
ATTEMPTS_A_BLOCK = 4


def start(root: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runtime.killed", str(root), str(number)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()[1]
    return process


def witnessed(root: Path, name: str) -> int:
    path = root / "witness" / name
    return path.stat().st_size if path.exists() else 0


def check(root: Path) -> None:
    """Every ledger has debited at least what was computed from rows, and every row is there."""
    for name, rows in killed.SITES.items():
        identity = killed.identity_of(root, name)
        with Ledger.open(root / "ledgers" / name, identity) as ledger:
            ledger.verify()
            status = ledger.status("people")
        blocks = sum(entry.count for entry in status.entries)
        assert blocks * ATTEMPTS_A_BLOCK >= witnessed(root, name)
        a_block = max((entry.spent.rdp / entry.count for entry in status.entries if entry.count), default=0.0)
        assert status.spent.rdp >= a_block * blocks * (1 - 1e-9)
        vault = killed.vault_of(root, name, identity)
        assert all(one.ok for one in vault.verify("train"))
        assert vault.manifest("train").rows == rows


@pytest.mark.slow
def test_a_study_killed_at_any_instant_never_debits_less_than_left(tmp_path: Path) -> None:
    killed.prepare(tmp_path)
    instants = random.Random(20)  # noqa: S311  # when to kill is no secret
    began = time.monotonic()
    with start(tmp_path, 0) as process:  # how long one takes
        assert process.wait(60) == 0
    whole = time.monotonic() - began
    interrupted = 0
    for number in range(1, 51):
        with start(tmp_path, number) as process:
            time.sleep(instants.uniform(0.0, 0.35 * whole))
            before = {name: witnessed(tmp_path, name) for name in killed.SITES}
            os.killpg(process.pid, signal.SIGKILL)
            ended = process.wait(30)
        check(tmp_path)
        if ended == -signal.SIGKILL and any(before.values()) and number % 10 == 0:
            interrupted += run_again(tmp_path, number)
    assert interrupted, "no study was killed between its first byte and its end"


def run_again(root: Path, number: int) -> int:
    """Run the killed study's plan again: it is refused, its started blocks stay spent, the others come back."""
    with Ledger.open(root / "ledgers" / "site0", killed.identity_of(root, "site0")) as ledger:
        entries = [each for each in ledger.status("people").entries if each.name == f"study-{number}"]
    if not entries or not entries[0].count or entries[0].state == "closed":
        return 0
    process = start(root, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted" in error
    with Ledger.open(root / "ledgers" / "site0", killed.identity_of(root, "site0")) as ledger:
        after = next(each for each in ledger.status("people").entries if each.name == f"study-{number}")
    assert after.count == entries[0].count
    assert after.held.rdp == 0.0
    return 1
