"""Gradients of single rows of a language model: whose they are, how long they are, what they depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.learning.torch.language import bases as made  # noqa: E402
from tests.learning.torch.language.references import clipped, moved, row_gradients  # noqa: E402

from cloister.crypto import StreamRandom  # noqa: E402
from cloister.errors import InputError  # noqa: E402
from cloister.learning.private import PrivateSettings, RowSums, local_steps, simulate  # noqa: E402
from cloister.learning.private.ladder import tokens_float_bound  # noqa: E402
from cloister.learning.sections import TrainingSection  # noqa: E402
from cloister.learning.torch.language.private import LanguagePrivate  # noqa: E402
from cloister.learning.torch.language.rows import Length  # noqa: E402
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid  # noqa: E402

Bases = dict[str, Path]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "classes": ("llama", {"classes": 3}),
    "two classes, encoder": ("bert", {"classes": 2}),
    "next tokens": ("llama", {}),
    "conv1d": ("gpt2", {}),
    "alternating": ("untied", {"method": "lora-alternating"}),
    "alternating, classes": ("llama", {"method": "lora-alternating", "classes": 3}),
    "full": ("untied", {"method": "full"}),
    "full, tied": ("llama", {"method": "full", "classes": 3}),
    "full, conv1d": ("gpt2", {"method": "full", "classes": 3}),
    "full, encoder": ("bert", {"method": "full", "classes": 3}),
    "checkpointing": ("llama", {"checkpointing": True}),
    "bfloat16": ("llama", {"classes": 3, "precision": "bfloat16"}),
}
FAST = ("classes", "two classes, encoder", "next tokens", "full", "full, conv1d")
CONTEXT = 32
GRID = IntegerGrid(32, 1 << 20)


def private_for(
    bases: Bases, name: str, count: int = 9, window: int = 0
) -> tuple[LanguagePrivate, np.ndarray, Any, Any]:
    """Return the model, its whole vector, the learner and the rows."""
    base, options = CASES[name]
    learner = made.learner(bases[base], context=CONTEXT, **options)
    examples = made.rows(count, classes=options.get("classes", 0), longest=CONTEXT)
    private = LanguagePrivate(learner, examples, learner.windows[window])
    params = moved(learner)
    private.hold(params)
    return private, params, learner, examples


def part(private: LanguagePrivate, params: np.ndarray) -> np.ndarray:
    return params[private.window[0] : private.window[1]].astype(np.float64)


def cases(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", cases(*CASES))
def test_sums_are_those_of_autograd_row_by_row(bases: Bases, name: str) -> None:
    for window in range(2 if "alternating" in name else 1):
        private, params, learner, examples = private_for(bases, name, window=window)
        X, y = private.rows
        expected = row_gradients(learner, params, examples, private.window)
        norms = np.linalg.norm(expected, axis=1)
        assert norms.min() > 0
        assert private.size == expected.shape[1]
        tolerance = 0.03 if name == "bfloat16" else 3e-4
        for clip in (norms.min() / 2, float(np.median(norms)), norms.max() * 2):
            (ours,) = private.clipped_sums(part(private, params), X, y, clip, len(X))
            limit = tolerance * clip * len(X)
            np.testing.assert_allclose(ours, clipped(expected, clip).sum(0), rtol=0, atol=limit)
            each = np.array(list(private.clipped_sums(part(private, params), X, y, clip, 1)))
            assert (np.linalg.norm(each, axis=1) <= clip).all()
            np.testing.assert_allclose(each.sum(0), ours, rtol=0, atol=1e-9 * clip)
        assert np.array_equal(learner.vector.read(), params)


@pytest.mark.parametrize("name", cases("classes", "two classes, encoder", "next tokens", "bfloat16"))
def test_a_row_gives_the_same_bits_in_any_company(bases: Bases, name: str) -> None:
    private, params, _, _ = private_for(bases, name, count=40)
    held, y = part(private, params), np.zeros(40)
    rows = np.arange(40)
    together = np.array(list(private.clipped_sums(held, rows, y, 0.5, 1)))
    turned = np.array(list(private.clipped_sums(held, rows[::-1], y, 0.5, 1)))[::-1]
    assert together.tobytes() == turned.tobytes()
    whole = next(private.clipped_sums(held, rows, y, 0.5, 40))
    other = replace(private._examples, ids=(private._examples.ids + 1) % made.VOCABULARY)
    mixed = replace(other, ids=other.ids.copy())
    some = slice(mixed.starts[7], mixed.starts[8])
    mixed.ids[some] = private._examples.ids[some]
    strangers = LanguagePrivate(private._learner, mixed)
    strangers.hold(params)
    (seventh,) = strangers.clipped_sums(held, np.array([7]), y, 0.5, 1)
    assert seventh.tobytes() == together[7].tobytes()
    np.testing.assert_allclose(whole, together.sum(0), rtol=0, atol=1e-12)


def test_a_row_changes_the_sum_of_its_own_microbatch_alone(bases: Bases) -> None:
    private, params, _, _ = private_for(bases, "classes", count=30)
    held = part(private, params)

    def sums(gone: int | None) -> list[np.ndarray]:
        groups = [[row for row in range(at, at + 10) if row != gone] for at in (0, 10, 20)]
        return [next(private.clipped_sums(held, np.array(group), np.zeros(0), 0.5, 10)) for group in groups]

    whole = sums(None)
    integers = RowSums(private, [private.rows], rate=1.0, microbatch=10).integers(
        held, clip=0.5, grid=GRID, random=StreamRandom.from_seed(0, "coins")
    )
    np.testing.assert_array_equal(integers, sum(GRID.round(each, 0.5) for each in whole))
    for gone in (3, 17, 29):
        without = sums(gone)
        same = [a.tobytes() == b.tobytes() for a, b in zip(whole, without, strict=True)]
        assert same == [at != gone // 10 for at in range(3)]
        moved_by = sum(GRID.round(a, 0.5) - GRID.round(b, 0.5) for a, b in zip(whole, without, strict=True))
        sensitivity = GRID.sensitivity(private.size, private.float_bound(10))
        assert np.linalg.norm(moved_by) <= sensitivity


def test_a_step_of_a_study_is_one_of_gradient_descent(bases: Bases) -> None:
    """Sampling all, clipping nothing, no noise: sampling, rounding, ring and server add nothing of their own."""
    private, params, learner, examples = private_for(bases, "next tokens", count=6)
    training = TrainingSection(rounds=1, batch=6, local_steps=1, learning_rate=0.5)
    settings = PrivateSettings(
        training=training,
        rate=1.0,
        clip=64.0,
        grid=IntegerGrid(32, 1 << 27),
        microbatch=4,
        share_variance=0.0,
        present=1,
    )
    held = part(private, params)
    after = simulate(private, held, [private.rows], settings)
    expected = held - 0.5 * row_gradients(learner, params, examples, private.window).mean(0)
    np.testing.assert_allclose(after, expected, rtol=0, atol=2e-5)


def test_local_steps_add_noise_to_each_step(bases: Bases) -> None:
    private, params, _, _ = private_for(bases, "classes", count=6)
    options: dict[str, Any] = {
        "training": TrainingSection(rounds=1, batch=6, local_steps=3, learning_rate=0.1),
        "clip": 1.0,
        "grid": GRID,
        "rate": 1.0,
        "microbatch": 8,
        "divisor": 6.0,
        "random": StreamRandom.from_seed(1, "coins"),
    }
    held = part(private, params)
    quiet = local_steps(private, held, *private.rows, noise=DiscreteGaussian(1.0), **options)
    loud = local_steps(
        private, held, *private.rows, noise=DiscreteGaussian((GRID.clip_units * 0.5) ** 2), **options
    )
    deviation = 0.1 * 0.5 / 6 * np.sqrt(3)
    assert np.abs(quiet - held).max() > 0
    assert 0.8 * deviation < (loud - quiet).std() < 1.25 * deviation


def test_the_window_moves_and_nothing_else(bases: Bases) -> None:
    private, params, learner, _ = private_for(bases, "alternating", window=1)
    start, stop = private.window
    assert (start, private.size) == (0, stop)
    held, (X, y) = part(private, params), private.rows
    (before,) = private.clipped_sums(held, X, y, 1e6, 99)
    changed = params.copy()
    changed[stop:] *= 0.0  # B: then no gradient of A is left
    private.hold(changed)
    (after,) = private.clipped_sums(held, X, y, 1e6, 99)
    assert before.any()
    assert not after.any()
    private.hold(params)
    again = LanguagePrivate(learner, private._examples, learner.windows[0])
    again.hold(params)
    list(again.clipped_sums(part(again, params), X, y, 1e6, 99))
    (back,) = private.clipped_sums(held, X, y, 1e6, 99)
    assert back.tobytes() == before.tobytes()
    assert private.penalised.all()


def test_a_row_of_which_nothing_is_learnt_counts_for_nothing(bases: Bases) -> None:
    private, params, learner, examples = private_for(bases, "next tokens", count=4)
    silent = replace(examples, counted=examples.counted.copy())
    silent.counted[examples.starts[1] : examples.starts[2]] = False
    silent.counted[examples.starts[2]] = True  # of a first token nothing stands before
    starts = np.append(silent.starts, silent.starts[-1])  # and a fifth row has no token at all
    silent = replace(silent, starts=starts, labels=np.zeros(5))
    other = LanguagePrivate(learner, silent)
    other.hold(params)
    held = part(private, params)
    ours = list(private.clipped_sums(held, np.arange(4), np.zeros(4), 1.0, 1))
    found = list(other.clipped_sums(held, np.arange(5), np.zeros(5), 1.0, 1))
    assert not found[1].any()
    assert not found[4].any()
    assert [a.tobytes() == b.tobytes() for a, b in zip(ours, found[:4], strict=True)] == [1, 0, 1, 1]


@pytest.mark.parametrize("encoder", [False, True])
def test_a_rows_length_follows_from_the_row_alone(encoder: bool) -> None:
    for context in (8, 40, 64, 300):
        seen: dict[Length, list[int]] = {}
        for tokens in range(1, context + 1):
            length = Length.of(tokens, context, encoder=encoder)
            assert length.least <= tokens <= length.most <= length.tokens <= context
            seen.setdefault(length, []).append(tokens)
        for length, rows in seen.items():
            assert rows == list(range(length.least, length.most + 1))
            masked = {tokens < length.tokens for tokens in rows}
            assert not encoder or len(masked) == 1  # either all of its rows have padding or none has


def test_its_float_error_is_that_of_the_ladder(bases: Bases) -> None:
    private, _, _, _ = private_for(bases, "classes")
    assert private.float_bound(64) == tokens_float_bound(CONTEXT, 64)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ids": 70_001}, "tokens beyond"),
        ({"ids": -1}, "tokens beyond"),
        ({"labels": 3.0}, "not one of the classes"),
        ({"labels": 0.5}, "not one of the classes"),
        ({"labels": np.nan}, "not one of the classes"),
        ({"places": True}, "packed rows"),
        ({"pad": 5000}, "padding token"),
        ({"long": True}, "more than the 32 tokens"),
        ({"none": True}, "no rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_a_step(
    bases: Bases, change: dict[str, Any], sentence: str
) -> None:
    learner = made.learner(bases["llama"], context=CONTEXT, classes=3)
    examples = made.rows(5, classes=3, longest=CONTEXT)
    if "ids" in change:
        examples.ids[11] = change["ids"]
    if "labels" in change:
        examples.labels[2] = change["labels"]
    if "places" in change:
        examples = replace(examples, places=np.zeros(len(examples.ids), np.int32))
    if "pad" in change:
        examples = replace(examples, pad=5000)
    if "long" in change:
        examples = made.rows(5, classes=3, longest=CONTEXT + 20, seed=1)
    if "none" in change:
        examples = examples.select(np.zeros(0, np.int64))
    with pytest.raises(InputError, match=sentence) as caught:
        LanguagePrivate(learner, examples)
    assert "70001" not in str(caught.value)


def test_a_base_in_parts_is_refused_and_not_waited_for(bases: Bases) -> None:
    learner: Any = made.learner(bases["llama"], context=CONTEXT, classes=3)
    learner.sharded = True
    with pytest.raises(InputError, match="in one process"):
        LanguagePrivate(learner, made.rows(5, classes=3))


def test_wrong_numbers_are_refused(bases: Bases) -> None:
    private, params, _, _ = private_for(bases, "classes")
    held = part(private, params)
    for X in (np.array([9]), np.array([-1]), np.zeros((2, 2), np.int64)):
        with pytest.raises(InputError, match="no rows of these numbers"):
            list(private.clipped_sums(held, X, np.zeros(2), 1.0, 4))
    for clip, microbatch in ((0.0, 4), (np.nan, 4), (1.0, 0)):
        with pytest.raises(InputError):
            list(private.clipped_sums(held, np.arange(2), np.zeros(2), clip, microbatch))
    with pytest.raises(InputError, match="parameters"):
        list(private.clipped_sums(held[1:], np.arange(2), np.zeros(2), 1.0, 4))
