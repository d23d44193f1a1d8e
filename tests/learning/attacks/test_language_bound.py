"""The one-run bound on losses of canaries: never above what was done, and near it where everything is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloister.errors import InputError
from cloister.learning.attacks.languagebound import coin_bounds
from cloister.privacy.accounting import Event, Everyone, Gaussian, epsilon

DELTA, SURE = 1e-5, 0.999


def game(signal: float, count: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inside = rng.integers(2, size=count).astype(bool)
    return inside * signal + rng.normal(size=count), inside


def test_what_is_remembered_shows() -> None:
    bounds = coin_bounds(*game(9.0), delta=DELTA, confidence=SURE)
    assert [bound.method for bound in bounds] == ["f-DP, epsilon and delta", "Steinke"]
    assert all(bound.correct == bound.guesses == 300 and bound.epsilon > 3.0 for bound in bounds)


def test_what_is_not_remembered_does_not() -> None:
    for seed in range(5):
        assert all(
            bound.epsilon == 0.0 for bound in coin_bounds(*game(0.0, seed=seed), delta=DELTA, confidence=SURE)
        )


def test_bounds_stay_below_the_mechanism_that_was_run() -> None:
    event = Event(
        mechanism=Gaussian(sigma=0.5, sensitivity=1.0), sampler=Everyone(), relation="zero-out", count=1
    )
    bounds = coin_bounds(*game(2.0), delta=DELTA, confidence=SURE, events=(event,))
    true = epsilon((event,), DELTA)
    assert bounds[0].method == "f-DP"
    assert all(0.0 < bound.epsilon < true for bound in bounds)
    assert bounds[0].epsilon >= bounds[1].epsilon >= bounds[2].epsilon


def test_ties_do_not_guess_right_by_their_order() -> None:
    inside = np.arange(400) >= 200
    assert all(
        bound.epsilon == 0.0
        for bound in coin_bounds(np.zeros(400), np.roll(inside, 100), delta=DELTA, confidence=SURE)
    )


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan]])
def test_too_few_or_broken_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(InputError, match="2 canaries"):
        coin_bounds(np.array(scores), np.ones(len(scores), bool), delta=DELTA, confidence=SURE)
