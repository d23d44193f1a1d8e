"""The filter, re-derived: exact transcripts of adaptive and concurrent mechanisms, against what a cap promises.

Neighbouring data sets are 0 and 1. Every mechanism answers from a small set, so the law of a whole transcript
under either data set is computed, not sampled, and its Renyi divergence and its delta with it. What is tested
is the code that admits rows; wrong filters are shown to break the promise on the same transcripts.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from tests.privacy.ledger.world import owner

from cloister.errors import PolicyRefused
from cloister.privacy.ledger import Cap
from cloister.privacy.ledger.book import Book
from cloister.privacy.ledger.rows import Charge, Declare, Genesis, Spend

Answers = tuple[int, ...]
Leaf = tuple[Answers, float, float]  # a transcript, and its probability under 0 and under 1
Strategy = Callable[[Answers], float]
"""What comes next after these answers: randomised response that tells the truth with this probability."""
STEPS = 9
CAP = Cap(1.0, 0.05, 6)


def rdp(truth: float, order: int) -> float:
    """The RDP of randomised response at an order, both ways alike."""
    a, p = order, truth
    return math.log(p**a * (1 - p) ** (1 - a) + (1 - p) ** a * p ** (1 - a)) / (a - 1)


def divergence(leaves: list[Leaf], order: int) -> float:
    """The Renyi divergence of whole transcripts, the larger of both ways."""
    a = order
    ways = [
        sum(p**a * q ** (1 - a) for _, p, q in leaves),
        sum(q**a * p ** (1 - a) for _, p, q in leaves),
    ]
    return math.log(max(ways)) / (a - 1)


def delta_at(leaves: list[Leaf], epsilon: float) -> float:
    """The least delta for an epsilon, the larger of both ways."""
    e = math.exp(epsilon)
    return max(sum(max(p - e * q, 0) for _, p, q in leaves), sum(max(q - e * p, 0) for _, p, q in leaves))


Filter = Callable[[list[float], float, Answers], bool]
"""Whether a next mechanism is let through: costs so far, its cost, the answers so far."""


def the_ledger(costs: list[float], cost: float, answers: Answers) -> bool:
    """The product's own code: a book with these rows admits the next or does not."""
    book = _book()
    for number, each in enumerate([*costs, cost]):
        row = Spend(
            id=f"{number:032x}",
            at="t",
            populations=("rows",),
            what="x",
            cost=Charge(each, 0.0, CAP.order),
        )
        try:
            book.apply(row)
        except PolicyRefused:
            assert number == len(costs)
            return False
    return True


def _book() -> Book:
    book = Book()
    book.apply(
        Genesis(id="e" * 32, at="t", version=1, ledger="0" * 32, owner=owner().public, tag_key="0" * 64)
    )
    book.apply(Declare(id="f" * 32, at="t", population="rows", cap=CAP))
    return book


def looks_before_it_adds(costs: list[float], cost: float, answers: Answers) -> bool:
    """Wrong: lets through while something is left, and overshoots with the last."""
    return sum(costs) < CAP.rdp


def forgets_what_was_surprising(costs: list[float], cost: float, answers: Answers) -> bool:
    """Wrong: a step whose answer was 1 is refunded, as if it had failed."""
    kept = [each for each, answer in zip(costs, answers, strict=True) if answer == 0]
    return sum(kept) + cost <= CAP.rdp


def transcripts(strategy: Strategy, admits: Filter) -> list[Leaf]:
    """Every transcript of a strategy that goes on until the filter stops it."""

    def grow(answers: Answers, p: float, q: float, costs: list[float]) -> Iterator[Leaf]:
        truth = strategy(answers)
        cost = rdp(truth, CAP.order)
        if len(answers) == STEPS or not admits(costs, cost, answers):
            yield answers, p, q
            return
        for answer in (0, 1):
            kept = truth if answer == 0 else 1 - truth
            yield from grow((*answers, answer), p * kept, q * (1 - kept), [*costs, cost])

    return list(grow((), 1.0, 1.0, []))


def drawn(seed: int, low: float = 0.55, high: float = 0.75) -> Strategy:
    """An adaptive strategy: what it asks next depends on all answers so far."""

    def choose(answers: Answers) -> float:
        digest = hashlib.sha256(repr((seed, answers)).encode()).digest()
        return low + (high - low) * digest[0] / 255

    return choose


