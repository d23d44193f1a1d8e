from __future__ import annotations

import numpy as np
import pytest
from tests.learning.private.worlds import make_model, make_params, make_rows, stream, training

from cloister.errors import InputError, PlanError
from cloister.learning.private import NumpyPrivate, RowSums, integer_sum, local_steps, server_mean
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

GRID = IntegerGrid(32, 1 << 12)


def source(number: int):  # type: ignore[no-untyped-def]
    random = stream(number)
    return lambda count: random.words(-(-count // 8)).tobytes()[:count]


def test_server_mean_is_the_scaled_gradient_with_its_penalty() -> None:
    total, params = np.array([4.0, -2.0, 1.0]), np.array([1.0, 2.0, 3.0])
    config = training(learning_rate=0.5, l2=0.1)
    mask = np.array([True, True, False])
    found = server_mean(total, params, training=config, divisor=8.0, penalised=mask)
    np.testing.assert_allclose(found, [-0.5 * (0.5 + 0.1), -0.5 * (-0.25 + 0.2), -0.5 * 0.125])
    everywhere = server_mean(total, params, training=config, divisor=8.0)
    np.testing.assert_allclose(everywhere[:2], found[:2])
    assert everywhere[2] == pytest.approx(-0.5 * (0.125 + 0.3))
    assert total.tolist() == [4.0, -2.0, 1.0]  # what was given is left alone


def test_server_mean_has_the_same_bits_however_the_vector_is_cut() -> None:
    rng = np.random.default_rng(0)
    total, params, mask = rng.normal(size=999), rng.normal(size=999), rng.random(999) < 0.5
    config = training(l2=0.03, learning_rate=0.37)
    whole = server_mean(total, params, training=config, divisor=7.0, penalised=mask)
    for at in range(0, 999, 71):
        part = slice(at, at + 71)
        piece = server_mean(total[part], params[part], training=config, divisor=7.0, penalised=mask[part])
        assert np.array_equal(piece, whole[part])


@pytest.mark.parametrize("divisor", [0.0, -1.0, float("nan")])
def test_server_mean_refuses_a_divisor(divisor: float) -> None:
    with pytest.raises(InputError, match="divisor"):
        server_mean(np.zeros(2), np.zeros(2), training=training(), divisor=divisor)
    with pytest.raises(InputError, match="shape"):
        server_mean(np.zeros(2), np.zeros(3), training=training(), divisor=1.0)


def test_local_steps_are_sample_clip_round_noise_step() -> None:
    model = make_model("tanh")
    private, start, (X, y) = NumpyPrivate(model), make_params(model), make_rows(model, 80)
    config = training(local_steps=5, l2=0.02, learning_rate=0.3)
    noise = DiscreteGaussian(1e6)
    common = {"clip": 0.4, "grid": GRID, "rate": 0.3, "microbatch": 16}
    found = local_steps(
        private,
        start,
        X,
        y,
        training=config,
        noise=noise,
        divisor=24.0,
        random=stream(1),
        insecure_test_random=source(2),
        **common,  # type: ignore[arg-type]
    )
    params, coins = start.copy(), stream(1)
    drawn = noise.sample(5 * model.size, insecure_test_random=source(2)).reshape(5, -1)
    for step in range(5):
        integers = integer_sum(private, params, X, y, random=coins, **common) + drawn[step]  # type: ignore[arg-type]
        gradient = integers * 0.4 / GRID.clip_units / 24.0 + 0.02 * model.penalised * params
        params = params - 0.3 * gradient
    np.testing.assert_allclose(found, params, rtol=1e-12, atol=1e-14)


def test_every_local_step_has_the_whole_noise() -> None:
    model = make_model("linear", 3000)
    X, y = np.zeros((4, 3000)), np.zeros(4)  # no gradient: what moves is noise
    for steps in (1, 4, 60):
        end = local_steps(
            NumpyPrivate(model),
            np.zeros(3001),
            X,
            y,
            training=training(local_steps=steps, learning_rate=1.0),
            clip=1.0,
            grid=GRID,
            rate=0.5,
            microbatch=8,
            noise=DiscreteGaussian(900.0),
            divisor=1.0,
            random=stream(1),
            insecure_test_random=source(3),
        )
        variance = (end * GRID.clip_units).var()
        assert abs(variance / (900 * steps) - 1) < 6 * np.sqrt(2 / 3001)


def test_local_steps_draw_a_fresh_sample_each_time_and_do_not_touch_the_start() -> None:
    model = make_model("logistic")
    start, (X, y) = make_params(model), make_rows(model, 40)
    kept = start.copy()
    sums = RowSums(NumpyPrivate(model), [(X, y)], rate=0.5, microbatch=8)
    common = {
        "training": training(),
        "clip": 1.0,
        "grid": GRID,
        "rate": 0.5,
        "microbatch": 8,
        "divisor": 20.0,
    }
    noise = DiscreteGaussian(0.05)
    ends = [
        local_steps(
            NumpyPrivate(model),
            start,
            X,
            y,
            noise=noise,
            random=stream(number),
            sums=given,
            insecure_test_random=source(9),
            **common,  # type: ignore[arg-type]
        )
        for number, given in ((1, None), (1, sums), (2, sums))
    ]
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
    assert np.array_equal(start, kept)


def test_local_steps_refuse_adam_and_divergence() -> None:
    model = make_model("linear")
    X, y = make_rows(model, 10)
    common = {
        "clip": 1.0,
        "grid": GRID,
        "rate": 1.0,
        "microbatch": 8,
        "noise": DiscreteGaussian(16.0),
        "random": stream(),
    }
    with pytest.raises(PlanError, match="plain SGD"):
        local_steps(
            NumpyPrivate(model), np.zeros(7), X, y, training=training(optimiser="adam"), divisor=1.0, **common
        )  # type: ignore[arg-type]
    wild = training(local_steps=400, learning_rate=900.0, l2=900.0)
    with pytest.raises(PlanError, match="diverged"):
        local_steps(NumpyPrivate(model), np.zeros(7), X, y, training=wild, divisor=1.0, **common)  # type: ignore[arg-type]
