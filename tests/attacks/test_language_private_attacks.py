"""Rows and modules that try to get more out of a private language model than a clip: none moves a sum by more
than it, none is seen in what is computed for another, and what would let that happen is refused before rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.learning.torch.language import bases as made  # noqa: E402
from tests.learning.torch.language.references import moved  # noqa: E402

from cloister.crypto import StreamRandom  # noqa: E402
from cloister.errors import InputError, PlanError  # noqa: E402
from cloister.learning.private import RowSums  # noqa: E402
from cloister.learning.refusals import check_language  # noqa: E402
from cloister.learning.sections import DataSection, LanguageSection, ModelSection  # noqa: E402
from cloister.learning.torch.language.examples import Examples, joined  # noqa: E402
from cloister.learning.torch.language.learner import LanguageLearner  # noqa: E402
from cloister.learning.torch.language.private import LanguagePrivate  # noqa: E402
from cloister.privacy.mechanisms import IntegerGrid  # noqa: E402

GRID = IntegerGrid(32, 1 << 20)
CONTEXT, CLIP = 32, 0.5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make_base(tmp_path_factory.mktemp("attacked") / "llama", "llama")


def with_row(examples: Examples, row: np.ndarray, learnt: np.ndarray, label: float) -> Examples:
    """Return the examples and one more at their end."""
    parts = np.split(examples.ids, examples.starts[1:-1])
    flags = np.split(examples.counted, examples.starts[1:-1])
    labels = np.append(examples.labels, label)
    return joined([*parts, row.astype(np.int32)], [*flags, learnt], labels, pad=examples.pad)


CRAFTED = {
    "one token, again and again": np.full(CONTEXT, 299),
    "a single token": np.array([5]),
    "as long as may be": np.arange(CONTEXT) * 7 % 300,
    "padding as text": np.zeros(20, np.int64),
    "one more than the others": np.arange(25),
}


@pytest.fixture(scope="module", params=[0, 3], ids=["next tokens", "classes"])
def attacked(base: Path, request: pytest.FixtureRequest) -> tuple[LanguageLearner, LanguagePrivate]:
    """Twenty honest rows, and the crafted ones behind them."""
    learner = made.learner(base, context=CONTEXT, classes=request.param)
    examples = made.rows(20, classes=request.param, longest=24)
    for row in CRAFTED.values():
        examples = with_row(examples, row, np.arange(len(row)) > 0, 0.0)
    return learner, LanguagePrivate(learner, examples)


@pytest.mark.parametrize("scale", [0.05, 30.0, 1e8])
def test_no_crafted_row_moves_a_sum_by_more_than_the_clip(
    attacked: tuple[LanguageLearner, LanguagePrivate], scale: float
) -> None:
    """Whatever the row holds, and wherever training has led the parameters."""
    learner, private = attacked
    params = moved(learner, scale)
    held = params.astype(np.float64)
    private.hold(params)

    def total(*rows: int) -> np.ndarray:
        (found,) = private.clipped_sums(held, np.array(rows), np.zeros(0), CLIP, 64)
        return found

    honest = GRID.round(total(*range(20)), CLIP)
    for number, name in enumerate(CRAFTED, start=20):
        alone = total(number)
        assert np.isfinite(alone).all()
        assert np.linalg.norm(alone) <= CLIP, name
        moves = GRID.round(total(*range(20), number), CLIP) - honest
        assert np.linalg.norm(moves) <= GRID.sensitivity(private.size, private.float_bound(64)), name


def test_a_long_row_does_not_change_how_others_are_computed(base: Path) -> None:
    """Were rows padded to the longest beside them, one row would change the last bits of all."""
    learner = made.learner(base, context=CONTEXT, classes=3)
    examples = made.rows(20, classes=3, longest=12)
    params = moved(learner)
    held = params.astype(np.float64)
    crafted = with_row(examples, CRAFTED["as long as may be"], np.zeros(CONTEXT, np.bool_), 2.0)
    found: list[list[np.ndarray]] = []
    for rows in (examples, crafted):
        private = LanguagePrivate(learner, rows)
        private.hold(params)
        sums = list(private.clipped_sums(held, np.arange(len(rows)), np.zeros(0), CLIP, 10))
        found.append(sums)
        ring = RowSums(private, [private.rows], rate=1.0, microbatch=10).integers(
            held, clip=CLIP, grid=GRID, random=StreamRandom.from_seed(0, "coins")
        )
        np.testing.assert_array_equal(ring, sum(GRID.round(each, CLIP) for each in sums))
    assert [each.tobytes() for each in found[0]] == [each.tobytes() for each in found[1][:2]]


@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_a_row_without_a_finite_gradient_counts_for_nothing_and_stops_nobody(
    base: Path, value: float
) -> None:
    learner = made.learner(base, context=CONTEXT)
    examples = made.rows(20, longest=24)
    params, token = moved(learner), 299
    ids = np.where(examples.ids == token, 298, examples.ids).astype(np.int32)
    examples = with_row(
        replace(examples, ids=ids), np.array([7, token, 7]), np.array([False, True, True]), 0.0
    )
    private = LanguagePrivate(learner, examples)
    private.hold(params)
    rows, held = np.arange(21), params.astype(np.float64)
    clean = list(private.clipped_sums(held, rows, np.zeros(0), CLIP, 1))
    table = learner.module.base.get_input_embeddings()
    table.register_forward_hook(
        lambda _, given, output: output.masked_fill((given[0] == token)[..., None], value)
    )
    found = list(private.clipped_sums(held, rows, np.zeros(0), CLIP, 1))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(clean[:20], found[:20], strict=True))
    assert np.linalg.norm(found[20]) <= CLIP
    assert np.isfinite(value) or not found[20].any()


Scores = Callable[[Any, Any, Any], Any]


def mean_of_others(scores: Scores) -> Scores:
    """Rows are compared with the mean of their block, as a BatchNorm would."""

    def mixed(ids: Any, mask: Any, places: Any = None) -> Any:
        found = scores(ids, mask, places)
        return found - 0.1 * found.mean(0)

    return mixed


def trimmed(scores: Scores) -> Scores:
    """Columns that are padding in all rows are cut off: shapes follow the longest row."""

    def mixed(ids: Any, mask: Any, places: Any = None) -> Any:
        width = int(mask.any(0).sum())
        return scores(ids[:, :width], mask[:, :width], places)

    return mixed


def another_way(scores: Scores) -> Scores:
    """Where no row has padding, another kernel is taken, which rounds in another way."""

    def mixed(ids: Any, mask: Any, places: Any = None) -> Any:
        found = scores(ids, mask, places)
        return found * (1.0 + 2.0**-20) if bool(mask.all()) else found

    return mixed


def remembered(scores: Scores) -> Scores:
    """What rows were like is kept for the next block."""
    kept: list[Any] = []

    def mixed(ids: Any, mask: Any, places: Any = None) -> Any:
        kept.append(ids.float().mean() * 2.0**-10)
        return scores(ids, mask, places) * (1.0 + sum(kept[-2:-1]))

    return mixed


@pytest.mark.parametrize("mixing", [mean_of_others, trimmed, another_way, remembered])
def test_a_module_that_lets_rows_see_each_other_is_refused(base: Path, mixing: Callable[..., Any]) -> None:
    learner: LanguageLearner = made.learner(base, context=CONTEXT, classes=3)
    learner.module.scores = mixing(learner.module.scores)
    with pytest.raises(InputError):
        LanguagePrivate(learner, made.rows(6, classes=3, longest=CONTEXT))


def test_what_a_claim_cannot_cover_is_refused_in_the_plan() -> None:
    data = DataSection(schema="0" * 64, features=(), label="text")
    language = LanguageSection(base="0" * 64, tokenizer="0" * 64, overlong="truncate")
    model = ModelSection(kind="causal-lm")
    for method in ("lora", "lora-alternating", "full"):
        rank = 0 if method == "full" else 4
        check_language(data, model, replaced(language, method=method, rank=rank), private=True)
    for change, sentence in ({"packing": True}, "packing"), ({"overlong": "refuse"}, "too long"):
        check_language(data, model, replaced(language, **change), private=False)
        with pytest.raises(PlanError, match=sentence):
            check_language(data, model, replaced(language, **change), private=True)


def replaced(language: LanguageSection, **changes: Any) -> LanguageSection:
    return msgspec.structs.replace(language, **changes)
