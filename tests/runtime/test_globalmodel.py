"""The global model against the pure algorithm, and the windows of adapters that take turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learning.plans import make_plan

from cloister.errors import InputError, ProtocolError
from cloister.learning import build_algorithm, mean_update
from cloister.runtime import globalmodel
from cloister.runtime.bodies import body_of, parts_of
from cloister.runtime.globalmodel import GlobalModel
from cloister.secagg import Encoding

SIZE = (1 << 16) + 77
"""More than a block."""
WEIGHTS = {"a": 1.0, "b": 0.25, "c": 0.7}
ENCODING = Encoding(32, 3, 1.0)
TERMS: Any = SimpleNamespace(
    weights=WEIGHTS, distributed_noise=None, encoding=ENCODING, encoding_of=lambda round: ENCODING
)


def plan_of(algorithm: str, rounds: int = 4, average_last: int = 2) -> Any:
    text = {"training.algorithm": f'"{algorithm}"', "training.rounds": str(rounds)}
    return make_plan(
        text | {"training.average_last": str(average_last), "training.server_learning_rate": "0.3"}
    )


def total_of(size: int, seed: int) -> Any:
    values = np.random.default_rng(seed).uniform(-2.0, 2.0, size)
    return np.rint(values * ENCODING.scale).astype(np.int64).astype(np.uint32)


def flat(model: GlobalModel) -> bytes:
    return b"".join(parts_of(body_of(model.snapshot())))


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_other_models_move_by_the_bits_of_the_whole_formula(algorithm: str) -> None:
    plan, start = plan_of(algorithm), np.random.default_rng(0).normal(size=SIZE)
    model, formula = GlobalModel(plan, start, None), build_algorithm(plan.training)
    state = formula.start(start)
    for round in range(4):
        total, names = total_of(SIZE, round), ["a", "c"]
        before = model.params
        mean = mean_update(ENCODING.decode_sum(total, 2), [WEIGHTS[name] for name in names])
        kept = before.copy()
        state = formula.step(state, mean)
        model.apply(total, names, TERMS)
        assert model.params.tobytes() == state.params.tobytes()
        assert before.tobytes() == kept.tobytes()
        arrays = [state.params, state.tail, state.first, state.second]
        old = globalmodel._Snapshot(round + 1, 0.0, [memoryview(each.tobytes()) for each in arrays])
        assert flat(model) == msgspec.msgpack.encode(old)  # who holds an older version reads it
    assert model.released().tobytes() == formula.final(state).tobytes()


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_a_float32_model_is_rounded_once_a_step_and_moves_in_place(algorithm: str) -> None:
    plan = plan_of(algorithm, average_last=0)
    start = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    model, formula = GlobalModel(plan, start, None, spend=True), build_algorithm(plan.training)
    seen = model.params
    wide = formula.start(start.astype(np.float64))
    mean = mean_update(ENCODING.decode_sum(total_of(SIZE, 5), 3), WEIGHTS.values())
    model.apply(total_of(SIZE, 5), list(WEIGHTS), TERMS)
    expected = formula.step(wide, mean).params.astype(np.float32)
    if algorithm == "fedadam":  # its moments start rounded
        np.testing.assert_allclose(model.params, expected, rtol=1e-6, atol=1e-6)
    else:
        assert model.params.tobytes() == expected.tobytes()
    assert np.shares_memory(seen, model.params)
    assert np.shares_memory(seen, start)
    with pytest.raises(ValueError, match="read-only"):
        seen[0] = 0.0


def test_what_a_plan_does_not_use_is_not_held() -> None:
    start = np.zeros(9, np.float32)
    model = GlobalModel(plan_of("fedavg", average_last=0), start, None)
    assert len(flat(model)) < 2 * start.nbytes + 64
    moments = GlobalModel(plan_of("fedadam", average_last=0), start, None)
    assert len(flat(moments)) > 3 * start.nbytes


@given(
    lengths=st.tuples(*[st.integers(1, 40)] * 3),
    algorithm=st.sampled_from(["fedavg", "fedadam"]),
    seed=st.integers(0, 1000),
    average_last=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_round_moves_its_window_alone_and_moments_too(
    lengths: tuple[int, int, int], algorithm: str, seed: int, average_last: int
) -> None:
    a, head, b = lengths
    size, windows = a + head + b, ((a, a + head + b), (0, a + head))
    plan = plan_of(algorithm, average_last=average_last)
    start = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    model = GlobalModel(plan, start, None, windows)
    assert model.width == max(head + b, a + head)
    models = []
    for round in range(4):
        before = [None if each is None else each.copy() for each in (model._params, *_moments(model))]
        assert model.window == windows[round % 2]
        model.apply(total_of(model.width, seed + round), ["a", "b"], TERMS)
        models.append(model.params.astype(np.float64))
        inside = np.zeros(size, np.bool_)
        inside[slice(*windows[round % 2])] = True
        for old, new in zip(before, (model._params, *_moments(model)), strict=True):
            if old is not None:
                np.testing.assert_array_equal(old[~inside], new[~inside])
                assert (old[inside] != new[inside]).any()
    expected = np.mean(models[-average_last:], axis=0) if average_last else models[-1]
    np.testing.assert_allclose(model.released(), expected, rtol=1e-5, atol=1e-6)


def _moments(model: GlobalModel) -> tuple[Any, Any]:
    return model._first, model._second


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("done", [1, 3])
def test_a_snapshot_is_gone_on_from(algorithm: str, dtype: type, done: int) -> None:
    plan, start = plan_of(algorithm), np.linspace(-1, 1, 50).astype(dtype)
    one, other = (GlobalModel(plan, start, None, ((0, 30), (20, 50))) for _ in range(2))
    for round in range(done):
        one.apply(total_of(30, round), ["a", "b"], TERMS)
    other.restore(flat(one))
    for round in range(done, 4):
        for model in (one, other):
            model.apply(total_of(30, round), ["a", "b"], TERMS)
    assert one.released().tobytes() == other.released().tobytes()
    assert one.released().dtype == dtype
    third = GlobalModel(plan_of("fedadam" if algorithm == "fedavg" else "fedavg"), start, None)
    if dtype == np.float32:
        with pytest.raises(ProtocolError, match="another model"):
            third.restore(flat(one))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_that_nobody_can_have_sent_changes_nothing(dtype: type) -> None:
    model = GlobalModel(plan_of("fedavg"), np.zeros(SIZE, dtype), None)
    total = np.zeros(SIZE, np.uint32)
    total[0], total[-1] = 5, 1 << 31  # the last block is beyond all bounds, the first is not
    for wrong, error in ((total, ProtocolError), (total[:-1], InputError)):
        with pytest.raises(error):
            model.apply(wrong, ["a"], TERMS)
        assert model.rounds == 0
        assert not model.params.any()
