"""An example's run.py: prepare, make or take a base, run the study, compare, and say what came of it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import CloisterError
from cloister.files import write_atomic
from cloister.runtime import StudyResult
from examples.make_base import Recipe, find, make_base, texts_under
from examples.textstudy.compare import Comparison, read_rows, tfidf_accuracy
from examples.textstudy.page import page
from examples.textstudy.study import Changes, Outcome, Task, run_study

__all__ = ["main"]

Prepare = Callable[[Path, Path], Task]


def main(
    title: str, prepare: Prepare, *, first_file: str, length: int, arguments: list[str] | None = None
) -> None:
    """Run an example as its command line says.

    Args:
        title: what it is, as a sentence.
        prepare: from the data's folder and an empty one to the task.
        first_file: a file of the data; texts for a base lie beside it.
        length: tokens of a row when a base is made.
        arguments: those of the command line by default.
    """
    given = _parser(title).parse_args(arguments)
    try:
        _run(title, prepare, first_file, length, given)
    except CloisterError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _run(title: str, prepare: Prepare, first_file: str, length: int, given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary) / "out"
        out.mkdir(parents=True, exist_ok=True)
        task = prepare(given.data, out / "rows")
        began = time.monotonic()
        base = given.model or make_base(
            texts_under(find(given.data, first_file).parent, task.leave_out),
            given.cache,
            Recipe(seconds=given.seconds, length=length),
            _say,
        )
        seconds = {"base": time.monotonic() - began}
        changes = Changes(given.rounds, given.local_steps, given.bits, given.epsilon)
        plan, outcome = run_study(task, base, out, changes, _say, sandboxed=given.sandboxed)
        comparison = Comparison(plan, task.load_schema(), base)
        released = comparison
        if (private := outcome.result.plan).privacy is not None:  # its adapters have a scale of their own
            released = Comparison(msgspec.structs.replace(private, privacy=None), task.load_schema(), base)
        figures = _figures(task, comparison, released, outcome, seconds)
        text = json.dumps(figures, indent=2, ensure_ascii=False)
        if given.out:
            write_atomic(out / "report.json", text.encode())
            write_atomic(out / "report.html", page(title, figures).encode())
            _say(f"the report: {out / 'report.html'}")
    if given.json:
        print(text)
    else:
        _tell(figures)


def _figures(
    task: Task, comparison: Comparison, released: Comparison, outcome: Outcome, seconds: dict[str, float]
) -> dict[str, Any]:
    """Return all that is reported: what rows in one place give by `comparison`, the study's model by
    `released`."""
    result, test = outcome.result, comparison.examples(*task.tests)
    seconds["study"] = outcome.seconds
    accuracy = comparison.metric == "accuracy"
    found = {
        "start": comparison.measure(comparison.start, test),
        "federated": released.measure(result.model, released.examples(*task.tests)),
    }
    _say(f"federated: {comparison.metric} {found['federated']:.3f}")
    for name, paths in (
        ("centralised", tuple(task.sites.values())),
        *((n, (p,)) for n, p in task.sites.items()),
    ):
        began = time.monotonic()
        found[name] = comparison.measure(comparison.trained(comparison.examples(*paths), len(paths)), test)
        seconds[name] = time.monotonic() - began
        _say(f"{name}: {comparison.metric} {found[name]:.3f}")
    texts = comparison.texts
    figures: dict[str, Any] = {
        "study": task.name,
        "metric": comparison.metric,
        "start": found["start"],
        "federated": found["federated"],
        "centralised": found["centralised"],
        "alone": {name: found[name] for name in task.sites},
        "tfidf": tfidf_accuracy(
            [*task.sites.values()], task.tests, next(iter(texts.columns)), texts.label_name
        )
        if accuracy
        else None,
        "rows": dict(result.rows),
        "test_rows": len(test),
        "rounds": result.plan.training.rounds,
        "local_steps": result.plan.training.local_steps,
        "bits": result.plan.aggregation.bits,
        "parameters": len(result.model),
        "clamped": sum(result.clamped.values()),
        "base": result.plan.language.base if result.plan.language else "",
        "bytes": _bytes(result),
        "epsilon": _epsilon(result),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    if not accuracy:
        questions = (
            read_rows(*task.tests)
            .column(next(iter(texts.columns)))
            .to_pylist()[:: max(1, len(test) // 5)][:5]
        )
        figures["answers"] = dict(zip(questions, released.answers(result.model, questions), strict=True))
    return figures


def _bytes(result: StudyResult) -> dict[str, float]:
    """Return what travelled: of all parties, and of one site for a parameter in a round, up."""
    hub, rounds = result.hub.name, len(result.rounds)
    up = [count for (_, receiver), count in result.traffic.items() if receiver == hub]
    return {
        "total": sum(result.traffic.values()),
        "up_for_a_parameter": sum(up) / (len(result.rows) * rounds * len(result.model)),
    }


def _epsilon(result: StudyResult) -> dict[str, float] | None:
    if result.privacy is None:
        return None
    facts = result.privacy.facts
    return {"claimed": facts.epsilon_claimed, "hub": facts.epsilon_hub, "delta": facts.delta}


def _tell(figures: dict[str, Any]) -> None:
    for name in ("start", "federated", "centralised", "tfidf"):
        if figures[name] is not None:
            print(f"{name}: {figures[name]:.3f}")
    for name, value in figures["alone"].items():
        print(f"{name} alone: {value:.3f}")
    sent = figures["bytes"]
    print(
        f"bytes: {sent['total']:,.0f} in all, {sent['up_for_a_parameter']:.2f} up for a parameter and round"
    )
    if figures["epsilon"]:
        print("epsilon: {claimed:.2f} at delta {delta:g}".format(**figures["epsilon"]))
    for question, answer in figures.get("answers", {}).items():
        print(f"\n{question}\n  {answer}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser(title: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files; see the README")
    parser.add_argument("--model", type=Path, help="folder of a base; without it a small one is made, once")
    parser.add_argument(
        "--out", type=Path, help="folder for rows, vaults, plan.toml, report.html, report.json"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "cloister" / "bases")
    parser.add_argument("--seconds", type=float, default=Recipe.seconds, help="that making a base may take")
    parser.add_argument("--rounds", type=int, help="of the study")
    parser.add_argument("--local-steps", type=int, help="of a round at a site")
    parser.add_argument("--bits", type=int, choices=(8, 16, 32), help="of a value that travels")
    parser.add_argument("--epsilon", type=float, help="claim differential privacy for each row")
    parser.add_argument(
        "--sandboxed", action="store_true", help="train behind walls, a process for each site"
    )
    return parser
