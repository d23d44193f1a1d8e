from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.privacy.ledger.fingerprints import FingerprintSet

# Few values in each half, so that halves agree often where the whole does not.
pieces = st.sampled_from([b"\x00" * 8, b"\xff" * 8, b"\x00" * 7 + b"\x01", b"\x80" + b"\x00" * 7])
prints = st.builds(
    lambda high, low, rest: high + low + rest * 16, pieces, pieces, st.sampled_from([b"a", b"b"])
)
lists = st.lists(prints, min_size=1, max_size=12)


@given(lists, lists)
def test_sharing_a_row_is_that_of_sets(one: list[bytes], two: list[bytes]) -> None:
    left, right = (FingerprintSet.of(b"".join(each)) for each in (one, two))
    truth = bool({each[:16] for each in one} & {each[:16] for each in two})
    assert left.shares_a_row_with(right) == right.shares_a_row_with(left) == truth


@given(lists)
def test_what_is_stored_is_sorted_and_different(one: list[bytes]) -> None:
    stored = FingerprintSet.of(b"".join(one)).content
    assert stored == b"".join(sorted({each[:16] for each in one}))
    assert FingerprintSet(stored).digest() == FingerprintSet.of(b"".join(reversed(one))).digest()
    assert len(FingerprintSet(stored)) == len(stored) // 16


def test_one_row_among_many() -> None:
    many = os.urandom(32 * 100_000)
    assert FingerprintSet.of(many).shares_a_row_with(FingerprintSet.of(many[32 * 777 : 32 * 778]))
    assert not FingerprintSet.of(many).shares_a_row_with(FingerprintSet.of(os.urandom(32 * 100_000)))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(InputError):
        FingerprintSet.of(bytes(length))


@pytest.mark.parametrize("content", [b"", bytes(15), bytes(32), b"\x01" * 16 + bytes(16)])
def test_what_is_not_a_stored_set_is_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        FingerprintSet(content)
