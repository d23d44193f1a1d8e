"""What privacy costs a training step: time of a private step over that of a plain one, in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.dpsgd [--quick]

Times are processor time, so that what else runs on the machine counts less.

logistic: numpy. A private step is local DP-SGD as it runs: Poisson sample, clipping row by row, rounding,
full noise, step; a plain one is that of `train`, its sampling included. Runs of both alternate, on the same
rows; `ours` is the ratio of medians at 1024 of 10,000 rows with 64 features, `sizes` has the others. What
depends on rows alone (their norms) is computed once before. `distributed_ms` is a site's part of a
distributed step: sample, clip, round, one share of noise in a call of its own.

cnn, lora: torch, beside Opacus in the same run; see `benchmarks.dpsgd_torch`.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import arguments, emit
from cloister.crypto import StreamRandom
from cloister.learning import ClientRows, ModelSection, TrainingSection, build_model, train
from cloister.learning.private import NumpyPrivate, RowSums, local_steps
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

SIZES = {
    "256 of 5000 x 32": (5_000, 256, 32),
    "1024 of 10000 x 64": (10_000, 1024, 64),
    "4096 of 100000 x 128": (100_000, 4096, 128),
}
MAIN = "1024 of 10000 x 64"
STEPS = 50
MICROBATCH = 1 << 16
NOISE_MULTIPLIER = 1.1


def alternately(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the median seconds of two actions that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for action, into in zip((first, second), times, strict=True):
            begin = time.process_time()
            action()
            if turn >= 2:
                into.append(time.process_time() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def step_times(count: int, batch: int, features: int, quick: bool) -> dict[str, float]:
    """Return the ratio and the milliseconds of steps on `batch` of `count` rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(count, features))
    y = (X @ rng.normal(size=features) + rng.normal(size=count) > 0).astype(np.float64)
    model = build_model(ModelSection(kind="logistic"), features)
    private, start, random = NumpyPrivate(model), model.initial(0), StreamRandom.system()
    config = TrainingSection(rounds=1, batch=batch, local_steps=STEPS, learning_rate=0.1)
    grid = IntegerGrid.fit(32, batch=batch, noise=2 * NOISE_MULTIPLIER)
    noise = DiscreteGaussian((NOISE_MULTIPLIER * grid.sensitivity(model.size)) ** 2)
    rows, rate = ClientRows.stack([(X, y)]), batch / count
    sums = RowSums(private, [(X, y)], rate=rate, microbatch=MICROBATCH)

    def plain() -> Any:
        return train(model, start, rows, config, insecure_test_random=random)

    def ours() -> Any:
        return local_steps(
            private,
            start,
            X,
            y,
            training=config,
            clip=1.0,
            grid=grid,
            rate=rate,
            microbatch=MICROBATCH,
            noise=noise,
            divisor=float(batch),
            random=random,
            sums=sums,
        )

    def distributed() -> None:
        noise.add_into(sums.integers(start, clip=1.0, grid=grid, random=random))

    plain_time, private_time = alternately(plain, ours, 5 if quick else 41)
    share = alternately(distributed, lambda: None, 20 if quick else 300)[0]
    return {
        "ratio": round(private_time / plain_time, 3),
        "plain_ms": round(plain_time / STEPS * 1e3, 4),
        "private_ms": round(private_time / STEPS * 1e3, 4),
        "distributed_ms": round(share * 1e3, 4),
    }


def logistic(quick: bool) -> dict[str, Any]:
    """Return {"ours": ratio at the main size, "sizes": figures of each}."""
    sizes = {name: step_times(*shape, quick) for name, shape in SIZES.items()}
    return {"ours": sizes[MAIN]["ratio"], "sizes": sizes, "clock": "processor time"}


def main() -> None:
    parsed = arguments("private over plain step, by time").parse_args()
    result: dict[str, Any] = {"cnn": None, "lora": None, "logistic": logistic(parsed.quick)}
    reasons: dict[str, str] = {}
    if importlib.util.find_spec("torch") is None:
        reasons = dict.fromkeys(("cnn", "lora"), "torch is not installed; pip install 'cloister[torch]'")
    else:
        from benchmarks import dpsgd_torch

        result |= {"cnn": dpsgd_torch.cnn(parsed.quick), "lora": dpsgd_torch.lora(parsed.quick)}
    emit("dpsgd", {**result, "reasons": reasons})


if __name__ == "__main__":
    main()
