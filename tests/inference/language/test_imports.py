"""What importing costs, and that models made for tests are such as the product takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.learning.modelfiles import PlainFolder, check_language_model


def test_made_models_pass(tiny: Path, bert: Path, tool: Path) -> None:
    found = [check_language_model(PlainFolder(path)) for path in (tiny, bert, tool)]
    assert [each.kind for each in found] == ["causal", "encoder", "causal"]


@pytest.mark.parametrize(
    "module",
    [
        "inference.language",
        "inference.language.tools",
        "inference.language.text",
        "inference.language.load",
        "learning.modelfiles",
    ],
)
def test_nothing_heavy_is_imported(module: str, run: Callable[[str], str]) -> None:
    out = run(
        f"import sys, cloister.{module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert out.strip() == "[]"


@pytest.fixture
def run() -> Callable[[str], str]:
    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    return run
