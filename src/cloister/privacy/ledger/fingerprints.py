"""Sets of row fingerprints: how they are stored, and whether two share a row.

Of each 32-byte fingerprint the first 16 bytes are kept, sorted and without repetition. They are keyed hashes
under the owner's secret: two of 2**40 different rows agree in 128 bits with probability 2**-49, and then a
dataset shares a budget that it need not share.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import sha256
from cloister.errors import InputError

__all__ = ["FINGERPRINT_BYTES", "KEPT_BYTES", "MAX_ROWS", "FingerprintSet"]

FINGERPRINT_BYTES: Final = 32
KEPT_BYTES: Final = 16
MAX_ROWS: Final = 30_000_000
_PAIR: Final = np.dtype([("high", ">u8"), ("low", ">u8")])


class FingerprintSet:
    """The fingerprints of a dataset's rows, as they are stored.

    Args:
        content: n times 16 bytes, n >= 1, sorted and different; from `of` or from the ledger.

    Raises:
        InputError: it is not that.
    """

    def __init__(self, content: bytes) -> None:
        if not content or len(content) % KEPT_BYTES:
            raise InputError("a set of fingerprints has a wrong length", fix="Make it with `of`")
        self.content: Final = content
        pairs = np.frombuffer(content, dtype=_PAIR)
        self._high: NDArray[np.uint64] = pairs["high"].astype(np.uint64)
        self._low: NDArray[np.uint64] = pairs["low"].astype(np.uint64)
        if not np.all(_later(self._high, self._low)[1:]):
            raise InputError("a set of fingerprints is not sorted", fix="Make it with `of`")

    @classmethod
    def of(cls, fingerprints: bytes) -> FingerprintSet:
        """Return the set of n times 32 bytes.

        Raises:
            InputError: there is none, more than 30 million, or a length that is no multiple of 32.
        """
        count, rest = divmod(len(fingerprints), FINGERPRINT_BYTES)
        if rest or not 0 < count <= MAX_ROWS:
            raise InputError(
                f"a dataset must have 1 to {MAX_ROWS:,} row fingerprints of {FINGERPRINT_BYTES} bytes",
                fix="Take them from `Vault.fingerprints`",
            )
        kept = np.frombuffer(fingerprints, dtype=np.uint8).reshape(count, FINGERPRINT_BYTES)[:, :KEPT_BYTES]
        pairs = np.ascontiguousarray(kept).view(_PAIR).reshape(count)
        high, low = pairs["high"].astype(np.uint64), pairs["low"].astype(np.uint64)
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        fresh = _later(high, low)
        stored = np.empty(int(fresh.sum()), dtype=_PAIR)
        stored["high"], stored["low"] = high[fresh], low[fresh]
        return cls(stored.tobytes())

    def __len__(self) -> int:
        return len(self._high)

    def digest(self) -> str:
        """Return SHA-256 of the stored bytes, as 64 hexadecimal digits."""
        return sha256(self.content).hex()

    def shares_a_row_with(self, other: FingerprintSet) -> bool:
        """Return whether any fingerprint is in both."""
        few, many = (self, other) if len(self) <= len(other) else (other, self)
        first = np.searchsorted(many._high, few._high, side="left")
        last = np.searchsorted(many._high, few._high, side="right")
        # The first 8 bytes tell nearly always; the rest is compared where they agree.
        for index in np.flatnonzero(first < last):
            if np.any(many._low[first[index] : last[index]] == few._low[index]):
                return True
        return False


def _later(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return for each pair whether it is greater than the one before; true for the first."""
    later = np.ones(len(high), dtype=bool)
    later[1:] = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return later
