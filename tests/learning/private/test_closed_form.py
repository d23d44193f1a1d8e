from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learning.private.worlds import (
    SECTIONS,
    Array,
    clipped,
    make_model,
    make_params,
    make_rows,
    row_gradients,
)

from cloister.errors import InputError
from cloister.learning import LogisticHead, Model, SoftmaxHead, SquaredHead
from cloister.learning.private import NumpyPrivate, blocks, tiles
from cloister.learning.private import closed_form as module


def sums(model: Model, params: Array, X: Array, y: Array, clip: float, microbatch: int) -> list[Array]:
    return list(NumpyPrivate(model).clipped_sums(params, X, y, clip, microbatch))


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("clip", [0.05, 0.7, 1e6])
@pytest.mark.parametrize("count", [1, 23, 24, 130])
def test_agrees_with_one_gradient_for_each_row(name: str, clip: float, count: int) -> None:
    model = make_model(name)
    params, (X, y) = make_params(model), make_rows(model, count)
    expected = clipped(row_gradients(model, params, X, y), clip)
    for microbatch in (1, 10, count, 1000):
        found = sums(model, params, X, y, clip, microbatch)
        assert len(found) == -(-count // microbatch)
        for at, one in enumerate(found):
            wanted = expected[at * microbatch : (at + 1) * microbatch].sum(axis=0)
            np.testing.assert_allclose(one, wanted, rtol=1e-10, atol=1e-12 * clip * min(count, 100))


@given(
    seed=st.integers(0, 2**20),
    hidden=st.lists(st.integers(1, 6), max_size=2),
    features=st.integers(1, 5),
    activation=st.sampled_from(["relu", "tanh"]),
    head=st.sampled_from([SquaredHead(), LogisticHead(), SoftmaxHead(3)]),
    scale=st.sampled_from([1e-6, 1.0, 100.0]),
    count=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_agrees_for_any_network(seed, hidden, features, activation, head, scale, count) -> None:  # type: ignore[no-untyped-def]
    model = Model((features, *hidden, head.outputs), head, activation)
    params, (X, y) = make_params(model, seed), make_rows(model, count, seed, scale)
    gradients = row_gradients(model, params, X, y)
    clip = float(np.median(np.linalg.norm(gradients, axis=1))) + 1e-9
    [found] = sums(model, params, X, y, clip, count)
    np.testing.assert_allclose(
        found, clipped(gradients, clip).sum(axis=0), rtol=1e-8, atol=1e-10 * clip * count
    )


@pytest.mark.parametrize("name", SECTIONS)
def test_agrees_with_torch_func(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch.func import grad, vmap

    model, clip = make_model(name), 0.3
    params, (X, y) = make_params(model), make_rows(model, 40)

    def loss(flat, x, label):  # type: ignore[no-untyped-def]
        start, layers = 0, list(zip(model.widths[:-1], model.widths[1:], strict=True))
        for at, (inputs, outputs) in enumerate(layers):
            middle = start + inputs * outputs
            x = x @ flat[start:middle].reshape(inputs, outputs) + flat[middle : middle + outputs]
            start = middle + outputs
            if at < len(layers) - 1:
                x = torch.relu(x) if model.activation == "relu" else torch.tanh(x)
        if isinstance(model.head, SquaredHead):
            return 0.5 * (x[0] - label) ** 2
        if isinstance(model.head, LogisticHead):
            return torch.nn.functional.binary_cross_entropy_with_logits(x[0], label)
        return -(torch.log_softmax(x, 0) * (torch.arange(len(x)) == label)).sum()

    tensors = [torch.tensor(array, dtype=torch.float64) for array in (params, X, y)]
    each = vmap(grad(loss), in_dims=(None, 0, 0))(*tensors).numpy()
    [found] = sums(model, params, X, y, clip, 40)
    np.testing.assert_allclose(found, clipped(each, clip).sum(axis=0), rtol=1e-9, atol=1e-12)


# --- no contribution exceeds the clip, in exact arithmetic


def contributions(model: Model, params: Array, X: Array, y: Array, ceiling: float) -> list[Fraction]:
    """Exact squared norms of a (x) b and b over the layers, on the vectors that the block computed."""
    rows = module.PreparedRows(NumpyPrivate(model), X, y)
    block = rows._block
    block.clip(blocks.layer_views(model, params), X, y, rows._squares, np.arange(len(y)), ceiling)
    found = []
    for i in range(len(y)):
        total = Fraction(0)
        for a, b in zip(block.inputs, block.residuals, strict=True):
            below = sum((Fraction(v) ** 2 for v in a[i].tolist()), Fraction(1))
            total += below * sum((Fraction(v) ** 2 for v in b[i].tolist()), Fraction(0))
        found.append(total)
    return found


@pytest.mark.parametrize("name", ["linear", "logistic", "softmax", "relu", "deep"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e5])
@pytest.mark.parametrize("clip", [2.0**-64, 0.1, 3.0])
def test_no_contribution_exceeds_the_clip(name: str, scale: float, clip: float) -> None:
    model = make_model(name, 9)
    params, (X, y) = make_params(model), make_rows(model, 40, scale=scale)
    exact = contributions(model, params, X, y, blocks.deflated(model, clip))
    assert max(exact) <= Fraction(clip) ** 2
    assert max(exact) == 0 or max(exact) > Fraction(clip * 0.99) ** 2 or clip > 1


def test_without_the_deflation_some_contribution_exceeds_the_clip() -> None:
    model = make_model("logistic", 9)
    params, (X, y) = make_params(model), make_rows(model, 400, scale=50.0)
    assert max(contributions(model, params, X, y, 0.1)) > Fraction(0.1) ** 2


def test_tiny_residuals_of_large_inputs_are_not_lost_to_underflow() -> None:
    model = Model((2, 1), SquaredHead())
    X = np.array([[1e60, -1e60], [1e100, 1e100], [1e160, 0.0], [1e3, 1e3], [1e150, 0.0]])
    for tiny in (1e-150, 1e-160, 1.5e-162, 1e-164, 1e-170, 1e-300):
        y = np.full(5, tiny)
        exact = contributions(model, np.zeros(3), X, y, blocks.deflated(model, 2.0**-64))
        assert max(exact) <= Fraction(2.0**-64) ** 2


# --- sums


@pytest.mark.parametrize("name", ["linear", "softmax", "tanh"])
@pytest.mark.parametrize("microbatch", [1, 17, 3000])
def test_a_sums_error_is_within_half_the_float_bound(name: str, microbatch: int) -> None:
    model, clip = make_model(name, 3), 0.25
    private = NumpyPrivate(model)
    private.__dict__["block_rows"] = 48  # many blocks in a microbatch
    params, (X, y) = make_params(model), make_rows(model, microbatch, scale=5.0)
    if name == "linear":
        y[::2] += 1e3  # contributions that nearly cancel
        y[1::2] -= 1e3
    rows = module.PreparedRows(private, X, y)
    exact = [Fraction(0)] * model.size
    for at in range(0, microbatch, 48):
        some = np.arange(at, min(at + 48, microbatch))
        rows._block.clip(
            blocks.layer_views(model, params), X, y, rows._squares, some, blocks.deflated(model, clip)
        )
        for i in range(len(some)):
            flat = []
            for a, b in zip(rows._block.inputs, rows._block.residuals, strict=True):
                row = [Fraction(v) for v in b[i].tolist()]
                flat += [Fraction(v) * w for v in a[i].tolist() for w in row] + row
            exact = [total + one for total, one in zip(exact, flat, strict=True)]
    [found] = private.clipped_sums(params, X, y, clip, microbatch)
    error = sum(((Fraction(v) - w) ** 2 for v, w in zip(found.tolist(), exact, strict=True)), Fraction(0))
    assert error <= (Fraction(private.float_bound(microbatch)) / 2 * Fraction(clip)) ** 2


def test_a_microbatch_of_many_rows_is_clipped_row_by_row() -> None:
    model = make_model("linear", 2)
    X, y = np.ones((5000, 2)), np.full(5000, -1e4)
    [found] = sums(model, np.zeros(3), X, y, 0.5, 5000)
    assert np.linalg.norm(found) == pytest.approx(5000 * 0.5, rel=1e-9)


def test_float_bound_is_small_and_grows_with_the_microbatch() -> None:
    private = NumpyPrivate(make_model("relu"))
    bounds = [private.float_bound(m) for m in (1, 64, 4096, 1 << 16, 1 << 20)]
    assert bounds == sorted(bounds)
    assert bounds[1] < 1e-11
    assert bounds[3] < 1e-6
    assert bounds[0] >= 2 * 2 * 2.0**-53  # the factor K / clip and the product with it, for both neighbours


# --- one row, one result


@pytest.mark.parametrize(
    "model",
    [
        *(make_model(name, 13) for name in SECTIONS),
        Model((64, 100, 2), SoftmaxHead(2)),
        Model((300, 10), SoftmaxHead(10)),
        Model((64, 1), LogisticHead()),
    ],
    ids=lambda model: "-".join(map(str, model.widths)),
)
def test_rows_do_not_change_each_others_last_bits(model: Model) -> None:
    """Taking a row away must not move the others: a rectifier could tip over in every one of them."""
    params, (X, y) = make_params(model), make_rows(model, 300)
    rows = module.PreparedRows(NumpyPrivate(model), X, y)
    layers, ceiling = blocks.layer_views(model, params), blocks.deflated(model, 0.4)

    def run(index: Array) -> list[Array]:
        rows._block.clip(layers, X, y, rows._squares, index, ceiling)
        return [array[: len(index)].copy() for array in (*rows._block.inputs, *rows._block.residuals)]

    everything = run(np.arange(300))
    rng = np.random.default_rng(0)
    for size in (1, 2, 23, 24, 25, 100, 299):
        index = np.sort(rng.choice(300, size, replace=False))
        for whole, some in zip(everything, run(index), strict=True):
            assert np.array_equal(whole[index], some)


def test_products_of_one_size_for_all_do_change_each_others_bits() -> None:
    """Why tiles are needed: a plain product rounds a row by where it stands."""
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(500, 64)), rng.normal(size=(64, 1))
    whole, moved = X @ W, 0
    for size in range(100, 400, 7):
        index = np.sort(rng.choice(500, size, replace=False))
        moved += int((X[index] @ W != whole[index]).sum())
    if not moved:
        pytest.skip("this machine's library rounds rows alike wherever they stand")


@pytest.mark.parametrize("outputs", [2, 10, 64, 100])
def test_the_check_of_slots_finds_a_kernel_that_treats_edges_differently(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles.slots_agree.cache_clear()
    honest = np.matmul

    def edgy(rows: Array, matrix: Array, **options: object) -> Array:
        result = honest(rows, matrix, **options)
        if rows.ndim == 3 and rows.shape[1] > 1:
            result[:, -1] = honest(rows[:, -1, ::-1], matrix[::-1])  # another order of summation
        return result

    monkeypatch.setattr(tiles.np, "matmul", edgy)
    assert not tiles.slots_agree(50, outputs, True)
    tiles.slots_agree.cache_clear()


def test_where_slots_disagree_rows_are_multiplied_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("wide")
    params, (X, y) = make_params(model), make_rows(model, 50)
    usual = sums(model, params, X, y, 0.2, 50)
    monkeypatch.setattr(tiles, "slots_agree", lambda *shape: False)
    np.testing.assert_allclose(sums(model, params, X, y, 0.2, 50)[0], usual[0], rtol=1e-10, atol=1e-13)


def test_a_group_is_summed_the_same_in_whatever_company() -> None:
    model = make_model("tanh")
    private = NumpyPrivate(model)
    private.__dict__["block_rows"] = 48
    params, (X, y) = make_params(model), make_rows(model, 300)
    rows = module.PreparedRows(private, X, y)
    index, last = np.arange(300), np.arange(180, 300)
    for first in (0, 1, 5, 47, 48, 60, 100):  # rows of a first group, which shift those of the others
        chosen = np.concatenate((index[:first], last))
        starts = np.array([0, first, first + 20, first + 120])
        found = list(rows.sums(params, chosen, starts, 0.3))
        alone = list(rows.sums(params, last, np.array([0, 20, 120]), 0.3))
        assert np.array_equal(found[-2], alone[0])
        assert np.array_equal(found[-1], alone[1])


# --- rows that cannot be computed


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200, 1e308])
def test_a_row_without_a_finite_gradient_counts_as_nothing(name: str, bad: float) -> None:
    model = make_model(name)
    params, (X, y) = make_params(model), make_rows(model, 60)
    X[31, 2] = bad
    [found] = sums(model, params, X, y, 0.5, 60)
    rest = np.delete(np.arange(60), 31)
    expected = clipped(row_gradients(model, params, X[rest], y[rest]), 0.5).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_rows_saturated_to_a_gradient_of_zero_are_fine() -> None:
    model = make_model("logistic", 1)
    [found] = sums(model, np.array([1e6, 0.0]), np.array([[1e3], [1e4]]), np.ones(2), 1.0, 2)
    assert np.array_equal(found, np.zeros(2))


# --- memory, shapes


def test_memory_does_not_grow_with_the_batch() -> None:
    model = make_model("wide", 20)
    private, params = NumpyPrivate(model), make_params(model)

    def peak(count: int) -> int:
        X, y = make_rows(model, count)
        rows = module.PreparedRows(private, X, y)
        index, starts = np.arange(count), np.append(np.arange(0, count, 500), count)
        tracemalloc.start()
        for _ in rows.sums(params, index, starts, 1.0):
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(5000)
    assert peak(80_000) < peak(5000) + 20_000


def test_what_does_not_fit_is_refused() -> None:
    model = make_model("softmax")
    private, params, (X, y) = NumpyPrivate(model), make_params(model), make_rows(model, 5)
    with pytest.raises(InputError, match="features"):
        private.clipped_sums(params, X[:, :-1], y, 1.0, 2)
    with pytest.raises(InputError, match="features"):
        private.clipped_sums(params, X, y[:-1], 1.0, 2)
    with pytest.raises(InputError, match="parameters"):
        private.clipped_sums(params[:-1], X, y, 1.0, 2)
    with pytest.raises(InputError, match="microbatch"):
        private.clipped_sums(params, X, y, 1.0, 0)
    for clip in (0.0, -1.0, np.nan, np.inf, 2.0**-65):
        with pytest.raises(InputError, match="clip"):
            private.clipped_sums(params, X, y, clip, 2)
    for label in (4.0, -1.0, 0.5, np.nan):
        y[2] = label
        with pytest.raises(InputError, match="classes 0 to 3"):
            private.clipped_sums(params, X, y, 1.0, 2)


def test_no_rows_give_no_sums() -> None:
    model = make_model("relu")
    assert sums(model, make_params(model), np.empty((0, 6)), np.empty(0), 1.0, 4) == []
