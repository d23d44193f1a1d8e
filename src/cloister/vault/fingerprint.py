"""Keyed fingerprints of rows, and the Merkle root over them that stands in the manifest.

A row's canonical form is, for each stored column in the order of the names (code points), one byte and 32
bytes: 0x00 and zeros for a missing value; 0x01, 24 zeros and the value as 8 bytes big-endian for numbers
(IEEE 754, no negative zero), integers (two's complement) and booleans (0, 1); 0x02 and SHA-256 of the UTF-8
text for everything else. Its fingerprint is HMAC-SHA-256 under a key that is derived from the owner's
secret and the names, so that the same row has the same fingerprint in all of the owner's datasets with
these columns, and means nothing to anybody else. The root is that of RFC 6962 over the fingerprints in the
order of the rows.

It shows the owner that rows are the ones that were ingested, in that order. It shows others only that two
datasets differ.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cloister.crypto import framed, hkdf
from cloister.log import MerkleTree
from cloister.vault.pseudonym import KeyedHash

__all__ = ["Fingerprints"]

_INFO: Final = b"cloister row fingerprint v1"
_CELL: Final = 33  # bytes of a value in the canonical row


class Fingerprints:
    """The fingerprints of the rows of one dataset, in their order.

    Args:
        secret: 32 secret bytes of the owner.
        schema: the stored columns.
    """

    def __init__(self, secret: bytes, schema: pa.Schema) -> None:
        self._names = sorted(schema.names)
        info = framed(_INFO, *(name.encode() for name in self._names))
        self._keyed = KeyedHash(hkdf(secret, info=info))
        self._tree = MerkleTree()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch that has (at least) the stored columns."""
        cells = [_cells(batch.column(name)) for name in self._names]
        rows = memoryview(np.concatenate(cells, axis=1).tobytes())
        width = _CELL * len(cells)
        for start in range(0, len(rows), width):
            self._tree.append(self._keyed.digest(bytes(rows[start : start + width])))

    def root(self) -> bytes:
        """Return the Merkle root over all rows so far: 32 bytes."""
        return self._tree.root()


def _cells(values: pa.Array) -> NDArray[np.uint8]:
    """Return uint8[n, 33], the canonical form of n values."""
    cells = np.zeros((len(values), _CELL), dtype=np.uint8)
    present = pc.is_valid(values).to_numpy(zero_copy_only=False)
    if pa.types.is_string(values.type):
        encoded = values.dictionary_encode()
        digests = b"".join(hashlib.sha256(text.encode()).digest() for text in encoded.dictionary.to_pylist())
        table = np.frombuffer(digests or bytes(32), dtype=np.uint8).reshape(-1, 32)
        indices = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
        cells[:, 0], cells[:, 1:] = 2, table[indices]
    else:
        cells[:, 0], cells[:, 25:] = 1, _words(values).astype(">u8").view(np.uint8).reshape(-1, 8)
    cells[~present] = 0
    return cells


def _words(values: pa.Array) -> NDArray[np.uint64]:
    filled = pc.fill_null(values, False if pa.types.is_boolean(values.type) else 0)
    if pa.types.is_floating(values.type):
        words: NDArray[np.uint64] = (filled.to_numpy() + 0.0).view(
            np.uint64
        )  # adding 0.0 turns -0.0 into 0.0
        return words
    return np.asarray(filled.to_numpy(zero_copy_only=False)).astype(np.int64).view(np.uint64)
