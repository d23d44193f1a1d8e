from __future__ import annotations

import numpy as np
import pytest

from cloister.crypto import StreamRandom
from cloister.learning import (
    ClientRows,
    ModelSection,
    TrainingSection,
    build_model,
    centralised,
    each_alone,
    evaluate,
    federated_in_clear,
)

MODEL = build_model(ModelSection(kind="logistic"), 3)
TRUTH = np.array([2.0, -1.0, 0.5])


def sites(counts: list[int], shift: float = 0.5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(4)
    parts = []
    for number, count in enumerate(counts):
        X = rng.normal(size=(count, 3)) + shift * number
        parts.append((X, (X @ TRUTH + rng.logistic(size=count) > 0).astype(float)))
    return parts


def config(**changes: object) -> TrainingSection:
    fields = {"rounds": 6, "batch": 10_000, "local_steps": 1, "learning_rate": 0.3, "l2": 0.01}
    return TrainingSection(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_one_full_step_a_round_weighted_by_rows_is_centralised_training(algorithm: str) -> None:
    rows = ClientRows.stack(sites([10, 40, 25]))
    settings = config(algorithm=algorithm)
    whole = centralised(MODEL, MODEL.initial(0), rows, settings)
    np.testing.assert_allclose(federated_in_clear(MODEL, MODEL.initial(0), rows, settings), whole, rtol=1e-9)


def test_equal_weights_are_the_plain_mean() -> None:
    rows = ClientRows.stack(sites([10, 40]))
    settings = config(rounds=1, weights="equal")
    alone = each_alone(MODEL, MODEL.initial(0), rows, settings)
    mixed = federated_in_clear(MODEL, MODEL.initial(0), rows, settings)
    np.testing.assert_allclose(mixed, alone.mean(axis=0), rtol=1e-12)


def test_each_alone_sees_its_own_rows() -> None:
    parts = sites([10, 40, 25])
    settings = config(rounds=3, local_steps=2)
    together = each_alone(MODEL, MODEL.initial(0), ClientRows.stack(parts), settings)
    for number, part in enumerate(parts):
        single = centralised(MODEL, MODEL.initial(0), ClientRows.stack([part]), settings)
        np.testing.assert_allclose(together[number], single, rtol=1e-10)


def test_federation_comes_close_to_pooling_and_beats_a_small_site() -> None:
    parts, held_out = sites([30, 300, 400], shift=0.2), sites([2000])[0]
    settings = config(rounds=30, batch=16, local_steps=5)
    rows = ClientRows.stack(parts)
    start = MODEL.initial(0)

    def accuracy(params: np.ndarray) -> float:
        return evaluate(MODEL, params, *held_out)["accuracy"]

    random = StreamRandom.from_seed(0, "test")
    pooled = accuracy(centralised(MODEL, start, rows, settings, insecure_test_random=random))
    federated = accuracy(federated_in_clear(MODEL, start, rows, settings, insecure_test_random=random))
    assert abs(pooled - federated) < 0.01
