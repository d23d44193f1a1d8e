from __future__ import annotations

import contextlib
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.shamir import _PRIME, SHARE_BYTES, _field_element, combine, split
from cloister.errors import InputError, IntegrityError

SECRET = bytes(range(32))


def is_prime(number: int) -> bool:
    """Miller-Rabin with the first forty primes as bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    bases = [n for n in range(2, 180) if all(n % d for d in range(2, n))][:40]
    for base in bases:
        x = pow(base, odd, number)
        if x not in (1, number - 1) and all((x := x * x % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_modulus_is_the_first_prime_above_2_to_the_256() -> None:
    assert _PRIME == 2**256 + 297
    assert is_prime(_PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, _PRIME, 2))


def test_every_large_enough_subset_gives_the_secret() -> None:
    shares = split(SECRET, 3, 5)
    for chosen in itertools.combinations(range(5), 3):
        assert combine({holder: shares[holder] for holder in chosen}, 3) == SECRET
    assert combine(dict(enumerate(shares)), 3) == SECRET


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
@pytest.mark.parametrize(("threshold", "holders"), [(1, 1), (1, 3), (2, 2), (7, 10)])
def test_extreme_secrets_and_shapes(secret: bytes, threshold: int, holders: int) -> None:
    shares = split(secret, threshold, holders)
    assert {len(share) for share in shares} == {SHARE_BYTES}
    assert (
        combine({holder: shares[holder] for holder in range(holders - threshold, holders)}, threshold)
        == secret
    )


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.data())
def test_round_trip(secret: bytes, threshold: int, data: st.DataObject) -> None:
    holders = data.draw(st.integers(threshold, 8))
    shares = split(secret, threshold, holders)
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    assert combine({holder: shares[holder] for holder in chosen}, threshold) == secret


def test_too_few_shares_fit_every_secret() -> None:
    """For any other secret there is a polynomial through the same threshold - 1 shares: they say nothing."""
    threshold = 3
    shares = split(SECRET, threshold, 5)
    known = {1: int.from_bytes(shares[0], "big"), 4: int.from_bytes(shares[3], "big")}
    for candidate in (0, 1, 2**256 - 1, int.from_bytes(os.urandom(32), "big")):
        points = known | {0: candidate}
        x, value = (
            3,
            0,
        )  # the share that holder 2 would have, by Lagrange through (0, candidate) and the known ones
        for i, y in points.items():
            term = y
            for j in points:
                if j != i:
                    term = term * (x - j) * pow(i - j, -1, _PRIME) % _PRIME
            value += term
        forged = {0: shares[0], 3: shares[3], 2: (value % _PRIME).to_bytes(33, "big")}
        assert combine(forged, threshold) == candidate.to_bytes(32, "big")


def test_field_elements_are_uniform_by_rejection() -> None:
    draws = iter([b"\xff" * 33, _PRIME.to_bytes(33, "big"), (_PRIME - 1).to_bytes(33, "big")])
    assert _field_element(lambda count: next(draws)) == _PRIME - 1
    high = sum(_field_element(os.urandom) >> 255 for _ in range(2000))
    assert 850 < high < 1150


def test_shares_differ_between_dealings() -> None:
    assert split(SECRET, 2, 3) != split(SECRET, 2, 3)


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (-1, 3), (1, 0), (1, 2**16 + 1)])
def test_impossible_shapes_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(InputError):
        split(SECRET, threshold, holders)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_only_32_byte_secrets(length: int) -> None:
    with pytest.raises(InputError, match="32 bytes"):
        split(bytes(length), 2, 3)


def test_too_few_or_misnumbered_shares_are_refused() -> None:
    shares = split(SECRET, 2, 3)
    with pytest.raises(InputError, match="too few"):
        combine({0: shares[0]}, 2)
    with pytest.raises(InputError, match="too few"):
        combine({}, 0)
    with pytest.raises(InputError, match="out of range"):
        combine({-1: shares[0], 1: shares[1]}, 2)


@pytest.mark.parametrize("bad", [b"", bytes(32), bytes(34), _PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_malformed_shares_are_found(bad: bytes) -> None:
    with pytest.raises(IntegrityError, match="holder 1"):
        combine({0: split(SECRET, 2, 3)[0], 1: bad}, 2)


def test_a_result_that_is_no_secret_is_found() -> None:
    with pytest.raises(IntegrityError, match="belong together"):
        combine({0: (2**256 + 5).to_bytes(33, "big")}, 1)


def test_a_wrong_share_gives_another_secret() -> None:
    shares = split(SECRET, 2, 3)
    with contextlib.suppress(IntegrityError):
        assert combine({0: shares[0], 1: shares[2]}, 2) != SECRET
