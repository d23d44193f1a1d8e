from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.privacy.local.randomness import epsilon_shown, stream

from cloister.errors import InputError, PolicyRefused
from cloister.privacy.local import (
    BoundedLaplace,
    Charge,
    PersonalBudget,
    PlanarLaplace,
    Predictions,
    Rectangle,
    Response,
    ValueGrid,
    release,
)

SCORES = BoundedLaplace(ValueGrid.of(0.0, 1.0), 1.0)


@pytest.fixture
def budget(tmp_path: Path) -> Iterator[PersonalBudget]:
    with PersonalBudget.create(tmp_path / "budget.sqlite", bytes(32)) as made:
        made.declare(epsilon=2.0, per_metre=0.05)
        yield made


def test_the_price_is_paid_before_noise_is_drawn(
    budget: PersonalBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    charge, perturb = PersonalBudget.charge, BoundedLaplace.perturb
    monkeypatch.setattr(
        PersonalBudget, "charge", lambda *a, **k: (order.append("charge"), charge(*a, **k))[1]
    )
    monkeypatch.setattr(
        BoundedLaplace, "perturb", lambda *a, **k: (order.append("perturb"), perturb(*a, **k))[1]
    )
    assert len(release(SCORES, np.array([0.1, 0.9]), ["ann", "ben"], budget)) == 2
    assert order == ["charge", "perturb"]


def test_a_failure_after_paying_leaves_the_price_paid(
    budget: PersonalBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no randomness")

    monkeypatch.setattr(BoundedLaplace, "perturb", fails)
    with pytest.raises(OSError, match="randomness"):
        release(SCORES, np.array([0.1]), ["ann"], budget)
    assert budget.spent("ann").epsilon == 1.0


@pytest.mark.parametrize(
    ("mechanism", "values"),
    [
        (SCORES, [math.nan, 0.5]),
        (SCORES, [0.5]),
        (Response(("a", "b"), 1.0), [0, 2]),
        (PlanarLaplace.of(Rectangle((0.0, 100.0), (0.0, 100.0)), 0.01), [[1.0, math.inf], [1.0, 1.0]]),
    ],
)
def test_bad_values_cost_nothing(budget: PersonalBudget, mechanism: object, values: list[float]) -> None:
    with pytest.raises(InputError):
        release(mechanism, np.array(values), ["ann", "ben"], budget)  # type: ignore[arg-type]
    assert budget.people == 0


def test_a_refusal_shows_nothing(budget: PersonalBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    release(SCORES, np.array([0.1]), ["ann"], budget)
    release(SCORES, np.array([0.1]), ["ann"], budget)
    monkeypatch.setattr(BoundedLaplace, "perturb", lambda *_, **__: pytest.fail("drew noise"))
    with pytest.raises(PolicyRefused):
        release(SCORES, np.array([0.1, 0.2]), ["ann", "ben"], budget)


def test_noisy_scores_and_classes(budget: PersonalBudget) -> None:
    scores = Predictions(lambda rows: 1 / (1 + np.exp(-rows[:, 0])), SCORES, budget)
    answered = scores.answer(np.array([[0.0], [9.0]]), ["ann", "ben"])
    assert answered.shape == (2,)
    assert budget.spent("ann").epsilon == 1.0
    two = Predictions(lambda rows: rows[:, 0], Response(("no", "yes"), 0.5), budget)
    assert set(two.answer(np.array([[0.1], [0.9]]), ["ann", "ben"]).tolist()) <= {0, 1}
    three = Predictions(lambda rows: rows, Response(("a", "b", "c"), 0.5), budget)
    assert three.answer(np.array([[0.1, 0.8, 0.1]]), ["ann"]).tolist()[0] in (0, 1, 2)
    assert budget.left("ann").epsilon == 0.0
    with pytest.raises(PolicyRefused):
        three.answer(np.array([[0.1, 0.8, 0.1]]), ["ann"])


def test_classes_are_told_apart_no_better_than_epsilon(tmp_path: Path) -> None:
    with PersonalBudget.create(tmp_path / "other.sqlite", bytes(32)) as budget:
        budget.declare(epsilon=1.0)
        model = Predictions(lambda rows: rows, Response(("no", "yes"), 1.0), budget)
        people = [f"p{i}" for i in range(30_000)]
        no = model.answer(np.zeros(15_000), people[:15_000], insecure_test_random=stream(0))
        yes = model.answer(np.ones(15_000), people[15_000:], insecure_test_random=stream(1))
    assert 0.7 < epsilon_shown(yes, no) <= 1.0


@pytest.mark.parametrize(
    ("said", "mechanism"),
    [
        (np.zeros((2, 2)), SCORES),
        (np.zeros((2, 3)), Response(("a", "b"), 1.0)),
        (np.zeros(2), Response(("a", "b", "c"), 1.0)),
        (np.full(2, math.nan), Response(("a", "b"), 1.0)),
        (np.full(2, math.nan), SCORES),
    ],
)
def test_models_whose_answers_do_not_fit(budget: PersonalBudget, said: object, mechanism: object) -> None:
    with pytest.raises(InputError):
        Predictions(lambda _: said, mechanism, budget).answer(None, ["ann", "ben"])  # type: ignore[arg-type, return-value]
    assert budget.people == 0


def test_prices_add_as_they_are_written() -> None:
    assert Charge(0.1, 1e-9, 0.1) + Charge(0.2, 2e-9, 0.2) == Charge(0.3, 3e-9, 0.3)
