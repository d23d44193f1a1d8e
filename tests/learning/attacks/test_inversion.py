from __future__ import annotations

import numpy as np
import pytest
from tests.learning.attacks.mechanisms import (
    FEATURES,
    MODELS,
    claim_for,
    mechanism_for,
    random_rows,
)

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning import TrainingSection
from cloister.learning.attacks import candidates, invert, plain_views, private_views, similarity
from cloister.secagg import Encoding

TRAINING = TrainingSection(rounds=5, batch=8, local_steps=4, learning_rate=0.2)


@pytest.mark.parametrize("name", MODELS)
def test_a_single_row_is_read_back_from_its_gradient(name: str) -> None:
    model = MODELS[name]
    X, y = random_rows(1, 1, 1, model)[0]
    gradient = model.gradient(model.initial(2)[None], X[None], y[None])[0]
    found = candidates(model, -3.7 * gradient)  # any scale and sign
    assert len(found)
    np.testing.assert_allclose(found, np.repeat(X, len(found), axis=0), atol=1e-9)


def test_units_that_react_to_one_row_of_many_give_it_away() -> None:
    model = MODELS["mlp"]
    X, y = random_rows(2, 1, 6)[0]
    best = max(
        similarity(candidates(model, model.gradient(model.initial(seed)[None], X[None], y[None])[0]), X)
        for seed in range(20)
    )
    assert best > 0.999


def test_nothing_in_a_zero_update() -> None:
    model = MODELS["logistic"]
    assert len(candidates(model, np.zeros(model.size))) == 0
    assert similarity(np.zeros((0, FEATURES)), np.zeros((3, FEATURES))) == 0.0


def test_similarity_is_that_of_the_best_pair() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert similarity(np.array([[1.0, 0.5], [-1.0, -1.0]]), rows) == pytest.approx(1 - 0.25 / 2)
    assert similarity(rows[:1], rows) == 1.0


def attacked(views: object, name: str = "logistic", rows: int = 12) -> dict[str, object]:
    random = StreamRandom.system()

    def strangers(count: int) -> np.ndarray:
        return random.uniform((count, FEATURES)) * 2 - 1

    seeds = iter(range(10_000))
    found = invert(
        views,  # type: ignore[arg-type]
        MODELS[name],
        lambda: random_rows(next(seeds), 3, rows, MODELS[name]),
        strangers,
        trials=12,
    )
    return {each.view: each for each in found}


def test_masks_hide_what_a_raw_update_gives_away() -> None:
    model = MODELS["logistic"]
    found = attacked(plain_views(model, np.zeros(model.size), TRAINING, Encoding(32, 3, 8.0)), rows=1)
    assert list(found) == ["one row", "one site", "sum", "masked"]
    assert found["one row"].exact == 1.0  # type: ignore[attr-defined]
    assert found["one site"].exact == 1.0  # type: ignore[attr-defined]
    assert found["sum"].similarity < 0.97  # type: ignore[attr-defined]
    masked = found["masked"]
    assert masked.exact == 0.0  # type: ignore[attr-defined]
    assert masked.similarity < masked.chance + 0.15  # type: ignore[attr-defined]


def test_noise_hides_what_a_sum_gives_away() -> None:
    model = MODELS["logistic"]
    mechanism = mechanism_for(model, claim_for(model, noise=5.0, rate=1.0, steps=2))
    found = attacked(private_views(mechanism, np.zeros(model.size)), rows=1)
    assert list(found) == ["one row", "one site", "sum", "noised sum", "masked"]
    assert found["one row"].exact == 1.0  # type: ignore[attr-defined]
    assert found["one site"].exact == 1.0  # type: ignore[attr-defined]
    noised = found["noised sum"]
    assert noised.exact == 0.0  # type: ignore[attr-defined]
    assert noised.similarity < noised.chance + 0.1  # type: ignore[attr-defined]


def test_no_trial_is_refused() -> None:
    with pytest.raises(InputError):
        invert({}, MODELS["logistic"], lambda: [], lambda count: np.zeros((count, FEATURES)), trials=0)
