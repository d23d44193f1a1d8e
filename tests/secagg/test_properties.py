"""Whoever drops out, wherever: the sum is exact if at most n - m are gone, and burnt or exact otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secagg.network import MODEL, Network, context, ring_sum, vectors

from cloister.errors import RoundBurnt
from cloister.secagg import RoundSum

STEPS = ("before uploading", "after uploading", "after the first answer")
SIZE = 9


@dataclass(frozen=True)
class Scenario:
    n: int
    bits: int
    view: str
    gone: dict[int, str]  # site -> the step after which it is silent
    late: frozenset[int]  # uploads that arrive after closing
    order: list[int]
    seed: int


@st.composite
def scenarios(draw: st.DrawFn, *, tolerated: bool, most: int) -> Scenario:
    n = draw(st.integers(2, most))
    ctx = context(n)
    limit = ctx.params.tolerated_dropouts if tolerated else n
    gone = draw(st.dictionaries(st.integers(0, n - 1), st.sampled_from(STEPS), max_size=limit))
    room = limit - len(gone)
    late = draw(
        st.frozensets(st.sampled_from(sorted(set(range(n)) - set(gone)) or [0]), max_size=max(room, 0))
    )
    return Scenario(
        n,
        draw(st.sampled_from([8, 16, 32])),
        draw(st.sampled_from(["sum", "none"])),
        gone,
        late - set(gone),
        draw(st.permutations(range(n))),
        draw(st.integers(0, 2**32 - 1)),
    )


def attempt(net: Network, number: int, s: Scenario) -> tuple[RoundSum | None, dict[str, np.ndarray]]:
    """Run one attempt by the scenario, as a driver with deadlines would."""
    names = [net.names[i] for i in s.order]
    step = {net.names[i]: STEPS.index(what) for i, what in s.gone.items()}
    late = {net.names[i] for i in s.late}
    data = dict(zip(net.names, vectors(s.n, s.bits, SIZE, s.seed), strict=True))
    messages = {
        name: net.sites[name].upload(number, data[name], MODEL) for name in names if step.get(name) != 0
    }
    net.hub.begin(number)
    for name in names:
        if name in messages and name not in late:
            net.hub.on_upload(name, messages[name])
    try:
        requests = net.hub.close()
        for name in late:
            net.hub.on_upload(name, messages[name])
        answered = 0
        while requests:
            further = None
            for name in names:
                if step.get(name, 9) > answered + 1:
                    further = net.hub.on_answer(name, net.sites[name].answer(requests[name])) or further
                else:
                    net.hub.lost(name)
            answered += 1
            requests = further
    except RoundBurnt:
        return None, data
    return net.hub.result(), data


def check(net: Network, result: RoundSum, data: dict[str, np.ndarray], bits: int) -> None:
    assert net.opened(result).tolist() == ring_sum((data[name] for name in result.survivors), bits)
    assert len(result.survivors) >= net.context.params.minimum


@settings(max_examples=120, deadline=None)
@given(scenario=scenarios(tolerated=True, most=6))
def test_up_to_n_minus_m_dropouts_always_finish(scenario):
    finishes(scenario)


@settings(max_examples=80, deadline=None)
@given(scenario=scenarios(tolerated=False, most=6))
def test_any_dropouts_give_an_exact_sum_or_none_and_leave_the_next_attempt_usable(scenario):
    ends_well(scenario)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(scenario=scenarios(tolerated=True, most=8))
def test_up_to_n_minus_m_dropouts_always_finish_long(scenario):
    finishes(scenario)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(scenario=scenarios(tolerated=False, most=8))
def test_any_dropouts_long(scenario):
    ends_well(scenario)


def finishes(s: Scenario) -> None:
    net = Network(context(s.n, bits=s.bits, view=s.view))
    result, data = attempt(net, 0, s)
    assert result is not None
    silent = {i for i, what in s.gone.items() if what == STEPS[0]} | s.late
    assert result.survivors == tuple(name for i, name in enumerate(net.names) if i not in silent)
    check(net, result, data, s.bits)


def ends_well(s: Scenario) -> None:
    net = Network(context(s.n, bits=s.bits, view=s.view))
    result, data = attempt(net, 0, s)
    if result is not None:
        check(net, result, data, s.bits)
    whole = net.run(1, data)
    assert whole.survivors == net.names
    check(net, whole, data, s.bits)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(3, 6), bits=st.sampled_from([8, 16, 32]), seed=st.integers(0, 99))
def test_attempts_can_be_skipped(n, bits, seed):
    net = Network(context(n, bits=bits, attempts=6))
    for number in (1, 4):
        data = dict(zip(net.names, vectors(n, bits, SIZE, seed + number), strict=True))
        check(net, net.run(number, data), data, bits)
