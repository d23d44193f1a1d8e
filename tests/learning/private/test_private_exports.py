from __future__ import annotations

import subprocess
import sys

import cloister.learning.private as room


def test_all_is_sorted_and_whole() -> None:
    assert len(set(room.__all__)) == len(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)
    here = {
        name
        for name, value in vars(room).items()
        if getattr(value, "__module__", "").startswith("cloister.learning.private")
        and not name.startswith("_")
    }
    assert here <= set(room.__all__)


def test_private_training_needs_neither_torch_nor_an_accountant() -> None:
    code = "import sys, cloister.learning.private; print([m for m in ('torch', 'dp_accounting', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
