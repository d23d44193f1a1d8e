"""A sound mechanism passes every structural check; tests/attacks has those that must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.learning.attacks.mechanisms import (
    FEATURES,
    MODELS,
    Mislabelled,
    claim_for,
    classes,
    mechanism_for,
)

from cloister.learning.attacks import CHECKS, Check, make_canaries, structural_checks
from cloister.learning.attacks.checks import _bell_shaped


def checks_of(
    name: str, claimed: dict[str, object], real: dict[str, object] | None = None
) -> dict[str, Check]:
    model = MODELS[name]
    claim = claim_for(model, **claimed)  # type: ignore[arg-type]
    mechanism = mechanism_for(model, claim)
    start = model.initial(0)
    canaries = make_canaries(mechanism, start, features=FEATURES, classes=classes(model))
    if real is not None:
        mechanism = Mislabelled(mechanism, mechanism_for(model, replace(claim, **real)))
    return {check.name: check for check in structural_checks(mechanism, start, canaries)}


CASES = [
    ("logistic", {"noise": 4.0, "rate": 0.1, "steps": 100}),
    ("mlp", {"noise": 1.0, "rate": 1.0, "steps": 3, "algorithm": "fedadam", "l2": 0.1}),
    ("softmax", {"noise": 0.5, "rate": 0.002, "steps": 2, "server_learning_rate": 0.3}),
    ("linear", {"noise": 2.0, "rate": 0.5, "steps": 10, "shares": 1}),
    ("logistic", {"noise": 1.0, "rate": 0.3, "steps": 10, "shares": 1, "local": True}),
    ("logistic", {"noise": 1.0, "rate": 0.3, "steps": 10, "bits": 16, "batch": 2}),
]


@pytest.mark.parametrize(("name", "claimed"), CASES)
def test_a_sound_mechanism_passes(name: str, claimed: dict[str, object]) -> None:
    found = checks_of(name, claimed)
    assert tuple(found) == CHECKS
    assert [check for check in found.values() if not check.holds] == []


def test_more_noise_than_claimed_is_no_defect() -> None:
    base = {"noise": 1.0, "rate": 0.3, "steps": 10}
    claim = claim_for(MODELS["logistic"], **base)  # type: ignore[arg-type]
    found = checks_of("logistic", base, {"share_variance": 4 * claim.share_variance})
    assert found["noise shares"].holds
    assert found["summed noise"].holds


def test_a_fifth_less_noise_is_found() -> None:
    base = {"noise": 1.0, "rate": 0.3, "steps": 10}
    claim = claim_for(MODELS["logistic"], **base)  # type: ignore[arg-type]
    found = checks_of("logistic", base, {"share_variance": 0.8 * claim.share_variance})
    assert not found["noise shares"].holds
    assert not found["summed noise"].holds
    assert found["sample sizes"].holds


@pytest.mark.parametrize("rate", [0.13, 0.07, 1.0])
def test_another_rate_is_found(rate: float) -> None:
    assert not checks_of("logistic", {"noise": 1.0, "rate": 0.1, "steps": 5}, {"rate": rate})[
        "sample sizes"
    ].holds


def test_noise_of_another_shape_is_found() -> None:
    rng = np.random.default_rng(0)
    assert _bell_shaped(np.rint(rng.normal(size=6000) * 3.0))
    assert _bell_shaped(np.rint(rng.normal(size=6000) * 1e6))
    assert not _bell_shaped(np.rint(rng.uniform(-1, 1, 6000) * 1e6))
    assert not _bell_shaped(np.rint(rng.laplace(size=6000) * 1e6))
    assert not _bell_shaped(np.zeros(6000))