def greedy(answers: Answers) -> float:
    """Asks more sharply when the answers lean to one side: an adversary that follows its luck."""
    return 0.6 if abs(2 * sum(answers) - len(answers)) < 2 else 0.72


STRATEGIES: list[Strategy] = [*(drawn(seed) for seed in range(4)), greedy, lambda answers: 0.7]


@pytest.mark.parametrize("number", range(len(STRATEGIES)))
def test_whole_transcripts_stay_within_the_cap(number: int) -> None:
    leaves = transcripts(STRATEGIES[number], the_ledger)
    assert sum(p for _, p, _ in leaves) == pytest.approx(1)
    assert divergence(leaves, CAP.order) <= CAP.rdp
    assert delta_at(leaves, CAP.epsilon) <= CAP.delta * 7 / 8
    assert divergence(leaves, CAP.order) > 0.4 * CAP.rdp  # they did go on until they were stopped


@pytest.mark.parametrize("wrong", [looks_before_it_adds, forgets_what_was_surprising])
def test_wrong_filters_break_the_promise(wrong: Filter) -> None:
    strategies: list[Strategy] = [*STRATEGIES, lambda answers: 0.85]
    found = [transcripts(each, wrong) for each in strategies]
    assert max(divergence(leaves, CAP.order) for leaves in found) > CAP.rdp
    assert max(delta_at(leaves, CAP.epsilon) for leaves in found) > CAP.delta


def test_distances_charged_with_their_factor_are_enough() -> None:
    """Each step tells the secret outright with probability t: what the filter calls delta' pays for that."""
    t = 1e-3
    for strategy in STRATEGIES[:3]:
        leaves: list[Leaf] = []
        for answers, p, q in transcripts(strategy, the_ledger):
            honest = (1 - t) ** len(answers)
            leaves.append((answers, p * honest, q * honest))
        told = 1 - sum(p for _, p, _ in leaves), 1 - sum(q for _, _, q in leaves)
        real = delta_at(leaves, CAP.epsilon) + max(told)
        most = max(len(answers) for answers, _, _ in leaves)
        conversion = math.exp((CAP.order - 1) * (CAP.rdp - CAP.epsilon)) / CAP.order
        conversion *= (1 - 1 / CAP.order) ** (CAP.order - 1)
        assert conversion <= CAP.delta * 7 / 8
        assert real <= conversion + (1 + math.exp(CAP.epsilon)) * most * t


# --- concurrent, interactive -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interactive:
    """A mechanism of two rounds that keeps a state: it answers a bit to a bit, as all that went before has it."""

    seed: int

    def law(self, data: int, history: tuple[int, ...], query: int) -> float:
        """The probability of answering 1."""
        digest = hashlib.sha256(repr((self.seed, data, history, query)).encode()).digest()
        return 0.35 + 0.3 * digest[0] / 255


def best(mechanisms: tuple[Interactive, ...], order: int) -> float:
    """The largest divergence that any adversary gets, who interleaves queries to all of them as it likes."""

    @cache
    def value(histories: tuple[tuple[int, ...], ...]) -> float:
        moves = [1.0]
        for index, history in enumerate(histories):
            if len(history) == 4:
                continue
            for query in (0, 1):
                gained = 0.0
                for answer in (0, 1):
                    p, q = (
                        one if answer else 1 - one
                        for one in (mechanisms[index].law(data, history, query) for data in (0, 1))
                    )
                    after = (*histories[:index], (*history, query, answer), *histories[index + 1 :])
                    gained += p**order * q ** (1 - order) * value(after)
                moves.append(gained)
        return max(moves)

    return math.log(value(tuple(() for _ in mechanisms))) / (order - 1)


@pytest.mark.parametrize("order", [2, 8])
def test_studies_that_run_at_the_same_time_cost_the_sum(order: int) -> None:
    """Over every adversary that interleaves two interactive mechanisms, adaptively: no more than both alone."""
    for one, two in itertools.combinations(map(Interactive, range(4)), 2):
        alone = best((one,), order) + best((two,), order)
        assert best((one, two), order) <= alone + 1e-12


def test_forgetting_one_of_two_would_be_noticed() -> None:
    one, two = Interactive(1), Interactive(2)
    assert best((one, two), 8) > max(best((one,), 8), best((two,), 8)) + 0.01
