# ruff: noqa: E402 - what follows needs torch, which may be absent
"""Sums of clipped gradients: what one row can do to them, in exact arithmetic where that is claimed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")


from tests.learning.torch.modules import CASES
from tests.learning.torch.reference import moved, rows_for
from torch import nn

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.private import integer_sum
from cloister.learning.torch import TorchPrivate
from cloister.learning.torch.bookkeeping import _marks
from cloister.learning.torch.packing import packed
from cloister.learning.torch.terms import CANCELLATION, Outer
from cloister.privacy.mechanisms import IntegerGrid


def model(name: str) -> tuple[TorchPrivate, np.ndarray, np.ndarray, np.ndarray]:
    case = CASES[name]
    private = TorchPrivate(case.factory, classes=case.classes, shape=case.shape)
    X, y = rows_for(case.shape, case.classes, 70, vocabulary=case.vocabulary)
    return private, moved(private), X, y


MANY = ("linear, two scores", "conv2d", "group norm", "transformer", "sequence, Gram", "folded")


@pytest.mark.parametrize("name", MANY)
def test_a_row_gives_the_same_bits_in_any_company(name: str) -> None:
    private, params, X, y = model(name)
    alone = [next(private.clipped_sums(params, X[i : i + 1], y[i : i + 1], 0.5, 1)) for i in range(70)]
    together = list(private.clipped_sums(params, X, y, 0.5, 1))
    turned = list(private.clipped_sums(params, X[::-1], y[::-1], 0.5, 1))[::-1]
    for a, b, c in zip(alone, together, turned, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()


@pytest.mark.parametrize("name", MANY)
def test_a_groups_sum_has_the_same_bits_whatever_lies_before_it(name: str) -> None:
    private, params, X, y = model(name)
    for size in (3, 30, 67):
        (alone,) = private.clipped_sums(params, X[:size], y[:size], 0.5, size)
        for before in (1, 2, 40):
            rows = np.concatenate([X[-before:], X[:size]]), np.concatenate([y[-before:], y[:size]])
            *_, found = private.group_sums(params, *rows, [0, before, before + size], 0.5)
            assert found.tobytes() == alone.tobytes()


@pytest.mark.parametrize("name", [name for name in MANY if not CASES[name].vocabulary])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, -1e30, 1e300])
def test_a_row_out_of_bounds_contributes_at_most_the_clip_and_stops_nobody(name: str, value: float) -> None:
    private, params, X, y = model(name)
    clean = list(private.clipped_sums(params, X, y, 0.5, 1))
    X[5] = value
    found = list(private.clipped_sums(params, X, y, 0.5, 1))
    assert np.isfinite(found[5]).all()
    assert np.linalg.norm(found[5]) <= 0.5
    assert all(
        a.tobytes() == b.tobytes() for i, (a, b) in enumerate(zip(clean, found, strict=True)) if i != 5
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_undefined_row_counts_for_nothing(value: float) -> None:
    private, params, X, y = model("conv2d")
    X[0] = value
    (found,) = private.clipped_sums(params, X[:1], y[:1], 0.5, 1)
    assert not found.any()


@pytest.mark.parametrize("name", CASES)
def test_float_bound_covers_the_error_of_a_sum(name: str) -> None:
    """The exact sum of the contributions is taken in rational arithmetic, on a few coordinates."""
    private, params, X, y = model(name)
    X, y = np.tile(X, (2, *[1] * (X.ndim - 1)))[:100], np.tile(y, 2)[:100]
    clip = 0.3
    each = np.array(list(private.clipped_sums(params, X, y, clip, 1)))
    (found,) = private.clipped_sums(params, X, y, clip, 100)
    chosen = np.argsort(-np.abs(found))[:20]
    errors = [float(sum(map(Fraction, each[:, i].tolist())) - Fraction(float(found[i]))) for i in chosen]
    bound = private.float_bound(100)
    assert math.sqrt(sum(error * error for error in errors)) <= bound * clip
    assert bound < 0.002


def test_bounds_stay_small_for_the_microbatches_a_plan_allows() -> None:
    for name in MANY:
        private, *_ = model(name)
        assert private.float_bound(64) < 1e-5
        assert private.float_bound(1 << 16) < 0.002
        assert private.float_bound(1) <= private.float_bound(64)


def test_norms_hold_where_positions_cancel() -> None:
    """Gradients that are the small difference of large terms: the Gram norm alone would be far too low."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(6, 1, 1, 40, generator=generator).repeat(1, 1, 2, 1)
    b = torch.randn(6, 1, 1, 30, generator=generator)
    b = torch.cat([b, -b], dim=2)
    b[:, :, 1] *= 1.0 + 2.0 ** -torch.arange(2.0, 24.0, 4.0)[:, None, None]
    term = Outer(a, b)
    exact = torch.einsum("ngti,ngtj->nij", a.double(), b.double()).norm(dim=(1, 2))
    norms = term.squares().sqrt()
    assert (norms >= exact).all()
    lengths = (a.double().norm(dim=3) * b.double().norm(dim=3)).sum((1, 2))
    assert (lengths / norms <= CANCELLATION * (1 + 1e-9)).all()
    assert not bool((lengths / exact <= CANCELLATION).all()), "the case is too tame to show anything"
    assert norms[0] == pytest.approx(float(exact[0]), rel=1e-6)


