"""Ranges of their own for tensors of a language model, and what a plan may ask of its ring."""

from __future__ import annotations

import msgspec
import pytest
from tests.learning.plans import make_plan, plan_text

from cloister.errors import PlanError
from cloister.learning import Plan, parse_plan
from cloister.learning.language.layout import Tensor
from cloister.learning.sections import TensorRange
from cloister.learning.tensorranges import ranges_within

LANGUAGE = f"""
[language]
base = "{"8" * 64}"
tokenizer = "{"9" * 64}"
"""
CHANGES = {
    "model.kind": '"text-classifier"',
    "model.classes": "3",
    "data.features": '["text"]',
    "aggregation.bits": "8",
}
TENSORS = (
    Tensor("layers.0.q_proj.lora_A.weight", (2, 8)),
    Tensor("layers.1.q_proj.lora_A.weight", (2, 8)),
    Tensor("head.weight", (3, 8)),
    Tensor("head.bias", (3,)),
    Tensor("layers.0.q_proj.lora_B.weight", (8, 2)),
    Tensor("layers.1.q_proj.lora_B.weight", (8, 2)),
)


def language_plan(ranges: str = "", **changes: str | None) -> Plan:
    return parse_plan(plan_text(CHANGES | changes, extra=LANGUAGE + ranges))


def entry(tensor: str, value_range: float) -> str:
    return f'[[aggregation.ranges]]\ntensor = "{tensor}"\nvalue_range = {value_range}\n'


def test_the_first_pattern_that_fits_counts() -> None:
    written = (
        TensorRange(tensor="*layers.1.*", value_range=0.5),
        TensorRange(tensor="*.lora_B.*", value_range=0.1),
        TensorRange(tensor="head.*", value_range=2.0),
    )
    found = ranges_within(written, 8.0, TENSORS)
    assert found == ((16, 8.0), (32, 0.5), (59, 2.0), (75, 0.1), (91, 0.5))


def test_a_window_counts_from_its_own_start() -> None:
    written = (
        TensorRange(tensor="*.lora_B.*", value_range=0.1),
        TensorRange(tensor="head.bias", value_range=2.0),
    )
    assert ranges_within(written, 8.0, TENSORS, (32, 91)) == ((24, 8.0), (27, 2.0), (59, 0.1))
    assert ranges_within(written, 8.0, TENSORS, (0, 59)) == ((56, 8.0), (59, 2.0))
    assert ranges_within(written, 8.0, TENSORS, (20, 30)) == ((10, 8.0),)
    assert ranges_within((), 8.0, TENSORS) == ()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("*.lora_C.*",), "fits no tensor; the first is 'layers.0.q_proj"),
        (("*", "head.*"), "that an earlier pattern does not fit"),
        (("head.w", "head.*"), "'head.w' fits no tensor"),
    ],
)
def test_a_pattern_that_decides_nothing_is_refused(patterns: tuple[str, ...], message: str) -> None:
    written = [TensorRange(tensor=each, value_range=1.0) for each in patterns]
    with pytest.raises(PlanError, match=message):
        ranges_within(written, 8.0, TENSORS, (0, 16))


def test_a_plan_with_ranges_is_read_written_and_encodes_by_them() -> None:
    plan = language_plan(entry("*.lora_B.*", 0.05) + entry("head.*", 1))
    assert parse_plan(plan.to_toml().encode()) == plan
    assert parse_plan(plan.to_toml().encode()).digest == plan.digest
    assert plan.digest != language_plan().digest
    whole = plan.encoding(3, TENSORS)
    assert [(end, grid.value_range) for _, end, grid in whole.pieces(0, 91)] == [
        (32, 8.0),
        (59, 1.0),
        (91, 0.05),
    ]
    second = plan.encoding(3, TENSORS, (0, 59))
    assert [(end, grid.value_range) for _, end, grid in second.pieces(0, 59)] == [(32, 8.0), (59, 1.0)]
    assert whole.bits == second.bits == 8
    with pytest.raises(PlanError, match="fits no tensor"):
        language_plan(entry("nothing", 1.0)).encoding(3, TENSORS)


def test_a_plan_without_ranges_says_nothing_of_them() -> None:
    plan = make_plan()
    assert "ranges" not in msgspec.to_builtins(plan.aggregation)
    assert plan.aggregation.tensor_ranges == ()
    assert b"ranges" not in plan.to_toml().encode()


PRIVACY = '[privacy]\nepsilon = 1.0\ndelta = 1e-5\nclip = 1.0\nrate = 0.5\nmode = "{mode}"\n'


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_8_bits_are_not_for_noise(mode: str) -> None:
    text = plan_text({"aggregation.bits": "8", "training.local_steps": "1"}, extra=PRIVACY.format(mode=mode))
    with pytest.raises(PlanError, match="no room for the noise") as caught:
        parse_plan(text)
    assert caught.value.where == "[aggregation] bits"
    assert caught.value.fix == "Write bits = 16 or 32"


def test_8_bits_are_for_at_most_31_sites() -> None:
    sites = tuple(f"s{number}" for number in range(31))
    plan = make_plan({"aggregation.bits": "8", "study.minimum_sites": "31"}, sites=sites)
    assert plan.encoding(31).largest == 4
    with pytest.raises(PlanError, match="leaves each of 32 sites 3 values on either side") as caught:
        make_plan({"aggregation.bits": "8", "study.minimum_sites": "31"}, sites=(*sites, "s31"))
    assert caught.value.fix == "Write bits = 16, or take at most 31 sites"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (entry("*", 1.0), "only a language model's have names"),
        (LANGUAGE + entry("*", 0), "out of range"),
        (LANGUAGE + entry("*", 1) + entry("*", 2), "twice"),
        (LANGUAGE + entry(" ", 1), "empty, too long"),
        (LANGUAGE + '[[aggregation.ranges]]\ntensor = "*"\nrange = 1.0\n', "value_range"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(extra: str, message: str) -> None:
    changes = CHANGES if "language" in extra else {}
    with pytest.raises(PlanError) as caught:
        parse_plan(plan_text(changes, extra=extra))
    assert message in str(caught.value)


def test_ranges_are_not_for_distributed_noise() -> None:
    privacy = PRIVACY.format(mode="distributed")
    text = plan_text(
        CHANGES | {"aggregation.bits": "16", "training.local_steps": "1"},
        extra=LANGUAGE + 'overlong = "truncate"\n' + entry("*", 1.0) + privacy,
    )
    with pytest.raises(PlanError, match="the clip bounds"):
        parse_plan(text)
