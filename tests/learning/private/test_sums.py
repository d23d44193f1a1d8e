from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.learning.private.worlds import (
    Array,
    clipped,
    make_model,
    make_params,
    make_rows,
    row_gradients,
    stream,
)

from cloister.errors import InputError
from cloister.learning.private import NumpyPrivate, PrivateModel, RowSums, integer_sum, poisson_rows
from cloister.privacy.mechanisms import IntegerGrid

GRID = IntegerGrid(32, 1 << 16)


@dataclass
class Recorder:
    """A private model that remembers which rows came together; a row's first feature is its position."""

    groups: list[list[int]] = field(default_factory=list)
    size: int = 2
    penalised: Array = field(default_factory=lambda: np.array([True, False]))

    def clipped_sums(
        self, params: Array, X: Array, y: Array, clip: float, microbatch: int
    ) -> Iterator[Array]:
        assert len(y) <= microbatch
        self.groups.append([int(position) for position in X[:, 0]])
        yield np.array([0.4 * clip / GRID.clip_units, len(y) * clip])

    def float_bound(self, microbatch: int) -> float:
        return 0.0


@dataclass
class Plain:
    """`NumpyPrivate` behind another name, so that it takes the way of all other models."""

    inner: NumpyPrivate

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def penalised(self) -> Array:
        return self.inner.penalised

    def clipped_sums(
        self, params: Array, X: Array, y: Array, clip: float, microbatch: int
    ) -> Iterator[Array]:
        return self.inner.clipped_sums(params, X, y, clip, microbatch)

    def float_bound(self, microbatch: int) -> float:
        return self.inner.float_bound(microbatch)


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_microbatches_are_by_position_and_rounded_once_each(rate: float) -> None:
    X = np.arange(100.0)[:, None]
    recorder = Recorder()
    total = integer_sum(
        recorder,
        np.zeros(2),
        X,
        np.zeros(100),
        clip=0.5,
        grid=GRID,
        rate=rate,
        microbatch=7,
        random=stream(3),
    )
    chosen = poisson_rows(100, rate, stream(3)).tolist()
    expected = [[i for i in chosen if i // 7 == group] for group in range(15)]
    assert recorder.groups == [group for group in expected if group]
    # 0.4 of a unit for each microbatch is nothing, however many there are
    assert total.tolist() == [0, len(chosen) * GRID.clip_units]


def test_microbatches_of_several_sites_do_not_mix() -> None:
    recorder = Recorder()
    parts = [
        (np.arange(a, b, dtype=float)[:, None], np.zeros(b - a)) for a, b in ((0, 10), (10, 13), (13, 30))
    ]
    sums = RowSums(recorder, parts, rate=1.0, microbatch=8)
    sums.integers(np.zeros(2), clip=1.0, grid=GRID, random=stream())
    ends = [(group[0], group[-1]) for group in recorder.groups]
    assert ends == [(0, 7), (8, 9), (10, 12), (13, 20), (21, 28), (29, 29)]


@pytest.mark.parametrize("name", ["logistic", "tanh", "wide"])
@pytest.mark.parametrize("microbatch", [1, 13, 1000])
def test_is_the_rounded_clipped_sum(name: str, microbatch: int) -> None:
    model = make_model(name)
    params, (X, y), clip = make_params(model), make_rows(model, 200), 0.3
    private: PrivateModel = NumpyPrivate(model)
    options = {"clip": clip, "grid": GRID, "rate": 0.4, "microbatch": microbatch}
    found = integer_sum(private, params, X, y, random=stream(5), **options)  # type: ignore[arg-type]
    chosen = poisson_rows(200, 0.4, stream(5))
    each = clipped(row_gradients(model, params, X[chosen], y[chosen]), clip) * (GRID.clip_units / clip)
    total = np.zeros(model.size, dtype=np.int64)
    for group in range(-(-200 // microbatch)):
        total += np.rint(each[chosen // microbatch == group].sum(axis=0)).astype(np.int64)
    assert np.array_equal(found, total)
    same = integer_sum(Plain(NumpyPrivate(model)), params, X, y, random=stream(5), **options)  # type: ignore[arg-type]
    assert np.array_equal(found, same)


@pytest.mark.parametrize("name", ["logistic", "relu", "tanh", "wide"])
def test_a_row_more_in_the_sample_changes_one_microbatch(name: str) -> None:
    """With it or without, on the same coins: all other microbatches round to the very same integers."""
    model = make_model(name)
    private, clip = NumpyPrivate(model), 0.05
    rows = RowSums(private, [make_rows(model, 400)], rate=1.0, microbatch=16)
    sensitivity = GRID.sensitivity(model.size, private.float_bound(16))
    rng = np.random.default_rng(1)

    class Coins:
        def __init__(self, kept: Array) -> None:
            self.kept = kept

        def words(self, count: int) -> Array:
            bytes_ = np.zeros(count * 8, dtype=np.uint8)
            bytes_[: len(self.kept)] = np.where(self.kept, 0, 255)
            return bytes_.view(np.uint64)

    rows._rate = 0.5
    for trial in range(30):
        params = make_params(model, trial)
        kept = rng.random(400) < 0.5
        row = int(rng.integers(400))
        kept[row] = True
        run = [
            rows.integers(params, clip=clip, grid=GRID, random=Coins(coins))  # type: ignore[arg-type]
            for coins in (kept, kept & (np.arange(400) != row))
        ]
        alone = np.flatnonzero(kept & (np.arange(400) // 16 == row // 16))
        [with_it] = private.clipped_sums(params, rows._X[alone], rows._y[alone], clip, 16)
        others = alone[alone != row]
        without = np.zeros(model.size)
        for vector in private.clipped_sums(params, rows._X[others], rows._y[others], clip, 16):
            without = vector
        moved = GRID.round(with_it, clip) - GRID.round(without, clip)
        assert np.array_equal(run[0] - run[1], moved)
        assert np.linalg.norm(moved) <= sensitivity


def test_rows_are_closed_for_writing_and_kept_between_steps() -> None:
    model = make_model("logistic")
    X, y = make_rows(model, 30)
    sums = RowSums(NumpyPrivate(model), [(X, y)], rate=1.0, microbatch=4)
    assert not sums._X.flags.writeable
    assert X.flags.writeable  # the caller's own array is left as it was
    params = make_params(model)
    first = sums.integers(params, clip=1.0, grid=GRID, random=stream())
    assert np.array_equal(first, sums.integers(params, clip=1.0, grid=GRID, random=stream()))


def test_a_step_without_rows_is_zero() -> None:
    model = make_model("logistic")
    X, y = make_rows(model, 3)
    total = integer_sum(
        NumpyPrivate(model),
        make_params(model),
        X,
        y,
        clip=1.0,
        grid=GRID,
        rate=1e-12,
        microbatch=4,
        random=stream(),
    )
    assert total.dtype == np.int64
    assert not total.any()


def test_what_does_not_fit_is_refused() -> None:
    private = NumpyPrivate(make_model("logistic"))
    X, y = make_rows(private.model, 5)
    for parts, rate, microbatch in (([], 0.5, 4), ([(X, y)], 0.0, 4), ([(X, y)], 1.5, 4), ([(X, y)], 0.5, 0)):
        with pytest.raises(InputError, match="private sums need"):
            RowSums(private, parts, rate=rate, microbatch=microbatch)
    with pytest.raises(InputError, match="differ in length"):
        RowSums(private, [(X, y[:-1])], rate=0.5, microbatch=4)
    with pytest.raises(InputError, match="features"):
        RowSums(private, [(X[:, 1:], y)], rate=0.5, microbatch=4)
    sums = RowSums(private, [(X, y)], rate=0.5, microbatch=4)
    with pytest.raises(InputError, match="parameters"):
        sums.integers(np.zeros(3), clip=1.0, grid=GRID, random=stream())
    with pytest.raises(InputError, match="clip"):
        sums.integers(np.zeros(7), clip=0.0, grid=GRID, random=stream())


def test_a_microbatch_whose_sum_float64_cannot_hold_is_refused() -> None:
    rows = 1 << 22
    recorder = Recorder()
    X = np.broadcast_to(np.zeros((1, 1)), (rows, 1))
    sums = RowSums(recorder, [(X, np.zeros(rows))], rate=1e-9, microbatch=rows)
    with pytest.raises(InputError, match="would not fit"):
        sums.integers(np.zeros(2), clip=1.0, grid=IntegerGrid(32, 1 << 30), random=stream())
