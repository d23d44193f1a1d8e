from __future__ import annotations

import numpy as np
import pytest
from tests.learning.private.worlds import (
    Array,
    Part,
    clipped,
    make_model,
    make_params,
    make_rows,
    stream,
    training,
)

from cloister.errors import InputError, PlanError
from cloister.learning import ClientRows, Model, train
from cloister.learning.private import (
    UNIT_FLOAT_BOUND,
    AdaptiveClip,
    bit_units,
    joint_sensitivity,
    poisson_rows,
    split_bits,
    unit_sum,
)
from cloister.learning.private import units as module
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

GRID = IntegerGrid(32, 1 << 16)
STORED = [
    "0x1.1aec7b35a00d4p+0",
    "0x1.05e83924a2988p+0",
    "0x1.0000000000000p+0",
    "0x1.ee876f27fd5d4p-1",
    "0x1.cf46d99d52b3ap-1",
]
CONFIG = training(local_steps=3, batch=50, l2=0.01)  # whole units in each step: nothing of the order matters


def units_of(model: Model, counts: list[int], number: int = 0) -> list[Part]:
    return [make_rows(model, count, number * 100 + i) for i, count in enumerate(counts)]


def run(model: Model, params: Array, parts: list[Part], **changes: object) -> Array:
    options: dict[str, object] = {
        "training": CONFIG,
        "clip": 0.2,
        "grid": GRID,
        "rate": 1.0,
        "random": stream(1),
        "norm_bit": True,
    }
    return unit_sum(model, params, ClientRows.stack(parts), **(options | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["logistic", "relu"])
@pytest.mark.parametrize("clip", [0.01, 0.3, 1e3])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_each_unit_trains_is_clipped_and_rounded_by_itself(name: str, clip: float, rate: float) -> None:
    model = make_model(name)
    params, parts = make_params(model), units_of(model, [3, 8, 1, 5, 5, 20, 2, 9])
    found = run(model, params, parts, clip=clip, rate=rate)
    update, bits = np.zeros(model.size, dtype=np.int64), 0
    for i in poisson_rows(8, rate, stream(1)).tolist():
        moved = train(model, params, ClientRows.stack([parts[i]]), CONFIG) - params
        bits += 1 if np.linalg.norm(moved) <= clip else -1
        update += np.rint(clipped(moved, clip)[0] * (GRID.clip_units / clip)).astype(np.int64)
    assert np.abs(found[:-1] - update).max() <= 1
    assert found[-1] == bits * bit_units(GRID)
    assert np.array_equal(run(model, params, parts, clip=clip, rate=rate, norm_bit=False), found[:-1])
    integers, centred = split_bits(found, GRID)
    assert np.array_equal(integers, found[:-1])
    assert centred == pytest.approx(bits / 2, rel=1e-4)


@pytest.mark.parametrize("norm_bit", [True, False])
@pytest.mark.parametrize("clip", [1e-3, 5.0])
def test_a_unit_moves_the_sum_by_at_most_the_joint_sensitivity(norm_bit: bool, clip: float) -> None:
    model = make_model("linear")
    params = make_params(model)
    parts = units_of(model, [4, 4, 4, 4])
    parts[2] = (parts[2][0] * 20, parts[2][1] + 1e3)
    allowed = joint_sensitivity(GRID, model.size, norm_bit=norm_bit)
    config = training(local_steps=2, batch=50, learning_rate=0.01)
    everyone = run(model, params, parts, clip=clip, norm_bit=norm_bit, training=config)
    for gone in range(4):
        rest = [part for i, part in enumerate(parts) if i != gone]
        moved = everyone - run(model, params, rest, clip=clip, norm_bit=norm_bit, training=config)
        assert np.linalg.norm(moved) <= allowed
        if gone == 2:  # this one is at the clip
            assert np.linalg.norm(moved) > 0.999 * GRID.clip_units


def test_the_bit_is_not_free() -> None:
    """A claim that leaves the bit out is below what a unit can do; so is a bit that is not centred."""
    model = make_model("linear", 3)
    params, parts = np.zeros(model.size), units_of(model, [5, 5])
    everyone, one = run(model, params, parts, clip=1e-3), run(model, params, parts[:1], clip=1e-3)
    moved = np.linalg.norm(everyone - one)
    assert moved > joint_sensitivity(GRID, model.size, norm_bit=False)
    assert moved <= joint_sensitivity(GRID, model.size, norm_bit=True)
    K, S, b = GRID.clip_units, GRID.sensitivity(model.size, UNIT_FLOAT_BOUND), bit_units(GRID)
    assert joint_sensitivity(GRID, model.size, norm_bit=True) == pytest.approx(np.sqrt(S**2 + b**2))
    assert np.sqrt(S**2 + b**2) < 1.008 * S
    assert b == K // 8
    uncentred = np.sqrt(K**2 + (2 * b) ** 2)  # 0 or 1 with the same weight: a unit moves it by 2 b
    assert uncentred > joint_sensitivity(GRID, model.size, norm_bit=True)
    assert bit_units(IntegerGrid(16, 9)) == 2


def test_a_grid_too_coarse_for_the_model_is_refused() -> None:
    with pytest.raises(PlanError, match="rounding"):
        joint_sensitivity(IntegerGrid(16, 50), 100, norm_bit=True)


@pytest.mark.parametrize("wild", [1e200, np.nan])
def test_a_unit_that_diverges_counts_as_zero_and_stops_nobody(wild: float) -> None:
    model = make_model("linear")
    params, parts = make_params(model), units_of(model, [4, 4, 4])
    usual = run(model, params, [parts[0], parts[2]])
    parts[1] = (parts[1][0] * wild, parts[1][1])
    found = run(model, params, parts)
    assert np.array_equal(found[:-1], usual[:-1])
    assert found[-1] == usual[-1] - bit_units(GRID)


def test_few_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("relu")
    params, parts = make_params(model), units_of(model, [4] * 20)
    together = run(model, params, parts, rate=0.7)
    monkeypatch.setattr(module, "_TOGETHER_BYTES", 1)
    assert np.array_equal(run(model, params, parts, rate=0.7), together)


@pytest.mark.parametrize("name", ["logistic", "relu", "tanh", "wide"])
def test_units_do_not_change_each_others_last_bits(name: str) -> None:
    model, rng = make_model(name, 13), np.random.default_rng(0)
    params, parts = make_params(model), units_of(model, rng.integers(1, 12, size=60).tolist())
    rows = ClientRows.stack(parts)

    class InOrder:
        """Each unit's own randomness held still: rows come as they stand."""

        def uniform(self, shape: tuple[int, ...]) -> Array:
            return np.broadcast_to(np.linspace(0.0, 0.9, shape[-1]), shape)

    def updates(chosen: Array) -> dict[int, Array]:
        widths = rows.counts[chosen]
        order = np.concatenate([chosen[widths == width] for width in np.unique(widths)])
        found = np.concatenate(list(module._updates(model, params, rows, chosen, CONFIG, InOrder())))  # type: ignore[arg-type]

        return dict(zip(order.tolist(), found, strict=True))

    everyone = updates(np.arange(60))
    for size in (1, 2, 17, 59):
        for unit, found in updates(np.sort(rng.choice(60, size, replace=False))).items():
            assert np.array_equal(found, everyone[unit])


def test_nobody_sampled_is_zero() -> None:
    model = make_model("logistic")
    found = run(model, make_params(model), units_of(model, [2, 2]), rate=1e-12)
    assert found.tolist() == [0] * (model.size + 1)


def test_what_does_not_fit_is_refused() -> None:
    model = make_model("logistic")
    parts = units_of(model, [2, 2])
    with pytest.raises(InputError, match="clip"):
        run(model, make_params(model), parts, clip=0.0)
    with pytest.raises(InputError, match="parameters"):
        run(model, np.zeros(3), parts)
    with pytest.raises(InputError, match="rate"):
        run(model, make_params(model), parts, rate=0.0)


# --- the clip that adapts


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (-50.0, np.exp(0.2 * 0.6)),
        (50.0, np.exp(-0.2 * 0.4)),
        (10.0, 1.0),
        (-1e9, np.exp(0.12)),
        (1e9, np.exp(-0.08)),
    ],
)
def test_the_next_clip_is_geometric(bits: float, expected: float) -> None:
    assert AdaptiveClip(0.6).after(3.0, bits, 100.0) == pytest.approx(3.0 * expected, rel=1e-14)


