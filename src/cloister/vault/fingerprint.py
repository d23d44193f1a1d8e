"""Keyed fingerprints of rows, and the Merkle root over them that stands in the manifest.

A row's canonical form is, for each stored column in the order of the names (code points), one byte that is 1
where there is a value, and then
- 8 bytes big-endian for a number (IEEE 754, no negative zero), an integer (two's complement), a boolean;
- SHA-256 of the UTF-8 text for everything else;
zeros where the value is missing. Its fingerprint is HMAC-SHA-256 under a key that is derived from the
owner's secret and the names and kinds of the columns, so that the same row has the same fingerprint in all
of the owner's datasets with these columns, and means nothing to anybody else. The root is that of RFC 6962
over the fingerprints in the order of the rows.

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


class Fingerprints:
    """The fingerprints of the rows of one dataset, in their order.

    Args:
        secret: 32 secret bytes of the owner.
        schema: the stored columns.
    """

    def __init__(self, secret: bytes, schema: pa.Schema) -> None:
        self._names = sorted(schema.names)
        kinds = (f"{name}\n{schema.field(name).type}".encode() for name in self._names)
        self._keyed = KeyedHash(hkdf(secret, info=framed(_INFO, *kinds)))
        self._tree = MerkleTree()

    def add(self, batch: pa.RecordBatch) -> list[bytes]:
        """Add the rows of a batch that has (at least) the stored columns; return their fingerprints."""
        rows = np.concatenate([_cells(batch.column(name)) for name in self._names], axis=1)
        flat, width = rows.tobytes(), rows.shape[1]
        digests = [self._keyed.digest(flat[start : start + width]) for start in range(0, len(flat), width)]
        for digest in digests:
            self._tree.append(digest)
        return digests

    def root(self) -> bytes:
        """Return the Merkle root over all rows so far: 32 bytes."""
        return self._tree.root()


def _cells(values: pa.Array) -> NDArray[np.uint8]:
    """Return uint8[n, 9] or uint8[n, 33], the canonical form of n values."""
    present = pc.is_valid(values).to_numpy(zero_copy_only=False)
    content = _digests(values) if pa.types.is_string(values.type) else _words(values)
    return np.where(present[:, None], np.insert(content, 0, 1, axis=1), np.uint8(0))


def _digests(texts: pa.Array) -> NDArray[np.uint8]:
    """Return uint8[n, 32]: SHA-256 of each text, anything for null."""
    encoded = texts.dictionary_encode()
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in encoded.dictionary.to_pylist())
    table = np.frombuffer(digests or bytes(32), dtype=np.uint8).reshape(-1, 32)
    chosen: NDArray[np.uint8] = table[pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)]
    return chosen


def _words(values: pa.Array) -> NDArray[np.uint8]:
    """Return uint8[n, 8]: each value big-endian, zero for null."""
    filled = pc.fill_null(values, False if pa.types.is_boolean(values.type) else 0)
    if pa.types.is_floating(values.type):
        words = (filled.to_numpy() + 0.0).astype(">f8")  # adding 0.0 turns -0.0 into 0.0
    else:
        words = filled.to_numpy(zero_copy_only=False).astype(">i8")
    cells: NDArray[np.uint8] = words.view(np.uint8).reshape(-1, 8)
    return cells
