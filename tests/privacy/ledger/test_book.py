"""The book against an independent model: exact fractions, no running totals, everything summed anew."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.privacy.ledger.world import owner

from cloister.errors import CloisterError, PolicyRefused
from cloister.privacy.ledger import Cap, LedgerInDoubt
from cloister.privacy.ledger.book import Book
from cloister.privacy.ledger.rows import (
    Admit,
    Charge,
    Close,
    Commit,
    Declare,
    Genesis,
    Row,
    Spend,
    Start,
    decode_row,
    encode_row,
)
from cloister.privacy.ledger.status import status_of
from cloister.privacy.ledger.store import encode_state

ORDER = 8
GENESIS = Genesis(id="e" * 32, at="t", version=1, ledger="0" * 32, owner=owner().public, tag_key="0" * 64)
CAPS = {"a": Cap(3.0, 1e-5, ORDER), "b": Cap(2.0, 1e-4, ORDER)}


@dataclass
class Model:
    """What was promised and released, as a list; totals are computed when they are asked for."""

    released: list[tuple[tuple[str, ...], Fraction, Fraction]] = field(default_factory=list)
    waiting: dict[tuple[int, int], tuple[tuple[str, ...], Fraction, Fraction]] = field(default_factory=dict)

    def totals(self, population: str) -> tuple[Fraction, Fraction, Fraction, Fraction]:
        released = [each for each in self.released if population in each[0]]
        waiting = [each for each in self.waiting.values() if population in each[0]]
        return (
            sum((each[1] for each in released), Fraction()),
            sum((each[2] for each in released), Fraction()),
            sum((each[1] for each in waiting), Fraction()),
            sum((each[2] for each in waiting), Fraction()),
        )


populations = st.sampled_from([("a",), ("b",), ("a", "b")])
costs = st.builds(Charge, st.floats(0, 0.4) | st.just(0.0), st.floats(0, 3e-6) | st.just(0.0), st.just(ORDER))
numbers = st.integers(1, 30)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), populations, costs),
        st.tuples(st.just("admit"), populations, costs, st.integers(1, 4)),
        st.tuples(st.just("start"), numbers, st.integers(0, 4)),
        st.tuples(st.just("commit"), numbers, st.integers(0, 4)),
        st.tuples(st.just("close"), numbers),
        st.tuples(st.just("lower"), st.sampled_from(["a", "b"]), st.floats(1.8, 3.2)),
    ),
    max_size=40,
)


def row_of(step: tuple[object, ...], number: int) -> Row:
    stamp = {"id": f"{number:032x}", "at": "t"}
    match step:
        case ("spend", tuple(names), Charge() as cost):
            return Spend(**stamp, populations=names, what="q", cost=cost)
        case ("admit", tuple(names), Charge() as cost, int(blocks)):
            return Admit(
                **stamp, populations=names, study=f"{number:064x}", name="s", cost=cost, blocks=blocks
            )
        case ("start", int(admission), int(block)):
            return Start(**stamp, admission=admission, block=block)
        case ("commit", int(admission), int(block)):
            return Commit(**stamp, admission=admission, block=block)
        case ("close", int(admission)):
            return Close(**stamp, admission=admission, interrupted=False)
        case ("lower", str(name), float(epsilon)):
            return Declare(**stamp, population=name, cap=Cap(epsilon, CAPS[name].delta, ORDER))
    raise AssertionError(step)


def into(model: Model, row: Row, number: int) -> None:
    match row:
        case Spend():
            model.released.append((row.populations, Fraction(row.cost.rdp), Fraction(row.cost.delta)))
        case Admit():
            for block in range(row.blocks):
                model.waiting[number, block] = (
                    row.populations,
                    Fraction(row.cost.rdp),
                    Fraction(row.cost.delta),
                )
        case Start():
            model.released.append(model.waiting.pop((row.admission, row.block)))
        case Close():
            for key in [key for key in model.waiting if key[0] == row.admission]:
                del model.waiting[key]
        case _:
            pass


@given(steps)
def test_any_sequence_of_rows_agrees_with_the_model(sequence: list[tuple[object, ...]]) -> None:
    book, model = Book(), Model()
    rows: list[Row] = [GENESIS]
    rows += [
        Declare(id=f"{number:031x}d", at="t", population=name, cap=cap)
        for number, (name, cap) in enumerate(CAPS.items())
    ]
    for row in rows:
        book.apply(row)
    for number, step in enumerate(sequence, 100):
        row = row_of(step, number)
        before = encode_state(book)
        try:
            book.apply(row)
        except CloisterError:
            assert encode_state(book) == before  # a refusal changes nothing
            continue
        rows.append(row)
        into(model, row, book.size)
        for name in CAPS:
            spent_rdp, spent_delta, held_rdp, held_delta = model.totals(name)
            status = status_of(book, name)
            # Never less than was released, and off by no more than a unit a row.
            assert spent_rdp <= Fraction(status.spent.rdp) <= spent_rdp + Fraction(1, 10**12)
            assert spent_delta <= Fraction(status.spent.delta) <= spent_delta + Fraction(1, 10**15)
            assert held_rdp <= Fraction(status.reserved.rdp)
            if not isinstance(row, Declare):
                cap = book.accounts[name].cap
                if name in getattr(row, "populations", ()):
                    assert spent_rdp + held_rdp <= Fraction(cap.rdp)
                    assert spent_delta + held_delta <= Fraction(cap.delta_terms)
    again = Book()
    for number, row in enumerate(rows, 1):
        again.replay(decode_row(number, encode_row(row)))
    assert encode_state(again) == encode_state(book)


def book_with(*rows: Row) -> Book:
    book = Book()
    for row in (GENESIS, Declare(id="d" * 32, at="t", population="a", cap=CAPS["a"]), *rows):
        book.apply(row)
    return book


def test_what_is_refused_says_what_is_left_and_what_it_would_need() -> None:
    cap = CAPS["a"]
    book = book_with(row_of(("spend", ("a",), Charge(cap.rdp * 0.75, 0.0, ORDER)), 1))
    half = Charge(cap.rdp * 0.5, 0.0, ORDER)
    with pytest.raises(PolicyRefused) as caught:
        book.apply(row_of(("spend", ("a",), half), 2))
    text = str(caught.value)
    assert "'a'" in text
    assert f"{cap.rdp * 0.5:.4g} of RDP at order 8" in text
    assert f"{cap.rdp * 0.25:.4g} of {cap.rdp:.4g} is left" in text
    assert "Ask for 49% of its epsilon or less" in text  # what was charged was rounded up
    quarter = Charge(cap.rdp * 0.25, 0.0, ORDER)
    plan = Admit(id="b" * 32, at="t", study="5" * 64, name="s", populations=("a",), cost=quarter, blocks=2)
    with pytest.raises(PolicyRefused, match=r"Multiply the noise by 1\.42 or more, or take 49% of the steps"):
        book.apply(plan)
    with pytest.raises(PolicyRefused, match="Ask for much less epsilon"):
        book.apply(row_of(("spend", ("a",), Charge(cap.rdp * 30, 0.0, ORDER)), 2))
    with pytest.raises(PolicyRefused, match="delta besides"):
        book.apply(row_of(("spend", ("a",), Charge(0.0, cap.delta, ORDER)), 3))
    book.apply(row_of(("spend", ("a",), Charge(cap.rdp * 0.25 - 1e-12, 0.0, ORDER)), 4))
    book.apply(Declare(id="c" * 32, at="t", population="a", cap=Cap(2.0, 1e-5, ORDER)))
    for rest in (0.1, 0.0):
        with pytest.raises(PolicyRefused, match="Nothing more"):
            book.apply(row_of(("spend", ("a",), Charge(rest, 0.0, ORDER)), 5))


def test_a_cost_that_is_no_number_is_refused() -> None:
    book = book_with()
    for bad in (math.nan, -1.0, 2e6):
        with pytest.raises(CloisterError):
            book.apply(row_of(("spend", ("a",), Charge(bad, 0.0, ORDER)), 1))
        with pytest.raises(CloisterError):
            book.apply(row_of(("spend", ("a",), Charge(0.0, bad, ORDER)), 1))
    with pytest.raises(CloisterError, match="named twice"):
        book.apply(row_of(("spend", ("a", "a"), Charge(0.0, 0.0, ORDER)), 1))


def test_a_cost_at_a_higher_order_is_an_upper_bound_and_one_at_a_lower_is_not() -> None:
    book = book_with(row_of(("spend", ("a",), Charge(0.1, 0.0, ORDER + 5)), 1))
    assert status_of(book, "a").spent.rdp >= 0.1
    with pytest.raises(CloisterError, match="order 7"):
        book.apply(row_of(("spend", ("a",), Charge(0.1, 0.0, ORDER - 1)), 2))


def test_only_the_last_requests_are_remembered() -> None:
    book = book_with()
    for number in range(9000):
        book.apply(row_of(("spend", ("a",), Charge(0.0, 0.0, ORDER)), number))
    assert 4096 <= len(book.answers) < 8192
    assert f"{8999:032x}" in book.answers
    assert f"{0:032x}" not in book.answers
    assert status_of(book, "a").entries[0].count == 9000


def test_a_book_begins_once() -> None:
    with pytest.raises(CloisterError):
        Book().apply(row_of(("close", 1), 1))
    with pytest.raises(LedgerInDoubt):
        book_with().replay(GENESIS)