def test_integers_change_by_the_grids_sensitivity_at_most() -> None:
    private, params, X, y = model("conv2d")
    grid = IntegerGrid.fit(32, batch=70, noise=1.0)
    limit = grid.sensitivity(private.size, private.float_bound(64))

    def integers(rows: np.ndarray) -> np.ndarray:
        return integer_sum(
            private,
            params,
            rows,
            y,
            clip=0.4,
            grid=grid,
            rate=1.0,
            microbatch=64,
            random=StreamRandom(bytes(32)),
        )

    whole = integers(X)
    for row in (0, 30, 69):
        without = X.copy()
        without[row] = np.nan  # contributes nothing: the neighbour by zeroing
        change = np.linalg.norm((whole - integers(without)).astype(float))
        assert grid.clip_units * 0.99 < change <= limit


def test_rows_and_parameters_may_be_read_only() -> None:
    private, params, X, y = model("conv1d")
    for array in (params, X, y):
        array.flags.writeable = False
    list(private.clipped_sums(params, X, y, 1.0, 7))
    private.predict(params, X)
    private.gradient(params, X, y)


def test_sums_of_one_module_are_not_interleaved() -> None:
    private, params, X, y = model("linear")
    sums = private.clipped_sums(params, X, y, 1.0, 40)
    next(sums)
    private.predict(params, X)
    with pytest.raises(InputError, match="used for something else"):
        next(sums)


def test_no_rows_no_sums() -> None:
    private, params, X, y = model("linear")
    assert list(private.clipped_sums(params, X[:0], y[:0], 1.0, 4)) == []
    assert len(list(private.group_sums(params, X, y, [0, 0, 30, 30, 70], 1.0))) == 2


def test_groups_are_cut_from_their_own_first_row() -> None:
    blocks = list(packed([0, 2, 2, 5, 15, 16], 6))
    assert [[(p.begin, p.end, p.last) for p in block] for block in blocks] == [
        [(0, 2, True), (2, 5, True)],
        [(5, 11, False)],
        [(11, 15, True), (15, 16, True)],
    ]


def test_what_does_not_fit_is_refused() -> None:
    private, params, X, y = model("linear, two scores")
    for arguments in (
        (params[1:], X, y, 1.0, 4),
        (params, X[:, 1:], y, 1.0, 4),
        (params, X, y[1:], 1.0, 4),
        (params, X, y, 0.0, 4),
        (params, X, y, math.nan, 4),
        (params, X, y, 1.0, 0),
    ):
        with pytest.raises(InputError):
            list(private.clipped_sums(*arguments))
    for starts in ([], [1, 70], [0, 69]):
        with pytest.raises(InputError):
            list(private.group_sums(params, X, y, starts, 1.0))
    three, params, X, y = model("conv2d")
    with pytest.raises(InputError, match="not one of the classes"):
        list(three.clipped_sums(params, X, y + 1, 1.0, 4))


class Placed(nn.Module):
    """What a row gives depends, in its last bits, on where it stands: as at the edges of some kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        edge = 1.0 + 2.0**-20 * (torch.arange(len(rows)) % 5 == 3).float()
        return self.out(torch.tanh(self.inner(rows) * edge[:, None]))


def test_where_a_place_matters_rows_go_alone() -> None:
    private = TorchPrivate(Placed, classes=2, shape=4)
    assert private._form.sizes() == (1,)
    X, y = rows_for((4,), 2, 9)
    params = moved(private)
    together = list(private.clipped_sums(params, X, y, 0.1, 1))
    for i, one in enumerate(together):
        (alone,) = private.clipped_sums(params, X[i : i + 1], y[i : i + 1], 0.1, 1)
        assert alone.tobytes() == one.tobytes()
    (whole,) = private.clipped_sums(params, X, y, 0.1, 9)
    np.testing.assert_allclose(whole, sum(together), atol=1e-12)


def test_marks_tell_one_bit() -> None:
    numbers = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    changed = numbers.clone()
    changed[1, 17] = torch.nextafter(changed[1, 17], torch.tensor(9.0))
    changed[2, 5], numbers[2, 5] = 0.0, -0.0
    same = _marks(numbers) == _marks(changed)
    assert same.tolist() == [True, False, True]


def test_groups_of_any_size_cost_no_memory_of_their_own() -> None:
    """Blocks are as many rows as the module's size allows, whatever is asked for."""
    private, params, X, y = model("conv2d")
    seen: list[int] = []
    private.module.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    many = np.tile(X, (20, 1, 1, 1)), np.tile(y, 20)
    list(private.clipped_sums(params, *many, 1.0, 1400))
    assert max(seen) <= 256
