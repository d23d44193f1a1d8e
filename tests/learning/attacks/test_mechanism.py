"""The mechanism that is audited is the one that runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.learning.attacks.mechanisms import MODELS, claim_for, mechanism_for, random_rows

from cloister.errors import InputError
from cloister.learning.attacks import Claim, DistributedMechanism, LocalMechanism
from cloister.learning.attacks.mechanism import deal
from cloister.learning.private import NumpyPrivate, PrivateSettings, joint_sensitivity, simulate


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_without_chance_it_is_the_simulation_of_a_study(algorithm: str) -> None:
    """Everyone sampled and next to no noise: the same model as `simulate`, which the runtime is held to."""
    model = MODELS["mlp"]
    claim = claim_for(
        model, noise=1e-6, rate=1.0, steps=8, algorithm=algorithm, l2=0.01, server_learning_rate=0.5
    )
    claim = replace(claim, share_variance=8.0)
    parts, start = random_rows(1, 3, 20), model.initial(3)
    run = mechanism_for(model, claim).begin(start, parts)
    for _ in range(claim.steps):
        run.look()
    settings = PrivateSettings(claim.training, 1.0, 1.0, claim.grid, 64, 0.0, 3)
    clear = simulate(NumpyPrivate(model), start, parts, settings)
    np.testing.assert_allclose(run.finish(), clear, atol=1e-4 if algorithm == "fedadam" else 1e-6)
    assert np.abs(clear - start).max() > 1e-3


def test_attempts_beyond_the_rounds_are_seen_and_move_nothing() -> None:
    model = MODELS["logistic"]
    claim = claim_for(model, noise=1.0, rate=0.5, steps=5, rounds=2)
    run = mechanism_for(model, claim).begin(np.zeros(model.size), random_rows(2, 3, 10))
    seen, models = [], []
    for _ in range(5):
        seen.append(run.look())
        models.append(run.params.copy())
    assert not np.array_equal(models[0], models[1])
    assert np.array_equal(models[1], models[4])
    assert not np.array_equal(seen[3], seen[4])
    np.testing.assert_array_equal(run.finish(), models[1])


def test_a_sum_wraps_around_in_the_ring() -> None:
    model = MODELS["logistic"]
    claim = claim_for(model, noise=0.1, rate=1.0, steps=1, bits=16, batch=2)
    claim = replace(claim, share_variance=8.0)
    many = [(np.ones((4000, 6)), np.zeros(4000))] * 3
    seen = mechanism_for(model, claim).begin(np.zeros(model.size), many).look()
    assert np.abs(seen).max() < 2**15


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_units_train_alone_and_their_update_is_clipped(quantile: float | None) -> None:
    model = MODELS["logistic"]
    base = claim_for(model, noise=1.0, rate=1.0, steps=2, learning_rate=5.0)
    sensitivity = joint_sensitivity(base.grid, model.size, norm_bit=quantile is not None)
    claim = replace(
        base,
        by_record=False,
        adaptive_quantile=quantile,
        sensitivity=sensitivity,
        divisor=4.0,
        training=replace_steps(base, 6),
    )
    mechanism = DistributedMechanism(NumpyPrivate(model), claim, model)
    rows = (np.full((3, 6), 0.9), np.array([0.0, 1.0, 0.0]))
    signals = mechanism.signals(np.zeros(model.size), rows, 1.0)
    assert signals.shape == (3, model.size + (quantile is not None))
    assert (np.linalg.norm(signals, axis=1) <= sensitivity).all()
    assert (np.linalg.norm(signals[:, : model.size], axis=1) > 0.99 * claim.grid.clip_units).all()
    run = mechanism.begin(np.zeros(model.size), deal([rows], 3))
    np.testing.assert_array_equal(run.site_sum(0), signals.sum(axis=0))
    before = run.clip
    run.look()
    assert (run.clip != before) == (quantile is not None)


def replace_steps(claim: Claim, steps: int):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(claim.training, local_steps=steps, batch=1)


def test_local_steps_are_read_back_exactly() -> None:
    """With no noise to speak of and everyone sampled, what is read back are the sum's own integers."""
    model = MODELS["mlp"]
    claim = claim_for(model, noise=1e-7, rate=1.0, steps=4, shares=1, l2=0.05, local=True)
    claim = replace(claim, share_variance=0.05)
    mechanism = LocalMechanism(NumpyPrivate(model), claim)
    run = mechanism.begin(model.initial(1), random_rows(3, 1, 12))
    for _ in range(3):
        expected = run.site_sum(0)
        seen = run.look()
        assert np.abs(seen - expected).max() <= 3
        assert np.abs(expected).max() > 1e5


def test_rows_are_dealt_in_turn() -> None:
    parts = random_rows(4, 5, 2)
    hands = deal(parts, 2)
    assert [len(y) for _, y in hands] == [6, 4]
    np.testing.assert_array_equal(hands[1][0], np.concatenate([parts[1][0], parts[3][0]]))
    assert [len(y) for _, y in deal(parts[:1], 3)] == [2, 0, 0]


def test_what_does_not_fit_is_refused() -> None:
    model = MODELS["logistic"]
    claim = claim_for(model, noise=1.0, rate=0.5, steps=2)
    with pytest.raises(InputError):
        mechanism_for(model, claim).begin(np.zeros(model.size), random_rows(1, 2, 3))
    with pytest.raises(InputError):
        LocalMechanism(NumpyPrivate(model), claim).begin(np.zeros(model.size), random_rows(1, 2, 3))
    with pytest.raises(InputError):
        DistributedMechanism(NumpyPrivate(model), replace(claim, by_record=False))
    for broken in ({"rate": 0.0}, {"rounds": 3}, {"sites_per_unit": 4}, {"divisor": 0.0}):
        with pytest.raises(InputError):
            replace(claim, **broken)
