"""Matrix products in which a row's result does not depend on the rows beside it, to the last bit.

A library multiplies the rows at the edge of a matrix by other instructions, and may choose them by the
matrix's size. So products are made in tiles of `TILE` rows, all of one shape. That a tile's product does not
depend on where in it a row stands is tried for each shape before its first use; where it does, each row is a
product of its own: slower, and right. Squared norms likewise: old processors' dot products depend on where in
memory a row begins.
"""

from __future__ import annotations

import functools

import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning.heads import Array

__all__ = ["TILE", "lines_agree", "padded", "product", "slots_agree", "square_norms"]

TILE = 24
"""Rows; a multiple of what common kernels take at once, and as fast as one large product."""


def padded(rows: int) -> int:
    """Return the least multiple of `TILE` that is at least `rows`."""
    return -(-rows // TILE) * TILE


def product(rows: Array, matrix: Array, out: Array) -> Array:
    """Return rows times a matrix, each row's result the same bits in whatever company.

    Args:
        rows: float64[k, in], C-contiguous, k a multiple of `TILE`.
        matrix: float64[in, out].
        out: float64[k, out], C-contiguous, which is filled and returned.
    """
    inputs, outputs = matrix.shape
    if inputs == 1:
        np.multiply(rows, matrix, out=out)
    else:
        tile = TILE if slots_agree(inputs, outputs, matrix.flags.c_contiguous) else 1
        np.matmul(rows.reshape(-1, tile, inputs), matrix, out=out.reshape(-1, tile, outputs))
    return out


@functools.cache
def slots_agree(inputs: int, outputs: int, contiguous: bool) -> bool:
    """Return whether a row's product is the same wherever in a tile it stands, tried on some rows."""
    random = StreamRandom.from_seed(0, "slots of a tile")
    matrix = random.uniform((inputs, outputs)) - 0.5
    if not contiguous:
        matrix = np.ascontiguousarray(matrix.T).T
    rows = np.repeat(random.uniform((_trials(inputs), 1, inputs)) - 0.5, TILE, axis=1)
    result = np.matmul(rows, matrix)
    return bool((result == result[:, :1]).all())


def square_norms(rows: Array) -> Array:
    """Return |row|^2 of each row of float64[k, n], new memory; the same bits wherever a row stands."""
    if rows.shape[1] == 1:
        flat = rows[:, 0]
        return flat * flat
    square: Array = (
        np.vecdot(rows, rows) if lines_agree(rows.shape[1]) else np.add.reduce(rows * rows, axis=1)
    )
    return square


@functools.cache
def lines_agree(width: int) -> bool:
    """Return whether a row's dot product is the same wherever in memory it begins, tried on some rows."""
    rows = StreamRandom.from_seed(0, "lines of a cache").uniform((_trials(width), 1, width)) - 0.5
    repeated = np.repeat(rows, 9, axis=1)
    result = np.vecdot(repeated, repeated)
    return bool((result == result[:, :1]).all())


def _trials(length: int) -> int:
    """Return how many rows to try: sums of few terms often agree in whatever order they are made."""
    return 8 + 1024 // length