def test_the_next_clip_has_the_same_bits_everywhere() -> None:
    """Stored: every party of a study calculates the clip by itself."""
    rule = AdaptiveClip(0.5, rate=0.2)
    found = [rule.after(1.0, bits, 64.0).hex() for bits in (-32.0, -7.3, 0.0, 11.11, 32.0)]
    assert found == STORED


def test_floor_and_ceiling_hold() -> None:
    rule = AdaptiveClip(0.5, rate=1.0, floor=0.5, ceiling=2.0)
    assert rule.after(0.5, 1e6, 10.0) == 0.5
    assert rule.after(2.0, -1e6, 10.0) == 2.0


def test_it_finds_the_quantile_through_the_noise_of_the_joint_vector() -> None:
    rng, rule = np.random.default_rng(0), AdaptiveClip(0.7)
    noise = DiscreteGaussian((1.0 * joint_sensitivity(GRID, 7, norm_bit=True)) ** 2)
    clip, seen = 100.0, []
    for step in range(300):
        norms = rng.lognormal(size=200)
        bits = bit_units(GRID) * int((2 * (norms <= clip) - 1).sum())
        total = np.array([0, bits], dtype=np.int64)
        total[-1:] += noise.sample(1)
        clip = rule.after(clip, split_bits(total, GRID)[1], 200.0)
        if step >= 150:
            seen.append(clip)
    assert np.mean(seen) == pytest.approx(np.exp(0.5244), rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"quantile": 0.0},
        {"quantile": 1.0},
        {"quantile": 0.5, "rate": 0.0},
        {"quantile": 0.5, "rate": 1.5},
        {"quantile": 0.5, "floor": 2.0, "ceiling": 1.0},
        {"quantile": 0.5, "floor": 0.0},
    ],
)
def test_a_rule_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        AdaptiveClip(**options)


def test_a_divisor_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="expected number"):
        AdaptiveClip(0.5).after(1.0, 0.0, 0.0)
