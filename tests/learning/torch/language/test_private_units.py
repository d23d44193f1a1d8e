"""Language models by unit: each unit's update is clipped and rounded by itself, and none is seen by another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.learning.torch.language import bases as made  # noqa: E402
from tests.learning.torch.language.references import moved  # noqa: E402

from cloister.crypto import StreamRandom  # noqa: E402
from cloister.errors import InputError  # noqa: E402
from cloister.learning.private import bit_units, joint_sensitivity  # noqa: E402
from cloister.learning.torch.language.learner import LanguageLearner  # noqa: E402
from cloister.learning.torch.language.units import language_unit_sum  # noqa: E402
from cloister.privacy.mechanisms import IntegerGrid  # noqa: E402

Bases = dict[str, Path]
GRID = IntegerGrid(32, 1 << 20)
TRAINING = made.training(batch=8, local_steps=2)
UNITS = [np.array([0]), np.array([4]), np.array([2]), np.array([5])]
"""One row each: then the order of rows, which is drawn, changes no bit of an update."""


def sum_of(
    learner: LanguageLearner, params: np.ndarray, units: list[np.ndarray], **changes: Any
) -> np.ndarray:
    options: dict[str, Any] = {
        "training": TRAINING,
        "clip": 0.05,
        "grid": GRID,
        "rate": 1.0,
        "random": StreamRandom.from_seed(5, "units"),
        "norm_bit": False,
    }
    examples = made.rows(12, classes=learner.classes)
    return language_unit_sum(learner, params, examples, units, **(options | changes))


def update(learner: LanguageLearner, params: np.ndarray, rows: np.ndarray) -> np.ndarray:
    examples = made.rows(12, classes=learner.classes).select(rows)
    random = StreamRandom.from_seed(5, "another")
    after = learner.train(params, examples, TRAINING, learner.windows[0], insecure_test_random=random)
    return after.astype(np.float64) - params.astype(np.float64)


@pytest.fixture(scope="module")
def learner(bases: Bases) -> LanguageLearner:
    return made.learner(bases["llama"], classes=3)


def test_each_update_is_clipped_and_rounded_by_itself(learner: LanguageLearner) -> None:
    params = moved(learner)
    updates = [update(learner, params, rows) for rows in UNITS]
    norms = np.array([np.linalg.norm(each) for each in updates])
    clip = float(np.median(norms))
    scaled = [each * min(1.0, clip / norm) for each, norm in zip(updates, norms, strict=True)]
    found = sum_of(learner, params, UNITS, clip=clip, norm_bit=True)
    expected = sum(GRID.round(each, clip) for each in scaled)
    assert found[-1] == bit_units(GRID) * (2 * int((norms <= clip).sum()) - len(UNITS)) == 0
    assert np.abs(found[:-1] - expected).max() <= 1  # where a deflated number rounds the other way
    alone = [sum_of(learner, params, [rows], clip=clip, norm_bit=True) for rows in UNITS]
    np.testing.assert_array_equal(found, sum(alone))
    most = joint_sensitivity(GRID, learner.size, norm_bit=True)
    assert all(np.linalg.norm(each) <= most for each in alone)


def test_units_of_many_rows_train_their_own_rows(learner: LanguageLearner) -> None:
    params = moved(learner)
    units = [np.array([0, 3, 7]), np.array([1, 2, 4, 5, 6, 8, 9, 10])]
    first, second = (update(learner, params, rows) for rows in units)
    found = GRID.values(sum_of(learner, params, units, clip=8.0), 8.0)
    np.testing.assert_allclose(found, first + second, rtol=0, atol=1e-5)
    only = GRID.values(sum_of(learner, params, units[:1], clip=8.0), 8.0)
    np.testing.assert_allclose(only, first, rtol=0, atol=1e-5)


def test_a_unit_that_diverges_counts_as_zero_and_stops_nobody(
    learner: LanguageLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit's token has an infinite vector, and nothing of its passes is finite."""
    params, examples = moved(learner), made.rows(12, classes=3)
    token = int(examples.ids[examples.starts[4]])
    table = learner.module.base.get_input_embeddings().weight
    hit = [i for i in range(12) if token in examples.ids[examples.starts[i] : examples.starts[i + 1]]]
    clean = [rows for rows in UNITS if int(rows[0]) not in hit]
    assert len(clean) == 3
    expected = sum_of(learner, params, clean, norm_bit=True)
    before = table[token].clone()
    with torch.no_grad():
        table[token] = float("inf")
    try:
        found = sum_of(learner, params, UNITS, norm_bit=True)
    finally:
        with torch.no_grad():
            table[token] = before
    expected[-1] -= bit_units(GRID)  # it counts as above the clip
    np.testing.assert_array_equal(found, expected)


def test_units_are_sampled_whole(learner: LanguageLearner) -> None:
    params = moved(learner)
    alone = [sum_of(learner, params, [rows]) for rows in UNITS]
    seen = set()
    for seed in range(8):
        random = StreamRandom.from_seed(seed, "coins")
        found = sum_of(learner, params, UNITS, rate=0.5, random=random)
        subsets = [
            code
            for code in range(16)
            if np.array_equal(found, sum((a for i, a in enumerate(alone) if code >> i & 1), 0 * found))
        ]
        assert len(subsets) == 1
        seen.add(subsets[0])
    assert len(seen) > 2


def test_only_the_window_moves(bases: Bases) -> None:
    learner = made.learner(bases["llama"], method="lora-alternating")
    params = moved(learner)
    for start, stop in learner.windows:
        found = sum_of(learner, params, UNITS, window=(start, stop), norm_bit=True)
        assert found.shape == (stop - start + 1,)
        assert found[:-1].any()


def test_rows_of_no_token_are_left_out(learner: LanguageLearner) -> None:
    params, examples = moved(learner), made.rows(12, classes=3)
    examples = replace(
        examples, starts=np.append(examples.starts, examples.starts[-1]), labels=np.append(examples.labels, 0)
    )

    def found(units: list[np.ndarray]) -> np.ndarray:
        return language_unit_sum(
            learner,
            params,
            examples,
            units,
            training=TRAINING,
            clip=0.05,
            grid=GRID,
            rate=1.0,
            random=StreamRandom.from_seed(5, "units"),
            norm_bit=True,
        )

    np.testing.assert_array_equal(found([np.array([12, 4])]), found([np.array([4])]))
    silent = found([np.array([12])])
    assert not silent[:-1].any()
    assert silent[-1] == bit_units(GRID)


def test_rows_that_do_not_fit_are_refused(learner: LanguageLearner) -> None:
    params = moved(learner)
    with pytest.raises(InputError, match="a unit has no rows"):
        sum_of(learner, params, [np.zeros(0, np.int64)])
    with pytest.raises(InputError, match="clip"):
        sum_of(learner, params, UNITS, clip=0.0)
    assert not sum_of(learner, params, [], norm_bit=True).any()
