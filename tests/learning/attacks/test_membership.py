from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from tests.learning.attacks.mechanisms import FEATURES, MODELS, claim_for, mechanism_for, random_rows

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning import ClientRows, LogisticHead, Model, TrainingSection
from cloister.learning.attacks import lira, plain_trainer, private_trainer
from cloister.learning.attacks.membership import _halves, _ratios, confidences
from cloister.learning.baselines import federated_in_clear

TRAINING = TrainingSection(rounds=15, batch=16, local_steps=10, learning_rate=0.3)


def test_a_model_that_learns_by_heart_gives_its_rows_away() -> None:
    model = Model((FEATURES, 32, 1), LogisticHead())
    long = TrainingSection(rounds=60, batch=16, local_steps=20, learning_rate=0.5)
    found = lira(plain_trainer(model, model.initial(0), long), model, random_rows(1, 3, 20), models=16)
    assert found.auc > 0.75
    assert found.hits_at_10 > 0.2
    assert found.rows == 60
    assert found.models == 16


def test_noise_takes_it_away() -> None:
    model = MODELS["logistic"]
    mechanism = mechanism_for(model, claim_for(model, noise=20.0, rate=0.2, steps=15))
    trainer = private_trainer(mechanism, np.zeros(model.size))
    halves = StreamRandom.from_seed(2, "halves")
    found = lira(trainer, model, random_rows(2, 4, 20), models=16, insecure_test_random=halves)
    assert abs(found.auc - 0.5) < 0.06
    assert abs(found.accuracy - 0.5) < 0.06


def test_shadows_train_as_the_study_does() -> None:
    """Where every batch is a site's whole rows nothing is random, and the baseline has the same model."""
    model, start = MODELS["mlp"], MODELS["mlp"].initial(1)
    whole = TrainingSection(rounds=4, batch=100, local_steps=3, learning_rate=0.2)
    parts = [random_rows(3, 1, rows)[0] for rows in (30, 10, 20)]
    others = random_rows(4, 3, 15)
    found = plain_trainer(model, start, whole)([parts, others])
    for params, each in zip(found, (parts, others), strict=True):
        np.testing.assert_allclose(
            params, federated_in_clear(model, start, ClientRows.stack(each), whole), atol=1e-12
        )


def test_ratios_leave_the_target_out() -> None:
    """Against the definition, row by row: means without the target, variances pooled."""
    rng = np.random.default_rng(0)
    member = _halves(8, 5, StreamRandom.from_seed(1, "halves"))
    scores = rng.normal(size=member.shape) + member
    ratios = _ratios(scores, member)
    spread = {
        inside: np.sum(
            [
                (scores[member[:, i] == inside, i] - scores[member[:, i] == inside, i].mean()) ** 2
                for i in range(5)
            ]
        )
        / (20 - 5)
        for inside in (True, False)
    }
    for target in range(8):
        others = np.arange(8) != target
        for row in range(5):
            inside = scores[others & member[:, row], row].mean()
            outside = scores[others & ~member[:, row], row].mean()
            score = scores[target, row]
            expected = norm.logpdf(score, inside, np.sqrt(spread[True])) - norm.logpdf(
                score, outside, np.sqrt(spread[False])
            )
            assert ratios[target, row] == pytest.approx(expected)


def test_each_row_is_in_half_of_the_models() -> None:
    member = _halves(12, 30, StreamRandom.system())
    assert (member.sum(axis=0) == 6).all()
    assert member.any(axis=1).all()


def test_confidences_are_logits_and_stay_finite() -> None:
    model = MODELS["logistic"]
    X, y = np.ones((2, FEATURES)), np.array([1.0, 0.0])
    params = np.zeros(model.size)
    np.testing.assert_allclose(confidences(model, params, X, y), 0.0, atol=1e-12)
    params[:] = 1e3
    assert np.isfinite(confidences(model, params, X, y)).all()
    regression = MODELS["linear"]
    np.testing.assert_allclose(confidences(regression, np.zeros(7), X, np.array([2.0, -1.0])), [-2.0, -1.0])


def test_too_little_is_refused() -> None:
    model = MODELS["logistic"]
    trainer = plain_trainer(model, np.zeros(model.size), TRAINING)
    for models, rows in ((6, 10), (9, 10), (8, 2)):
        with pytest.raises(InputError):
            lira(trainer, model, random_rows(1, 3, rows), models=models)
