"""Federated fine-tuning of a language model: five banks of BANKING77, rank-8 adapters and a head, one base.

    OMP_NUM_THREADS=1 python -m benchmarks.lora [--quick] [--base DIR] [--cache DIR]

Everything is that of `examples/support_intents`: the banks (Dirichlet 0.5), the plan, the base that
`examples.make_base` pre-trains on texts that are no bank's, once, unless `--base` names another.

federated            test accuracy of a real study in the ring of 8 bits
quantisation_loss    accuracy of the same study in 32 bits, less that
centralised, local   the same plan with one party: all rows and five times the batch; one bank's rows
tfidf                TF-IDF and logistic regression, all rows in one place
bytes_per_param_8    what a site uploads in a round over the number of parameters
private              epsilon 8, delta 1e-5, by record. `accuracy`: noise of five banks, one of which may
                     tell the hub its own, without masks; `central`: one collector with one noise at the
                     same epsilon; `step_ratio`: a private step over the plain one of peft
hub_peak_over_adapter  `benchmarks.lora_memory`: peak of the hub's process over an adapter of 50 M float32
accelerator          a model of 1 B parameters on a GPU, where there is one

Parts run in two processes, one thread each. `--quick` takes a tenth of the rows and two rounds, times the
private step beside other parts, and says that it is quick: its figures show that all of it runs, and no more.
"""

from __future__ import annotations

import csv
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from examples.make_base import make_base, texts_under
from examples.support_intents.run import task_of
from examples.textstudy.compare import Comparison, tfidf_accuracy
from examples.textstudy.study import Changes, Task, agreed, run_study

from benchmarks import lora_accelerator, lora_memory, lora_private
from benchmarks.common import arguments, data_folder, emit
from cloister.crypto import Identity, StreamRandom
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.private import PrivateSettings, central, simulate
from cloister.privacy.accounting import Event, Gaussian, Poisson, calibrate_noise

EPSILON, DELTA = 8.0, 1e-5
QUICK_ROUNDS, QUICK_SHARE, QUICK_REPEATS = 2, 10, 3


@dataclass(frozen=True)
class World:
    """Where rows and base lie, and what is changed in the plan."""

    task: Task
    base: Path
    rounds: int | None


def accuracy(world: World, bits: int) -> tuple[float, float, float, float]:
    """Return test accuracy, upload bytes a parameter and round, seconds of a study, and the share of values
    that were clamped."""
    with tempfile.TemporaryDirectory() as folder:
        changes = Changes(rounds=world.rounds, bits=bits)
        plan, outcome = run_study(world.task, world.base, Path(folder), changes, lambda _: None)
    result = outcome.result
    up = sum(count for (_, receiver), count in result.traffic.items() if receiver == result.hub.name)
    sent = len(result.rows) * len(result.rounds) * len(result.model)
    comparison = Comparison(plan, world.task.load_schema(), world.base)
    measured = comparison.measure(result.model, comparison.examples(*world.task.tests))
    return measured, up / sent, outcome.seconds, sum(result.clamped.values()) / sent


def alone(world: World, parties: tuple[tuple[str, ...], ...]) -> list[float]:
    """Return test accuracy of the plan with one party that holds the rows of these sites, for each party."""
    _, comparison = _plan(world)
    task, found = world.task, []
    for sites in parties:
        trained = comparison.trained(comparison.examples(*(task.sites[name] for name in sites)), len(sites))
        found.append(comparison.measure(trained, comparison.examples(*task.tests)))
    return found


def private(world: World) -> dict[str, float]:
    """Return test accuracy at epsilon 8: over the sites, and with one collector."""
    from cloister.learning.torch.language.private import LanguagePrivate

    plan, comparison = _plan(world, epsilon=EPSILON)
    parts = [comparison.examples(path) for path in world.task.sites.values()]
    everything = comparison.examples(*world.task.sites.values())
    model = LanguagePrivate(comparison.learner, everything)
    ends = np.cumsum([0, *map(len, parts)])
    numbers = [(np.arange(a, b), np.zeros(b - a)) for a, b in itertools.pairwise(ends.tolist())]
    terms = PrivacyTerms.of(plan, plan.params(len(parts)), model)
    settings = PrivateSettings(
        training=plan.training,
        rate=terms.section.rate,
        clip=terms.section.clip,
        grid=terms.grid,
        microbatch=terms.section.microbatch,
        share_variance=terms.share_variance,
        present=len(parts),
    )
    start = comparison.start.astype(np.float64)
    tests = comparison.examples(*world.task.tests)
    over_sites = simulate(model, start, numbers, settings, insecure_test_random=_random())
    variance = (_central_multiplier(plan) * terms.grid.clip_units) ** 2
    collected = central(model, start, numbers, settings, variance=variance, insecure_test_random=_random())
    return {
        "accuracy": round(comparison.measure(over_sites, tests), 4),
        "central": round(comparison.measure(collected, tests), 4),
    }


def _random() -> StreamRandom:
    return StreamRandom.from_seed(7, "benchmark of private fine-tuning")


