"""A plan whose claim would be false is refused before a row is read, with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from tests.learning.plans import make_plan, plan_text

from cloister.errors import PlanError
from cloister.learning import parse_plan
from cloister.learning.refusals import check_delta

DISTRIBUTED = {"training.local_steps": "1"}
PRIVACY = "[privacy]\nepsilon = 1.0\ndelta = 1e-5\nclip = 1.0\nrate = 0.1\n"


def test_a_sound_plan_is_read() -> None:
    plan = make_plan(DISTRIBUTED, extra=PRIVACY)
    assert plan.privacy is not None
    assert plan.privacy.by_record
    assert parse_plan(plan.to_toml().encode()) == plan


@pytest.mark.parametrize(
    ("changes", "extra", "reason"),
    [
        ({}, "", "later local steps"),
        ({**DISTRIBUTED, "training.optimiser": '"adam"'}, "", "takes no step of its own"),
        ({**DISTRIBUTED, "training.weights": '"equal"'}, "", "every row weighs the same"),
        ({**DISTRIBUTED, "data.scaling": '"local"'}, "", "means and deviations"),
        (DISTRIBUTED, 'sampler = "shuffle"\n', "about half of the true epsilon"),
        (DISTRIBUTED, 'sampler = "fixed"\n', "about half of the true epsilon"),
        (DISTRIBUTED, 'sampler = "poison"\n', "sampler"),
        (DISTRIBUTED, "adaptive_quantile = 0.5\n", "unit column"),
        (DISTRIBUTED, 'unit = "x1"\nsites_per_unit = 1\n', "also a feature"),
        (DISTRIBUTED, 'unit = "patient"\nsites_per_unit = 1\n', "divided by"),
        (DISTRIBUTED, 'unit = "patient"\n', "at how many sites"),
        (DISTRIBUTED, 'unit = "patient"\nsites_per_unit = 1\nmode = "local"\n', "know no units"),
        ({"training.optimiser": '"adam"'}, 'mode = "local"\n', "plain gradient steps"),
        (DISTRIBUTED, "noise_multiplier = 0.0\n", "out of range"),
        (DISTRIBUTED, "microbatch = 0\n", "out of range"),
        (DISTRIBUTED, "nois_minimum = 3\n", "noise_minimum"),
    ],
)
def test_what_would_make_the_claim_false_is_refused(
    changes: dict[str, str | None], extra: str, reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        parse_plan(plan_text(changes, extra=PRIVACY + extra))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epsilon", value) for value in ("0.0", "-1.0", "inf", "51.0", "nan")),
        *(("delta", value) for value in ("0.0", "1.0", "-1e-5", "nan")),
        *(("clip", value) for value in ("0.0", "1e-30", "inf")),
        *(("rate", value) for value in ("0.0", "1.1")),
    ],
)
def test_a_number_out_of_range_is_refused(field: str, value: str) -> None:
    lines = [line for line in PRIVACY.splitlines() if not line.startswith(field)]
    with pytest.raises(PlanError, match=field):
        parse_plan(plan_text(DISTRIBUTED, extra="\n".join([*lines, f"{field} = {value}", ""])))


def test_neither_epsilon_nor_noise_is_refused() -> None:
    with pytest.raises(PlanError, match="neither"):
        parse_plan(plan_text(DISTRIBUTED, extra=PRIVACY.replace("epsilon = 1.0\n", "")))


def test_a_delta_that_allows_publishing_a_row_is_refused() -> None:
    check_delta(0.0099, 100)
    for delta in (0.01, 0.5):
        with pytest.raises(PlanError, match="whole row"):
            check_delta(delta, 100)


def test_a_unit_column_may_take_local_steps_and_an_adaptive_clip() -> None:
    plan = make_plan(
        extra=PRIVACY + 'unit = "patient"\nsites_per_unit = 1\nexpected_units = 9\nadaptive_quantile = 0.5\n'
    )
    assert plan.privacy is not None
    assert not plan.privacy.by_record


def test_a_plan_without_the_table_keeps_its_digest() -> None:
    expected = "70e3a901908a0fb3ed1dbf2eb891fca2d22fd1b8cdf3cd02685fc40df0e59c85"
    assert make_plan().digest.hex() == expected


TEXTS = {
    "data.features": "[]",
    "model.kind": '"causal-lm"',
    "training.rounds": "9",
}


@pytest.mark.parametrize(("last", "exact"), [(2, True), (3, False), (8, False)])
def test_a_mean_of_alternating_adapters_is_released_where_it_is_the_mean_of_the_models(
    last: int, exact: bool
) -> None:
    rng = np.random.default_rng(1)
    a, b, tail = rng.normal(size=(2, 5)), rng.normal(size=(4, 2)), []
    for number in range(9):  # as rounds do: B in even ones, A in odd ones
        a, b = (a, b + rng.normal(size=b.shape)) if number % 2 == 0 else (a + rng.normal(size=a.shape), b)
        tail.append((a, b))
    means = [np.mean([each[n] for each in tail[-last:]], axis=0) for n in range(2)]
    assert np.allclose(means[1] @ means[0], np.mean([b @ a for a, b in tail[-last:]], axis=0)) is exact
    text = plan_text(TEXTS | {"training.average_last": str(last)}, extra=language("lora-alternating"))
    if exact:
        parse_plan(text)
    else:
        with pytest.raises(PlanError, match="mean of those rounds' models") as refused:
            parse_plan(text)
        assert 'or method = "lora"' in str(refused.value)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_methods_are_averaged_over_any_number_of_rounds(method: str) -> None:
    plan = make_plan(TEXTS | {"training.average_last": "9"}, extra=language(method))
    assert plan.training.average_last == 9


def language(method: str) -> str:
    rank = 0 if method == "full" else 4
    return f'[language]\nbase = "{"8" * 64}"\ntokenizer = "{"9" * 64}"\nmethod = "{method}"\nrank = {rank}\n'
