"""The benchmark of five banks, whole: a base of nothing much, a tenth of the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from benchmarks import lora_accelerator
from examples.make_base import Recipe, make_base

ROOT = Path(__file__).resolve().parents[2]
SMALL = Recipe(seconds=5.0, epochs=1, vocabulary=300, hidden=16, inner=16, layers=1, heads=2, length=32)
TEXTS = [f"Question {number} about a lost card, a late card: what is it?" for number in range(100)]


def test_without_data_its_figure_is_null_with_a_reason() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CLOISTER_TEST_DATA"}
    printed = run("--quick", environment=environment)
    assert printed["federated"] is None
    assert "no data" in printed["reasons"]["data"]


@pytest.mark.slow
def test_its_figures_are_there_and_are_fractions(tmp_path: Path) -> None:
    data = os.environ.get("CLOISTER_TEST_DATA")
    if data is None or not (Path(data) / "text" / "banking77_train.csv").is_file():
        pytest.skip("BANKING77 is not in $CLOISTER_TEST_DATA")
    base = make_base(TEXTS, tmp_path, SMALL, lambda line: None)
    printed = run("--quick", "--base", str(base), environment=dict(os.environ))
    private = printed["private"]
    for value in (printed["federated"], printed["centralised"], printed["tfidf"], *printed["local"]):
        assert 0.0 <= value <= 1.0
    assert len(printed["local"]) == 5
    assert {"accuracy", "central", "step_ratio"} <= set(private)
    assert 1.0 <= printed["bytes_per_param_8"] < 5.0, "a small adapter, whose bytes are those of messages too"
    assert printed["hub_peak_over_adapter"]["3"] > 1.0
    for name in ("hub_peak_over_adapter", "accelerator"):
        assert name in printed["reasons"] or printed[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # asked by peft
def test_the_steps_of_an_accelerator_run_on_a_cpu() -> None:
    found = lora_accelerator.measure(lora_accelerator.TINY, "cpu")
    assert found["study_over_plain"] > 0.0
    assert found["private_over_plain"] > 0.0
    assert "mean nothing" in found["device"]


def run(*options: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.lora", *options],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed
