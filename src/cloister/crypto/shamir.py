"""Shamir's secret sharing over the prime field of 2**256 + 297 elements.

A secret is 32 bytes, any value. Holder i (from 0) has the value at x = i + 1 of a random polynomial of degree
threshold - 1, as 33 bytes; the secret is its value at 0. Fewer than `threshold` shares say nothing about it.

Shares carry no proof: whoever combines must know by other means (a signed hash of each share) that they are
the dealt ones. Python's integers do not run in constant time; shares and secrets here are of one use and are
not computed under an observer's clock.

Source: A. Shamir, "How to share a secret", CACM 22(11), 1979.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Final

from cloister.crypto._base import check_length
from cloister.errors import InputError, IntegrityError
from cloister.types import RandomBytes

__all__ = ["SECRET_BYTES", "SHARE_BYTES", "combine", "split"]

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
_PRIME: Final = 2**256 + 297
_MAX_HOLDERS: Final = 2**16


def _field_element(random: RandomBytes) -> int:
    """Return a uniform element: 257 random bits, drawn again where they are not below the prime."""
    while True:
        data = random(SHARE_BYTES)
        value = int.from_bytes(data, "big") & (2**257 - 1)
        if value < _PRIME:
            return value


def split(secret: bytes, threshold: int, holders: int, random: RandomBytes = os.urandom) -> list[bytes]:
    """Return one 33-byte share per holder, in order; any `threshold` of them give the secret.

    Args:
        secret: 32 bytes.
        threshold: 1 to `holders`.
        holders: at most 65536.
        random: source of the polynomial; `os.urandom` outside tests.

    Raises:
        InputError: a length or number is out of range.
    """
    check_length(secret, SECRET_BYTES, "a secret to share")
    if not 1 <= threshold <= holders <= _MAX_HOLDERS:
        raise InputError(
            f"cannot share among {holders} holders with threshold {threshold}",
            fix=f"Need 1 <= t <= n <= {_MAX_HOLDERS}",
        )
    coefficients = [_field_element(random) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "big")
    shares = []
    for x in range(1, holders + 1):
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * x % _PRIME
        shares.append(((value + constant) % _PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


@functools.lru_cache(maxsize=32)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return the Lagrange weights at 0 for the points; holds nothing secret."""
    weights = []
    for x in points:
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator = numerator * other % _PRIME
                denominator = denominator * (other - x) % _PRIME
        weights.append(numerator * pow(denominator, -1, _PRIME) % _PRIME)
    return tuple(weights)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret from the shares of at least `threshold` holders.

    Args:
        shares: holder's number (from 0) to its 33-byte share. Of more than `threshold`, those with the lowest
            numbers are used.
        threshold: the one it was split with.

    Raises:
        InputError: too few shares, or a number out of range.
        IntegrityError: a share is malformed, or the result is not a 32-byte secret, so that a share is wrong.
            A wrong share mostly gives a wrong secret instead: check the result against what is known of it.
    """
    if threshold < 1 or len(shares) < threshold:
        raise InputError(
            f"{len(shares)} shares are too few for threshold {threshold}", fix="Collect more shares"
        )
    chosen = sorted(shares)[:threshold]
    if not 0 <= chosen[0] <= chosen[-1] < _MAX_HOLDERS:
        raise InputError(
            "a holder's number is out of range", fix=f"Holders are numbered from 0 to {_MAX_HOLDERS - 1}"
        )
    total = 0
    for holder, weight in zip(chosen, _weights(tuple(holder + 1 for holder in chosen)), strict=True):
        value = int.from_bytes(shares[holder], "big")
        if len(shares[holder]) != SHARE_BYTES or value >= _PRIME:
            raise IntegrityError(f"the share of holder {holder} is malformed", fix="Ask for it again")
        total += weight * value
    secret = total % _PRIME
    if secret >= 2**256:
        raise IntegrityError(
            "the shares do not belong together", fix="Check each share against its dealer's hash"
        )
    return secret.to_bytes(SECRET_BYTES, "big")
