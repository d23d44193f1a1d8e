from __future__ import annotations

import numpy as np
import pytest
from tests.learning.private.test_sums import Plain
from tests.learning.private.worlds import (
    Array,
    Part,
    make_model,
    make_params,
    make_rows,
    naive_study,
    settings,
    stream,
    training,
)

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning import Model, build_algorithm
from cloister.learning.private import (
    NumpyPrivate,
    PrivateSettings,
    central,
    integer_sum,
    server_mean,
    simulate,
)
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

NOISY = {"share_variance": 400.0, "present": 3, "grid": IntegerGrid(32, 1 << 10)}


def parts_of(model: Model, counts: list[int]) -> list[Part]:
    return [make_rows(model, count, i) for i, count in enumerate(counts)]


CASES = {
    "plain": {},
    "noise": NOISY,
    "penalty": {"training": training(l2=0.2, rounds=6)},
    "average": {"training": training(average_last=2, rounds=5), **NOISY},
    "every row": {"rate": 1.0},
    "microbatches of one": {"microbatch": 1},
    "a narrow ring that wraps": {
        "grid": IntegerGrid(16, 1 << 12),
        "rate": 1.0,
        "share_variance": 1e9,
        "training": training(rounds=2),
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["logistic", "tanh"])
def test_is_the_mechanism_in_plain_loops(case: str, name: str) -> None:
    model, conf = make_model(name), settings(**CASES[case])
    start, parts = make_params(model), parts_of(model, [33, 8, 19])
    found = simulate(NumpyPrivate(model), start, parts, conf, insecure_test_random=stream(5))
    expected = naive_study(model, start, parts, conf, stream(5))
    unit = conf.clip / conf.grid.clip_units * conf.training.learning_rate / conf.divisor
    assert np.abs(found - expected).max() < 0.01 * unit  # not one integer differs
    other = simulate(Plain(NumpyPrivate(model)), start, parts, conf, insecure_test_random=stream(5))
    assert np.abs(found - other).max() < 0.01 * unit


def sites_one_by_one(
    model: Model, start: Array, parts: list[Part], conf: PrivateSettings, random: StreamRandom
) -> Array:
    """The study by its public parts: each site its own sum, noise and ring vector; the hub adds words."""
    coins = StreamRandom(random.words(4).tobytes())

    def source(count: int) -> bytes:
        return random.words(-(-count // 8)).tobytes()[:count]

    config, grid = conf.training, conf.grid
    noise = DiscreteGaussian(conf.share_variance).sample(
        config.rounds * len(parts) * model.size, insecure_test_random=source
    )
    noise = noise.reshape(config.rounds, len(parts), model.size)
    algorithm = build_algorithm(config)
    state = algorithm.start(start)
    for number in range(config.rounds):
        total = np.zeros(model.size, dtype=np.uint32)
        for site, (X, y) in enumerate(parts):
            integers = integer_sum(
                NumpyPrivate(model),
                state.params,
                X,
                y,
                clip=conf.clip,
                grid=grid,
                rate=conf.rate,
                microbatch=conf.microbatch,
                random=coins,
            )
            total += grid.to_ring(integers + noise[number, site])
        values = grid.values(grid.from_ring(total), conf.clip)
        mean = server_mean(
            values,
            state.params,
            training=config,
            divisor=float(config.batch),
            penalised=model.penalised,
        )
        state = algorithm.step(state, mean)
    return algorithm.final(state)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_is_what_the_sites_give_bit_by_bit(algorithm: str) -> None:
    """Rows in eights and a rate of 1/2, so that sites asked in turn draw the coins of all of them at once."""
    model = make_model("tanh")
    start, parts = make_params(model), parts_of(model, [40, 8, 24])
    conf = settings(training=training(rounds=7, algorithm=algorithm, l2=0.01, average_last=3), **NOISY)
    found = simulate(NumpyPrivate(model), start, parts, conf, insecure_test_random=stream(8))
    assert np.array_equal(found, sites_one_by_one(model, start, parts, conf, stream(8)))


def test_paired_runs_share_their_samples() -> None:
    model = make_model("logistic")
    private, start, parts = NumpyPrivate(model), make_params(model), parts_of(model, [33, 8, 19])
    quiet = settings(training=training(rounds=10))
    here = simulate(private, start, parts, quiet, insecure_test_random=stream(1))
    there = central(private, start, parts, quiet, variance=0.0, insecure_test_random=stream(1))
    other = central(private, start, parts, quiet, variance=0.0, insecure_test_random=stream(2))
    assert np.abs(here - there).max() < 1e-4  # sites round apart, that is all
    assert np.abs(other - there).max() > 1e-3
    noisy = central(private, start, parts, quiet, variance=1e6, insecure_test_random=stream(1))
    assert 1e-4 < np.abs(noisy - there).max() < 0.1


def test_central_has_one_noise_of_the_given_variance() -> None:
    model = make_model("linear", 4000)
    conf = settings(training=training(rounds=1, learning_rate=1.0, batch=1), share_variance=9e9, present=7)
    end = central(
        NumpyPrivate(model), np.zeros(4001), [(np.zeros((2, 4000)), np.zeros(2))], conf, variance=900.0
    )
    assert abs((end * conf.grid.clip_units).var() / 900 - 1) < 6 * np.sqrt(2 / 4001)


def test_many_shares_of_a_large_model_are_added_one_by_one() -> None:
    model = make_model("linear", 30_000)
    conf = settings(training=training(rounds=1, learning_rate=1.0, batch=1), share_variance=100.0, present=9)
    end = simulate(NumpyPrivate(model), np.zeros(30_001), [(np.zeros((2, 30_000)), np.zeros(2))], conf)
    assert abs((end * conf.grid.clip_units).var() / 900 - 1) < 6 * np.sqrt(2 / 30_001)


def test_without_a_seed_every_run_is_another() -> None:
    model = make_model("logistic")
    private, start, parts = NumpyPrivate(model), make_params(model), parts_of(model, [20, 20])
    conf = settings(**NOISY)
    ends = [simulate(private, start, parts, conf) for _ in range(2)]
    assert not np.array_equal(*ends)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 0.0},
        {"clip": float("nan")},
        {"rate": 0.0},
        {"rate": 1.01},
        {"microbatch": 0},
        {"present": 0},
        {"share_variance": -1.0},
        {"share_variance": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        settings(**changes)
