from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.privacy.local.randomness import epsilon_shown, stream

from cloister.errors import InputError
from cloister.privacy.accounting import epsilon as accounted
from cloister.privacy.local import Response, estimate_counts
from cloister.privacy.local.response import WEIGHT


def table(response: Response) -> list[list[Fraction]]:
    """The chance of each answer for each truth, exactly, as the drawing makes it."""
    k, p = len(response.categories), Fraction(response.truthful, WEIGHT)
    return [[p if i == j else (1 - p) / (k - 1) for j in range(k)] for i in range(k)]


def power(epsilon: float) -> Fraction:
    """exp(epsilon), a little less."""
    with localcontext() as context:
        context.prec = 80
        return Fraction(Decimal(epsilon).exp() * (1 - Decimal("1e-75")))


@given(st.floats(0.001, 32.0), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_no_answer_is_more_than_exp_epsilon_likelier_for_one_truth_than_for_another(
    epsilon: float, k: int
) -> None:
    response = Response(tuple(map(str, range(k))), epsilon)
    rows = table(response)
    assert all(sum(row) == 1 for row in rows)
    worst = max(rows[i][j] / rows[m][j] for i in range(min(k, 3)) for m in range(min(k, 3)) for j in range(k))
    assert worst <= power(epsilon)
    assert float(worst) >= math.exp(epsilon) * (1 - 1e-4)  # and no budget is wasted


@pytest.mark.parametrize("k", [2, 3, 7])
def test_answers_follow_the_table(k: int) -> None:
    response = Response(tuple(map(str, range(k))), 1.0)
    for truth in range(k):
        answers = response.perturb(np.full(40_000, truth), insecure_test_random=stream(truth))
        expected = [float(each) * 40_000 for each in table(response)[truth]]
        assert stats.chisquare(np.bincount(answers, minlength=k), expected).pvalue > 1e-6


def test_an_attacker_finds_no_more_than_epsilon_and_nearly_all_of_it() -> None:
    response = Response(("no", "yes"), 1.0)
    no, yes = (response.perturb(np.full(100_000, v), insecure_test_random=stream(v)) for v in (0, 1))
    assert 0.9 < epsilon_shown(yes, no) <= 1.0


def test_a_response_that_lies_too_rarely_is_caught() -> None:
    claimed, wrong = 1.0, Response(("no", "yes"), 4.0)  # a quarter of the noise
    no, yes = (wrong.perturb(np.full(100_000, v), insecure_test_random=stream(v)) for v in (0, 1))
    assert epsilon_shown(yes, no) > claimed


def test_the_randomness_is_the_systems_and_new_each_time() -> None:
    response = Response(("no", "yes"), 0.5)
    truth = np.zeros(400, np.int64)
    assert not np.array_equal(response.perturb(truth), response.perturb(truth))


def test_estimates_are_unbiased_and_intervals_cover() -> None:
    response = Response(("a", "b", "c"), 1.0)
    truth = np.repeat([0, 1, 2], [150, 45, 5])
    trials = 2000
    answers = response.perturb(np.tile(truth, trials), insecure_test_random=stream(1)).reshape(trials, -1)
    estimates = [estimate_counts(response, row) for row in answers]
    for j, true in enumerate((150, 45, 5)):
        values = np.array([each[j].value for each in estimates])
        deviation = np.mean([each[j].deviation for each in estimates])
        assert abs(values.mean() - true) < 5 * values.std() / math.sqrt(trials)
        assert deviation == pytest.approx(values.std(), rel=0.06)
        covered = np.mean([each[j].low <= true <= each[j].high for each in estimates])
        assert 0.94 <= covered <= 0.99


def test_intervals_cover_even_few_people() -> None:
    response = Response(("no", "yes"), 2.0)
    trials = 4000
    for people, yes in ((5, 0), (12, 3), (12, 12)):
        truth = np.repeat([1, 0], [yes, people - yes])
        answers = response.perturb(np.tile(truth, trials), insecure_test_random=stream(people + yes))
        counted = np.bincount(answers.reshape(trials, -1).sum(axis=1), minlength=people + 1)
        covered = 0
        for said, times in enumerate(counted):
            row = np.repeat([1, 0], [said, people - said])
            estimate = estimate_counts(response, row)[1]
            covered += times * (estimate.low <= yes <= estimate.high)
        assert covered / trials >= 0.94


def test_estimates_of_a_wrong_mechanism_are_biased() -> None:
    """Somebody who unbiases with another epsilon than was used is off by far more than the error bar."""
    answers = Response(("no", "yes"), 1.0).perturb(np.ones(20_000, np.int64), insecure_test_random=stream(3))
    wrong = estimate_counts(Response(("no", "yes"), 0.5), answers)[1]
    assert not wrong.low <= 20_000 <= wrong.high


def test_names_and_numbers() -> None:
    response = Response(("red", "green", ""), 1.0)
    assert response.decode(response.encode(["green", "", "red"])) == ["green", "", "red"]
    with pytest.raises(InputError, match="none of the declared") as raised:
        response.encode(["blue-CANARY"])
    assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize("values", [[3], [-1], [0.5], [[0]]])
def test_numbers_that_are_no_category_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError):
        Response(("a", "b", "c"), 1.0).perturb(np.array(values))


@pytest.mark.parametrize(
    ("categories", "epsilon"),
    [(("a",), 1.0), (("a", "a"), 1.0), (("a", "b"), 0.0), (("a", "b"), math.nan), (("a", "b"), 33.0)],
)
def test_what_makes_no_sense_is_refused(categories: tuple[str, ...], epsilon: float) -> None:
    with pytest.raises(InputError):
        Response(categories, epsilon)


def test_the_accountant_agrees() -> None:
    assert accounted([Response(("a", "b", "c"), 0.7).event], 1e-9) == pytest.approx(0.7, rel=1e-3)


def test_it_is_data() -> None:
    response = Response(("a", "b"), 1.5)
    assert msgspec.json.decode(msgspec.json.encode(response), type=Response) == response
    with pytest.raises(AttributeError):
        response.epsilon = 9.0  # type: ignore[misc]