def _plan(world: World, epsilon: float | None = None) -> tuple[Any, Comparison]:
    """Return the plan, private where an epsilon is given, and its model, whose alpha is another then."""
    task = world.task
    hub, sites = Identity.generate("hub"), [Identity.generate(name) for name in task.sites]
    rows = sum(_rows(path) for path in task.sites.values())
    changes = Changes(rounds=world.rounds, epsilon=epsilon)
    plan, _ = agreed(task, world.base, hub, sites, rows, changes)
    without = msgspec.structs.replace(plan, privacy=None)
    if plan.privacy is not None:
        privacy = msgspec.structs.replace(plan.privacy, delta=DELTA)
        plan = msgspec.structs.replace(plan, privacy=privacy)
    return plan, Comparison(without, task.load_schema(), world.base)


def _central_multiplier(plan: Any) -> float:
    """Return the noise multiplier of one collector that runs the plan's rounds and no spares."""

    def events(z: float) -> tuple[Event, ...]:
        sampler = Poisson(rate=plan.privacy.rate)
        noise = Gaussian(sigma=z, sensitivity=1.0)
        return (Event(mechanism=noise, sampler=sampler, relation="zero-out", count=plan.training.rounds),)

    return calibrate_noise(plan.privacy.epsilon, plan.privacy.delta, events)


def _rows(path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def _fewer(task: Task) -> None:
    """Keep one row in ten of every file."""
    for path in (*task.sites.values(), *task.tests):
        with path.open(encoding="utf-8", newline="") as file:
            first, *rows = csv.reader(file)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([first, *rows[::QUICK_SHARE]])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _timed(name: str, call: Callable[..., Any], *given: Any) -> Any:
    """Run one part in a process of the pool."""
    import torch

    torch.set_num_threads(1)
    begin = time.monotonic()
    found = call(*given)
    _say(f"{name}: {found}, {time.monotonic() - begin:.0f} s")
    return found


def _studies(world: World, quick: bool) -> dict[str, Any]:
    """Return all accuracies."""
    names = tuple(world.task.sites)
    parts: dict[str, tuple[Any, ...]] = {
        "private": (private, world),
        "8 bits": (accuracy, world, 8),
        "32 bits": (accuracy, world, 32),
        "centralised and alone": (alone, world, (names, *((name,) for name in names))),
    }
    if quick:  # else each by itself, once the others are done
        parts["memory"] = (partial(lora_memory.measure, quick=True),)
        parts["step"] = (lora_private.measure, QUICK_REPEATS)
    # the longest first; spawned, since torch's threads do not survive a fork
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting: dict[str, Future[Any]] = {
            name: pool.submit(_timed, name, *part) for name, part in parts.items()
        }
        task = world.task
        tfidf = tfidf_accuracy([*task.sites.values()], task.tests, "text", "intent")
        plan, _ = _plan(world)
        found = {name: each.result() for name, each in waiting.items()}
    eight, bytes_8, seconds, clamped = found["8 bits"]
    centralised, *local = found["centralised and alone"]
    return {
        "federated": round(eight, 4),
        "centralised": round(centralised, 4),
        "local": [round(each, 4) for each in local],
        "tfidf": round(tfidf, 4),
        "bytes_per_param_8": round(bytes_8, 4),
        "quantisation_loss": round(found["32 bits"][0] - eight, 4),
        "clamped_8": round(clamped, 6),
        "private": {"epsilon": EPSILON, "delta": DELTA, **found["private"], **found.get("step", {})},
        "study_seconds": round(seconds, 1),
        "plan": {
            "rounds": plan.training.rounds,
            "local_steps": plan.training.local_steps,
            "batch": plan.training.batch,
            "rows": [_rows(path) for path in task.sites.values()],
            "test_rows": sum(_rows(path) for path in task.tests),
            "quick": quick,
        },
        **found.get("memory", {}),
    }


def _reasons(result: dict[str, Any]) -> dict[str, str]:
    """Return why a figure is null."""
    found = {}
    if result["accelerator"] is None:
        found["accelerator"] = "no GPU is here"
    if result["hub_peak_over_adapter"]["30"] is None:
        found["hub_peak_over_adapter"] = "--quick measures 3 sites only"
    return found


def main() -> None:
    """Measure, and print one JSON object."""
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", type=Path, default=None, help="folder of a base; else one is made, once")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "cloister" / "bases")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    data = data_folder(given.data)
    if data is None:
        emit("lora", {"federated": None, "reasons": {"data": "no data: --data or $CLOISTER_TEST_DATA"}})
        return
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(data, Path(folder))
        base = given.base
        if base is None:
            _say("base: looked for, or made in at most 20 minutes")
            base = make_base(texts_under(data / "text", task.leave_out), given.cache, on_progress=_say)
        if given.quick:
            _fewer(task)
        world = World(task, base, QUICK_ROUNDS if given.quick else None)
        result = _studies(world, given.quick)
    if not given.quick:
        result["private"] |= lora_private.measure(15)
        result |= lora_memory.measure()
    result["accelerator"] = lora_accelerator.measure()
    emit("lora", result | {"reasons": _reasons(result)})


if __name__ == "__main__":
    main()
