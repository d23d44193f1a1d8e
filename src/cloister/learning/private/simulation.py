"""Distributed DP-SGD in one process: what n sites, the ring and the server's step give, without masks.

`simulate` is the mechanism that a study runs: the sites' own microbatches and roundings, as many shares of
integer noise as sites are present, wrap-around in the ring, the server's step. Masks cancel and are left out.
`central` is one collector with all rows and one noise. Both are for public data: baselines, curves over
epsilon, audits; a real study has no process that holds all rows.

Two runs with the same `insecure_test_random` draw the same samples; only the noise differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.learning.algorithms import build_algorithm
from cloister.learning.heads import Array
from cloister.learning.private.ahead import NoiseAhead
from cloister.learning.private.base import PrivateModel, PrivateSettings
from cloister.learning.private.steps import server_mean
from cloister.learning.private.sums import RowSums
from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.types import RandomBytes

__all__ = ["central", "simulate"]


def simulate(
    private: PrivateModel,
    start: Array,
    parts: Sequence[tuple[NDArray[Any], Array]],
    settings: PrivateSettings,
    *,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return the model that a study over these sites would release, float64[d].

    Args:
        private: the model.
        start: float64[d], the global model before the first round.
        parts: each site's rows and labels.
        settings: what the plan fixes; `present` shares of variance `share_variance` enter each step.
        insecure_test_random: samples and noise of tests and paired comparisons; otherwise from the system.

    Raises:
        InputError: a shape or a number does not fit, or training diverged.
    """
    return _run(
        private, start, parts, settings, settings.share_variance, settings.present, insecure_test_random
    )


def central(
    private: PrivateModel,
    start: Array,
    parts: Sequence[tuple[NDArray[Any], Array]],
    settings: PrivateSettings,
    *,
    variance: float,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return the model of one collector that holds all rows and adds one noise of `variance` units squared.

    Arguments and errors otherwise as `simulate`; `share_variance` and `present` are not used.
    """
    pooled = [(np.concatenate([X for X, _ in parts]), np.concatenate([y for _, y in parts]))]
    return _run(private, start, pooled, settings, variance, 1, insecure_test_random)


def _run(
    private: PrivateModel,
    start: Array,
    parts: Sequence[tuple[NDArray[Any], Array]],
    settings: PrivateSettings,
    variance: float,
    shares: int,
    random: StreamRandom | None,
) -> Array:
    samples = StreamRandom.system() if random is None else StreamRandom(random.words(4).tobytes())
    source = None if random is None else _bytes_of(random)
    training, clip, grid = settings.training, settings.clip, settings.grid
    sums = RowSums(private, parts, rate=settings.rate, microbatch=settings.microbatch)
    noise = None
    if variance:
        noise = NoiseAhead(
            DiscreteGaussian(variance),
            shares=shares,
            size=private.size,
            steps=training.rounds,
            insecure_test_random=source,
        )
    algorithm = build_algorithm(training)
    state = algorithm.start(start)
    for _ in range(training.rounds):
        integers = sums.integers(state.params, clip=clip, grid=grid, random=samples)
        if noise is not None:
            noise.add_into(integers)
        values = grid.values(grid.from_ring(grid.to_ring(integers)), clip)
        mean = server_mean(
            values, state.params, training=training, divisor=settings.divisor, penalised=private.penalised
        )
        state = algorithm.step(state, mean)
    return algorithm.final(state)


def _bytes_of(random: StreamRandom) -> RandomBytes:
    def take(count: int) -> bytes:
        return random.words(-(-count // 8)).tobytes()[:count]

    return take
