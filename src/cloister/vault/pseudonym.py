"""Keyed pseudonyms in the place of identifiers: HMAC-SHA-256 under a key for each column and purpose.

The same person has the same pseudonym in every dataset that one owner ingests for the same purposes, and an
unrelated one for any other purpose or at any other owner. Nobody without the owner's secret can compute or
test one. Pseudonyms are still personal data (GDPR, recital 26): whoever holds the secret can link them.

Numbers are written in decimal before they are hashed, so that an identifier means the same as text or
integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
from cryptography.hazmat.primitives import hashes, hmac

from cloister.crypto import HoldsSecret, framed, hkdf

__all__ = ["KeyedHash", "Pseudonyms"]

_INFO: Final = b"cloister pseudonym v1"


class KeyedHash(HoldsSecret):
    """HMAC-SHA-256 of many short messages under one key; the key is prepared once.

    Args:
        key: 32 bytes.
    """

    __slots__ = ("_state",)

    def __init__(self, key: bytes) -> None:
        self._state = hmac.HMAC(key, hashes.SHA256())

    def digest(self, message: bytes) -> bytes:
        """Return 32 bytes."""
        state = self._state.copy()
        state.update(message)
        return state.finalize()


class Pseudonyms(HoldsSecret):
    """Pseudonyms for the columns of one dataset.

    Args:
        secret: 32 secret bytes of the owner.
        purposes: what the dataset may be used for; their order does not matter.
    """

    __slots__ = ("_purposes", "_secret")

    def __init__(self, secret: bytes, purposes: Sequence[str]) -> None:
        self._secret = secret
        self._purposes = sorted(set(purposes))

    def apply(self, column: str, values: pa.Array) -> pa.StringArray:
        """Return 64 hexadecimal digits for each value, null for null.

        Args:
            column: the column's name; another column has other pseudonyms.
            values: n texts or integers.
        """
        info = framed(_INFO, column.encode(), *(purpose.encode() for purpose in self._purposes))
        keyed = KeyedHash(hkdf(self._secret, info=info))
        texts = values.cast(pa.string()).to_pylist()
        return pa.array(
            [None if text is None else keyed.digest(text.encode()).hex() for text in texts], pa.string()
        )
