"""What any implementation of the mechanism must satisfy; each check names what it found wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tests.learning.private.worlds import (
    Array,
    Part,
    clipped,
    make_model,
    make_params,
    make_rows,
    row_gradients,
    settings,
    stream,
    training,
)

from cloister.crypto import StreamRandom
from cloister.learning import Model
from cloister.learning.private import NumpyPrivate, PrivateSettings
from cloister.privacy.mechanisms import IntegerGrid

Sampler = Callable[[int, float, StreamRandom], Array]
Study = Callable[[Model, Array, Sequence[Part], PrivateSettings, StreamRandom], Array]


def check_poisson(sampler: Sampler) -> None:
    """Chances of rows, of pairs within a step and of a row in successive steps, and sizes, to 6 deviations."""
    rows, rate, steps = 40, 0.2, 6000
    random = stream(7)
    hits = np.zeros((steps, rows))
    for step in range(steps):
        hits[step, sampler(rows, rate, random)] = 1.0
    spread = rate * (1 - rate)

    def far(found: Array | float, expected: float, deviation: float) -> bool:
        return bool((np.abs(found - expected) > 6 * deviation).any())

    assert not far(hits.mean(axis=0), rate, np.sqrt(spread / steps)), "not Poisson: a row's chance"
    assert not far(hits.mean(), rate, np.sqrt(spread / steps / rows)), "not Poisson: the rate"
    centred = (hits - rate) / np.sqrt(spread)
    together = centred.T @ centred / steps
    off = together[~np.eye(rows, dtype=bool)]
    assert not far(off, 0.0, np.sqrt(1 / steps)), "not Poisson: two rows of a step know of each other"
    size = hits.sum(axis=1)
    variance = rows * spread
    assert abs(size.var() - variance) < 6 * variance * np.sqrt(2 / steps), "not Poisson: the sizes' variance"
    again = (centred[1:] * centred[:-1]).mean()
    assert abs(again) < 6 / np.sqrt(steps * rows), "not Poisson: a step knows of the one before"


def check_sensitivity(study: Study) -> None:
    """One row, however wild, moves the sum of a step by at most the stated sensitivity."""
    model = make_model("linear", 4)
    params = np.zeros(model.size)
    one = training(rounds=1, learning_rate=1.0, batch=1)
    for microbatch in (1, 3, 12):
        conf = settings(training=one, rate=1.0, microbatch=microbatch, grid=IntegerGrid(32, 1 << 10))
        allowed = conf.grid.sensitivity(model.size, NumpyPrivate(model).float_bound(microbatch))
        X, y = make_rows(model, 12, 3)
        y[:] = 0.08  # together about one clip against the wild row
        X[:] = X[0]
        for wild, label in ((1.0, -1e9), (1e6, -1e9), (1e3, 1e12)):
            gone, here = X.copy(), X.copy()
            gone[5], here[5] = 0.0, wild * X[0]
            nothing, something = y.copy(), y.copy()
            nothing[5], something[5] = 0.0, label  # at params zero: a residual of zero, and a wild one
            ends = [
                study(model, params, [part], conf, stream(1)) for part in ((gone, nothing), (here, something))
            ]
            moved = np.linalg.norm(ends[0] - ends[1]) * conf.grid.clip_units / conf.clip
            assert moved <= allowed, "a row moves the sum beyond the sensitivity"


def check_clips_each_row(study: Study) -> None:
    """Many rows of one direction add up to many clips: it is rows that are clipped, not sums."""
    model = make_model("linear", 4)
    X, y = np.ones((40, 4)), np.full(40, -1e5)
    conf = settings(
        training=training(rounds=1, learning_rate=1.0, batch=1), rate=1.0, microbatch=40, clip=0.25
    )
    end = study(model, np.zeros(model.size), [(X, y)], conf, stream(1))
    assert abs(np.linalg.norm(end) - 40 * 0.25) < 1e-3, "a sum of 40 clipped rows is not 40 clips"


def check_divisor(study: Study) -> None:
    """A step is the clipped sum over the plan's constant, whatever the number of rows that were sampled."""
    model = make_model("logistic", 4)
    params, part = make_params(model), make_rows(model, 30)
    for batch in (7, 30, 100):
        conf = settings(training=training(rounds=1, batch=batch, l2=0.1), rate=1.0)
        end = study(model, params, [part], conf, stream(2))
        total = clipped(row_gradients(model, params, *part), conf.clip).sum(axis=0)
        expected = params - 0.5 * (total / batch + 0.1 * model.penalised * params)
        assert np.abs(end - expected).max() < 1e-3 / batch, "a step is not the sum over the plan's divisor"


def check_rounds_once(study: Study) -> None:
    """A microbatch of small contributions is rounded as a sum, and each microbatch by itself."""
    model = make_model("linear", 1)
    for rows, microbatch, units in ((10, 10, 4.0), (10, 5, 4.0), (10, 1, 0.0)):
        X, y = np.zeros((rows, 1)), np.full(rows, -0.4 / 64)  # each worth 0.4 units of the bias
        conf = settings(
            training=training(rounds=1, learning_rate=1.0, batch=1),
            rate=1.0,
            microbatch=microbatch,
            grid=IntegerGrid(16, 64),
        )
        end = study(model, np.zeros(2), [(X, y)], conf, stream(3))
        assert -end[1] * 64 == units, "contributions are not rounded once for each microbatch"


def check_noise(study: Study) -> None:
    """A step's noise has the variance of all shares that are present."""
    model = make_model("linear", 4000)
    X, y = np.zeros((3, 4000)), np.zeros(3)
    for present, variance in ((1, 100.0), (3, 100.0), (4, 400.0)):
        conf = settings(
            training=training(rounds=1, learning_rate=1.0, batch=1),
            rate=1.0,
            share_variance=variance,
            present=present,
        )
        end = study(model, np.zeros(4001), [(X, y)], conf, stream(4)) * conf.grid.clip_units
        assert abs(end.var() / (present * variance) - 1) < 6 * np.sqrt(2 / 4001), (
            "a share of noise is missing"
        )


CHECKS = (
    check_sensitivity,
    check_clips_each_row,
    check_divisor,
    check_rounds_once,
    check_noise,
)
