"""Both examples, whole: rows, a base, a study, what it is compared with, and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("transformers")

from benchmarks import lora
from examples.make_base import Recipe, make_base
from examples.medical_qa import run as medical
from examples.support_intents import run as intents
from examples.textstudy import command
from examples.textstudy.compare import Comparison
from examples.textstudy.study import Outcome, run_study
from tests.examples.test_prepare import banking, medquad

from cloister.learning import Plan
from cloister.learning.torch.language.examples import Examples

SMALL = Recipe(seconds=5.0, epochs=3, vocabulary=400, hidden=32, inner=32, layers=2, heads=2, length=32)
TEXTS = [f"Question {number} about a lost card, a late card: what is it?" for number in range(200)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(TEXTS, tmp_path_factory.mktemp("bases"), SMALL, lambda line: None)


def run(module: object, base: Path, data: Path, out: Path, *options: str) -> dict[str, object]:
    given = ["--data", str(data), "--model", str(base), "--out", str(out), "--rounds", "2", *options]
    command.main("A title", module.task_of, first_file="", length=32, arguments=given)  # type: ignore[attr-defined]
    found: dict[str, object] = json.loads((out / "report.json").read_bytes())
    return found


@pytest.mark.slow
def test_support_intents(tmp_path: Path, base: Path) -> None:
    data = banking(tmp_path / "data", rows=300)
    found = run(intents, base, data, tmp_path / "out", "--rounds", "150")  # as the plan has it
    assert found["metric"] == "accuracy"
    assert set(found["alone"]) == {f"bank-{number}" for number in range(1, 6)}  # type: ignore[call-overload]
    for name in ("federated", "centralised", "tfidf", "start"):
        assert 0.0 <= found[name] <= 1.0  # type: ignore[operator]
    assert found["federated"] > 0.4, "four intents were not learnt"  # type: ignore[operator]
    assert found["epsilon"] is None
    assert "bank-3 alone" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_support_intents_with_privacy(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = banking(tmp_path / "data", rows=300)
    ended, measured = [], []

    class Watched(Comparison):
        def measure(self, params: NDArray[np.floating], examples: Examples) -> float:
            measured.append((params, self.plan.language))
            return super().measure(params, examples)

    def ran(*given: Any, **options: Any) -> tuple[Plan, Outcome]:
        plan, outcome = run_study(*given, **options)
        ended.append(outcome.result)
        return plan, outcome

    monkeypatch.setattr(command, "Comparison", Watched)
    monkeypatch.setattr(command, "run_study", ran)
    found = run(intents, base, data, tmp_path / "out", "--epsilon", "8")
    (result,) = ended
    (language,) = [language for params, language in measured if params is result.model]
    assert language == result.plan.language, "adapters of one scale, measured with another"
    assert found["epsilon"]["claimed"] <= 8.0  # type: ignore[index]
    assert "epsilon" in (tmp_path / "out" / "report.html").read_text()


def test_the_benchmark_measures_private_adapters_in_their_own_scale(tmp_path: Path, base: Path) -> None:
    task = intents.task_of(banking(tmp_path / "data", rows=300), tmp_path / "rows")
    world = lora.World(task, base, rounds=2)
    plain, _ = lora._plan(world)
    plan, comparison = lora._plan(world, epsilon=8.0)
    assert plan.language.alpha != plain.language.alpha
    assert comparison.plan.language == plan.language


@pytest.mark.slow
def test_medical_qa(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = medquad(tmp_path / "data")
    found = run(medical, base, data, tmp_path / "out", "--local-steps", "10", "--json")
    assert found["metric"] == "perplexity"
    assert found["federated"] < found["start"]  # type: ignore[operator]
    assert len(found["answers"]) > 0  # type: ignore[arg-type]
    assert found["tfidf"] is None
    assert json.loads(capsys.readouterr().out) == found
