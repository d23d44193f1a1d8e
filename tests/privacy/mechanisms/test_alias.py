from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.privacy.mechanisms.alias import AliasTable, Scratch

ONE = 1 << 128


@st.composite
def weights(draw: st.DrawFn) -> list[int]:
    """Sums of 2**128 of every kind: many zeros, one giant, cells that fill exactly."""
    size = draw(st.integers(2, 40))
    cuts = draw(
        st.lists(
            st.one_of(st.integers(0, ONE), st.integers(0, 64).map(lambda i: i << 122)),
            min_size=size - 1,
            max_size=size - 1,
        )
    )
    edges = [0, *sorted(cuts), ONE]
    return draw(st.permutations([b - a for a, b in itertools.pairwise(edges)]))


@settings(max_examples=200)
@given(weights(), st.integers(-100, 100))
def test_a_table_has_exactly_the_weights_it_was_given(given_weights: list[int], first: int) -> None:
    table = AliasTable(given_weights, first)
    assert table.weights() == {first + i: weight for i, weight in enumerate(given_weights) if weight}


@settings(max_examples=50)
@given(weights())
def test_every_cell_changes_its_outcome_exactly_at_its_threshold(given_weights: list[int]) -> None:
    table = AliasTable(given_weights, 0)
    bits = (len(given_weights) - 1).bit_length()
    low_bits, full = 64 - bits, 1 << (128 - bits)
    pairs = table._outcomes.reshape(-1, 2).tolist()
    draws, wanted = [], []
    for cell, (high, low) in enumerate(zip(table._high.tolist(), table._low.tolist(), strict=True)):
        threshold = (high << low_bits) + low
        other, own = pairs[cell]
        for value in (0, threshold - 1, threshold, threshold + 1, threshold ^ 1 << low_bits, full - 1):
            if 0 <= value < full:
                draws.append((value >> low_bits, (cell << low_bits) | (value & ((1 << low_bits) - 1))))
                wanted.append(own if value < threshold else other)
    words = np.array(draws, np.uint64).T.reshape(-1)
    assert table.draw(words, Scratch(len(draws))).tolist() == wanted


def test_ties_that_the_upper_half_leaves_open_are_decided_by_the_lower() -> None:
    table = AliasTable([ONE // 2 + (1 << 90) + 7, ONE // 2 - (1 << 90) - 7], 0)
    cell = next(i for i in (0, 1) if table._low[i])
    high, low = int(table._high[cell]), int(table._low[cell])
    other, own = table._outcomes.reshape(-1, 2)[cell].tolist()
    places = np.array([(cell << 63) | low - 1, (cell << 63) | low], np.uint64)
    words = np.concatenate((np.full(2, high, np.uint64), places))
    assert table.draw(words, Scratch(2)).tolist() == [own, other]


@pytest.mark.parametrize("bad", [[ONE], [ONE - 1, 0], [ONE + 1, -1], [ONE // 2, ONE // 2 + 1]])
def test_other_weights_are_refused(bad: list[int]) -> None:
    with pytest.raises(InputError, match="must sum to"):
        AliasTable(bad, 0)
