from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from cloister.privacy.ledger.units import (
    DELTA_BITS,
    RDP_BITS,
    charge,
    grant,
    shown_at_least,
    shown_at_most,
)

values = st.floats(0, 1e6) | st.floats(0, 1e-12)
bits = st.sampled_from([RDP_BITS, DELTA_BITS])


@given(values, bits)
def test_charges_round_up_and_grants_down_by_less_than_a_unit(value: float, width: int) -> None:
    unit = Fraction(1, 2**width)
    assert Fraction(value) <= charge(value, width) * unit < Fraction(value) + unit
    assert Fraction(value) - unit < grant(value, width) * unit <= Fraction(value)


@given(st.integers(0, 2**70), bits)
def test_what_is_shown_claims_less(units: int, width: int) -> None:
    exact = Fraction(units, 2**width)
    assert Fraction(shown_at_least(units, width)) >= exact
    assert Fraction(shown_at_most(units, width)) <= exact
    assert abs(Fraction(shown_at_least(units, width)) - exact) <= exact / 2**51


@given(st.lists(st.floats(0, 1e-3), max_size=50))
def test_the_sum_of_charges_is_never_below_the_sum(values: list[float]) -> None:
    """Floats would lose it: 1e16 + 1 is 1e16."""
    total = sum(charge(value, RDP_BITS) for value in values)
    assert Fraction(total, 2**RDP_BITS) >= sum(map(Fraction, values), Fraction(0))
    assert Fraction(shown_at_least(total, RDP_BITS)) >= sum(map(Fraction, values), Fraction(0))
