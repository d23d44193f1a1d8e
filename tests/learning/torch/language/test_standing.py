"""The vectors of texts that a head sees have the texts' common part taken off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.learning.torch.language import bases as made  # noqa: E402

from cloister.learning.torch.language import parameters  # noqa: E402

Bases = dict[str, Path]


def test_rows_of_nobody_have_mean_zero_and_spread_one(bases: Bases) -> None:
    module = made.learner(bases["llama"], classes=3).module
    ids = torch.randint(0, 50, (400, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = (module.pooled(ids, torch.ones_like(ids, dtype=torch.bool)) - module.centre) / module.spread
    assert float(seen.mean(0).abs().mean()) < 0.6
    assert 0.5 < float(seen.std(0).mean()) < 2.0


def test_it_follows_from_the_seed_and_the_base_alone(bases: Bases) -> None:
    one, two, other = (made.learner(bases["llama"], classes=3, seed=seed).module for seed in (7, 7, 8))
    assert torch.equal(one.centre, two.centre)
    assert torch.equal(one.spread, two.spread)
    assert not torch.equal(one.centre, other.centre)


def test_training_leaves_it_as_it_is(bases: Bases) -> None:
    learner = made.learner(bases["llama"], classes=3)
    before = learner.module.centre.clone()
    trained = learner.train(learner.initial(7), made.rows(classes=3), made.training())
    learner.load(trained)
    assert not np.array_equal(trained, learner.initial(7))
    assert torch.equal(learner.module.centre, before)


def test_how_it_is_made_belongs_to_what_a_plan_pins(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [made.learner(bases["llama"], classes=classes).fixed for classes in (3, 0)]
    monkeypatch.setattr(parameters, "RECIPE", "another way")
    after = [made.learner(bases["llama"], classes=classes).fixed for classes in (3, 0)]
    assert before[0] != after[0]
    assert before[1] == after[1]  # a model of next tokens has none


def test_its_seed_is_pinned_where_no_drawn_matrix_says_it(bases: Bases) -> None:
    one, two = (made.learner(bases["llama"], classes=3, seed=seed, method="full", rank=0) for seed in (7, 8))
    assert one.fixed != two.fixed
