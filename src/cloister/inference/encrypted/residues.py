"""Polynomials as bytes on the wire: each residue in as many bytes as its modulus needs, little-endian.

A polynomial is uint64[moduli, N], each residue below its modulus, in the order in which SEAL keeps it. What
comes from somebody else is read here and nowhere else: a residue that is not below its modulus is refused, so
what the C++ library gets are numbers in range within a layout that this package wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Buffer
from cloister.errors import IntegrityError

__all__ = ["Polynomial", "pack", "packed_bytes", "unpack"]

Polynomial = NDArray[np.uint64]


def _width(prime: int) -> int:
    return (prime.bit_length() + 7) // 8


def packed_bytes(primes: Sequence[int], degree: int) -> int:
    """Return how many bytes `pack` makes."""
    return degree * sum(_width(prime) for prime in primes)


def pack(polynomial: Polynomial, primes: Sequence[int]) -> bytes:
    """Return the bytes of a polynomial, uint64[moduli, N]."""
    rows = np.ascontiguousarray(polynomial, dtype="<u8").view(np.uint8).reshape(*polynomial.shape, 8)
    return b"".join(row[:, : _width(prime)].tobytes() for row, prime in zip(rows, primes, strict=True))


def unpack(data: Buffer, primes: Sequence[int], degree: int) -> Polynomial:
    """Return the polynomial in exactly `packed_bytes` bytes.

    Raises:
        IntegrityError: another length, or a residue is not below its modulus.
    """
    if len(data) != packed_bytes(primes, degree):
        raise IntegrityError("a ciphertext has another length than it must have", fix="Get the file again")
    given = np.frombuffer(data, dtype=np.uint8)
    found = np.zeros((len(primes), degree, 8), dtype=np.uint8)
    at = 0
    for into, prime in zip(found, primes, strict=True):
        end = at + degree * _width(prime)
        into[:, : _width(prime)] = given[at:end].reshape(degree, _width(prime))
        at = end
    polynomial: Polynomial = found.reshape(len(primes), degree * 8).view("<u8").astype(np.uint64)
    if (polynomial >= np.array(primes, dtype=np.uint64)[:, None]).any():
        raise IntegrityError("a ciphertext holds a number out of range", fix="Get the file again")
    return polynomial
