"""Small private studies for tests, and the whole mechanism once more in plain loops, with its possible mistakes.

`naive_study` shares nothing with the code it checks but the models' `gradient`, the grid and the noise: rows
are visited one by one. Its arguments turn it into the wrong variants that the checks must catch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning import Model, ModelSection, TrainingSection, build_model
from cloister.learning.private import PrivateSettings, poisson_rows
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]

SECTIONS = {
    "linear": ModelSection(kind="linear"),
    "logistic": ModelSection(kind="logistic"),
    "softmax": ModelSection(kind="softmax", classes=4),
    "relu": ModelSection(kind="mlp", hidden=(7,), classes=2),
    "tanh": ModelSection(kind="mlp", hidden=(5, 3), activation="tanh", classes=4),
    "deep": ModelSection(kind="mlp", hidden=(6, 5, 1, 4), activation="tanh", classes=0),
    "wide": ModelSection(kind="mlp", hidden=(33,), activation="relu", classes=3),
}


def stream(number: int = 0) -> StreamRandom:
    return StreamRandom.from_seed(number, "test of private training")


def make_model(name: str, features: int = 6) -> Model:
    return build_model(SECTIONS[name], features)


def make_rows(model: Model, count: int, number: int = 0, scale: float = 1.0) -> Part:
    rng = np.random.default_rng(number)
    X = rng.normal(size=(count, model.inputs)) * scale
    outputs = model.widths[-1]
    y = rng.integers(0, outputs, size=count) if outputs > 1 else rng.integers(0, 2, size=count)
    return X, y.astype(np.float64)


def make_params(model: Model, number: int = 0, scale: float = 0.5) -> Array:
    return np.random.default_rng(1000 + number).normal(size=model.size) * scale


def training(**changes: object) -> TrainingSection:
    fields: dict[str, object] = {"rounds": 3, "batch": 10, "local_steps": 1, "learning_rate": 0.5}
    return TrainingSection(**(fields | changes))  # type: ignore[arg-type]


def settings(**changes: object) -> PrivateSettings:
    fields: dict[str, object] = {
        "training": training(),
        "rate": 0.5,
        "clip": 1.0,
        "grid": IntegerGrid(32, 1 << 16),
        "microbatch": 8,
        "share_variance": 0.0,
        "present": 1,
    }
    return PrivateSettings(**(fields | changes))  # type: ignore[arg-type]


def row_gradients(model: Model, params: Array, X: Array, y: Array) -> Array:
    """float64[n, d] by one call for each row."""
    each = [model.gradient(params[None], X[i][None, None], y[i][None, None])[0] for i in range(len(y))]
    return np.array(each).reshape(len(y), model.size)


def clipped(gradients: Array, clip: float) -> Array:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients * np.minimum(1.0, clip / np.maximum(norms, 1e-300))


def naive_study(
    model: Model,
    start: Array,
    parts: Sequence[Part],
    conf: PrivateSettings,
    random: StreamRandom,
    *,
    clip_each: bool = True,
    clip_sums: bool = False,
    round_each: bool = False,
    divide: Callable[[int, float], float] = lambda sampled, divisor: divisor,
    shares: Callable[[int], int] = lambda present: present,
    sampler: Callable[[int, float, StreamRandom], Array] = poisson_rows,
) -> Array:
    samples = StreamRandom(random.words(4).tobytes())

    def source(count: int) -> bytes:
        return random.words(-(-count // 8)).tobytes()[:count]

    config, scale = conf.training, conf.grid.clip_units / conf.clip
    params, tail = start.copy(), np.zeros(model.size)
    ring = 1 << conf.grid.bits
    rows = sum(len(y) for _, y in parts)
    present = shares(conf.present)
    noise = np.zeros((config.rounds, max(present, 1), model.size), dtype=np.int64)
    if conf.share_variance:
        noise = DiscreteGaussian(conf.share_variance).sample(noise.size, insecure_test_random=source)
        noise = noise.reshape(config.rounds, present, model.size)
    for number in range(config.rounds):
        chosen = set(sampler(rows, conf.rate, samples).tolist())
        total, offset = np.zeros(model.size, dtype=np.int64), 0
        for X, y in parts:
            for begin in range(0, len(y), conf.microbatch):
                inside = [
                    i for i in range(begin, min(begin + conf.microbatch, len(y))) if i + offset in chosen
                ]
                each = row_gradients(model, params, X[inside], y[inside])
                if clip_each:
                    each = clipped(each, conf.clip)
                if clip_sums:
                    each = clipped(each.sum(axis=0)[None], conf.clip)
                if not round_each:
                    each = each.sum(axis=0)[None]
                total += np.rint(each * scale).astype(np.int64).sum(axis=0)
            offset += len(y)
        total += noise[number].sum(axis=0)
        wrapped = (total + ring // 2) % ring - ring // 2
        decay = config.l2 * model.penalised * params
        params = params - config.learning_rate * (wrapped / scale / divide(len(chosen), conf.divisor) + decay)
        if number >= config.rounds - config.average_last:
            tail += params
    return tail / config.average_last if config.average_last else params
