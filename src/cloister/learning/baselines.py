"""What the federation is compared with: all rows in one place, each site alone, and the federation without
masks.

All three run the plan's own `[training]`: the same rounds, steps, batches, optimiser and algorithm.
"Centralised" is a federation whose one client holds all rows; "alone" is one federation of one client for
each site, batched. They need all rows in one process, so they are for public data, tests and benchmarks; a
real study has no such process.
"""

from __future__ import annotations

import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning.algorithms import build_algorithm, client_update, mean_update, site_weights
from cloister.learning.heads import Array
from cloister.learning.models import Model
from cloister.learning.sections import TrainingSection
from cloister.learning.training import ClientRows, train

__all__ = ["centralised", "each_alone", "federated_in_clear"]


def centralised(
    model: Model,
    initial: Array,
    rows: ClientRows,
    config: TrainingSection,
    *,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return the model that one party holding all rows would train, float64[d]."""
    alone = each_alone(model, initial, rows.pooled(), config, insecure_test_random=insecure_test_random)
    params: Array = alone[0]
    return params


def each_alone(
    model: Model,
    initial: Array,
    rows: ClientRows,
    config: TrainingSection,
    *,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return the model that each client would train on its own rows, float64[C, d]."""
    random = insecure_test_random or StreamRandom.system()
    algorithm = build_algorithm(config)
    state = algorithm.start(np.broadcast_to(initial, (rows.clients, model.size)))
    for _ in range(config.rounds):
        local = train(model, state.params, rows, config, insecure_test_random=random)
        state = algorithm.step(state, local - state.params)
    return algorithm.final(state)


def federated_in_clear(
    model: Model,
    initial: Array,
    rows: ClientRows,
    config: TrainingSection,
    *,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return the model of the federation when nobody masks, rounds or drops out, float64[d]."""
    random = insecure_test_random or StreamRandom.system()
    algorithm = build_algorithm(config)
    weights = site_weights(rows.counts.tolist(), config.weights)
    state = algorithm.start(initial)
    for _ in range(config.rounds):
        local = train(model, state.params, rows, config, insecure_test_random=random)
        total = np.zeros(model.size)
        for params, weight in zip(local, weights, strict=True):
            total += client_update(params, state.params, weight)
        state = algorithm.step(state, mean_update(total, weights))
    return algorithm.final(state)
