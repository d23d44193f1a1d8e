"""Milliseconds of local training a round, all clients of the round batched in one process; no secure sum.

    python -m benchmarks.training [--quick]

Shapes: silo is 10 clients of 500 rows, dev 100 of 10,000 clients of 50 rows; 30 features, one local epoch in
batches of 50 and 10; LR is logistic regression, MLP one hidden layer of 64. A round is choosing the clients,
training them, and the weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import arguments, emit, median_seconds
from cloister.crypto import StreamRandom
from cloister.learning import (
    ClientRows,
    Model,
    ModelSection,
    TrainingSection,
    build_model,
    site_weights,
    train,
)
from cloister.learning.sampling import distinct

MODELS = {"LR": ModelSection(kind="logistic"), "MLP": ModelSection(kind="mlp", hidden=(64,), classes=2)}
SHAPES = {"silo": (10, 10, 500, 50, 10), "dev": (10_000, 100, 50, 10, 5)}
FEATURES = 30


def a_round(
    model: Model, rows: ClientRows, chosen: int, config: TrainingSection, random: StreamRandom
) -> Callable[[], Any]:
    """Return one round as a function without arguments."""
    start = model.initial(0)

    def once() -> Any:
        some = rows
        if chosen < rows.clients:
            some = rows.select(distinct(np.array([rows.clients]), chosen, random)[0])
        local = train(model, start, some, config, insecure_test_random=random)
        weights = np.array(site_weights(some.counts.tolist(), "rows"))
        return weights @ local / weights.sum() - start

    return once


def main() -> None:
    parsed = arguments("local training, milliseconds a round").parse_args()
    rng = np.random.default_rng(0)
    figures: dict[str, float] = {}
    for shape, (clients, chosen, count, batch, steps) in SHAPES.items():
        X = rng.normal(size=(clients, count, FEATURES))
        y = (X @ rng.normal(size=FEATURES) + rng.normal(size=(clients, count)) > 0).astype(float)
        rows = ClientRows.stack(list(zip(X, y, strict=True)))
        config = TrainingSection(rounds=1, batch=batch, local_steps=steps, learning_rate=0.1)
        for name, section in MODELS.items():
            once = a_round(build_model(section, FEATURES), rows, chosen, config, StreamRandom.system())
            seconds = median_seconds(once, repeats=20 if parsed.quick else 200, warmup=5)
            figures[f"{name} {shape}"] = round(seconds * 1e3, 3)
    emit("training", {"milliseconds": figures})


if __name__ == "__main__":
    main()
