"""Fixed point: real vectors become integers of the ring Z_2^bits, and a sum of them becomes real again.

Invariants:

- the unit is a power of two, 2**-k, the finest for which n vectors cannot overflow: no encoded value has more
  than `largest` units, and `parties * largest < 2**(bits - 1)`, or the plan is refused;
- values beyond +-value_range are clamped to it (`clamped` counts them); NaN and infinities are refused, since
  a clamp would hide a model that has diverged;
- in rings of 16 and 32 bits values are rounded half to even: the same vector gives the same integers;
- in a ring of 8 bits they are rounded at random, so that they are kept on average: nearest would lose all
  that is smaller than half a unit. The randomness is fresh in each call, so a vector encoded twice gives two
  results; what has left is kept and sent again, never encoded again;
- because the unit is a power of two nothing is rounded a second time: `decode_sum` returns exactly the sum
  of the rounded values, and all parties get the same bits;
- negative integers stand in two's complement, so ring addition is integer addition as long as nothing
  overflows.

Stretches of a vector may have ranges, and so units, of their own. Every method takes any slice of the vector,
and is told at which element it starts.

A total that the stated number of vectors cannot produce proves that some party did not encode by the rules;
it is refused. Overflow that ends inside the range cannot be seen in a sum: integrity against lying sites is
not claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError, ProtocolError
from cloister.secagg.fixedpoint import FixedPoint, round_at_random

__all__ = ["FEWEST_LEVELS", "RING_BITS", "Encoding", "RingVector", "ring_dtype"]

RING_BITS = (8, 16, 32)
FEWEST_LEVELS = 4
"""Values on either side of zero that a ring of 8 bits must leave each vector; 31 of them have as many."""
RingVector = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
"""A vector of ring elements, little-endian, uint8, uint16 or uint32."""

_BLOCK = 32768
"""Elements per pass: the block of the input and the work buffers stay in the second-level cache together."""

_Floats = NDArray[np.floating[Any]]


def ring_dtype(bits: int) -> np.dtype[Any]:
    """Return the dtype of ring elements: 'u1', '<u2' or '<u4'. Raises PlanError for another width."""
    if bits not in RING_BITS:
        raise PlanError(f"bits = {bits} in [aggregation]", fix="This version has rings of 8, 16 and 32 bits")
    return np.dtype(f"<u{bits // 8}")


class Encoding:
    """The map between float vectors and the ring, the same at every party of a study.

    Args:
        bits: ring width, 8, 16 or 32.
        parties: n, the most vectors that are ever added.
        value_range: the largest absolute value a coordinate may have; larger ones are clamped.
        ranges: (stop, value_range) of stretches that have a range of their own: the first from element 0 to
            `stop`, the next from there on. `value_range` is that of all elements after the last.

    Attributes:
        fixed: the grid of coordinates that have no range of their own.

    Raises:
        PlanError: the width is unknown, a range is not a positive finite number, n vectors could overflow, or
            a ring of 8 bits leaves each of them fewer than four values on either side of zero.
        InputError: the stretches do not follow one another.
    """

    def __init__(
        self, bits: int, parties: int, value_range: float, ranges: Sequence[tuple[int, float]] = ()
    ) -> None:
        self.dtype = ring_dtype(bits)
        self.bits = bits
        self.parties = parties
        most = _most(bits, parties)
        self.fixed = FixedPoint.fit(most, value_range, at_random=self.at_random)
        self._pieces: list[tuple[int, FixedPoint]] = []
        for stop, own in ranges:
            if stop <= (self._pieces[-1][0] if self._pieces else 0):
                raise InputError("stretches with ranges of their own do not follow one another")
            self._pieces.append((stop, FixedPoint.fit(most, own, at_random=self.at_random)))

    @property
    def at_random(self) -> bool:
        """Whether values are rounded at random; else to the nearest."""
        return self.bits == 8

    @property
    def value_range(self) -> float:
        """The range of coordinates that have none of their own."""
        return self.fixed.value_range

    @property
    def exponent(self) -> int:
        """k of their unit 2**-k."""
        return self.fixed.exponent

    @property
    def scale(self) -> float:
        """2**k."""
        return self.fixed.scale

    @property
    def unit(self) -> float:
        """The distance between neighbouring values of theirs, a power of two."""
        return self.fixed.unit

    @property
    def largest(self) -> int:
        """The most units that a value of theirs has."""
        return self.fixed.largest

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, FixedPoint]]:
        """Yield (first, end, grid) of the stretches that make up elements [start, stop) of the vector."""
        for end, fixed in self._pieces:
            if start < min(end, stop):
                yield start, min(end, stop), fixed
                start = min(end, stop)
        if start < stop:
            yield start, stop, self.fixed

    def encode(self, vector: _Floats, start: int = 0, random: StreamRandom | None = None) -> RingVector:
        """Round a vector, or a slice of one, to the grid.

        Args:
            vector: float64[d] or float32[d]; not modified.
            start: which element of the whole vector its first one is.
            random: of rounding in a ring of 8 bits; a fresh stream of the operating system's unless a test
                says otherwise.

        Returns:
            uint[d] of the ring's width, a new array.

        Raises:
            InputError: not a float vector, or it holds NaN or an infinity.
        """
        random = random or (StreamRandom.system() if self.at_random else None)
        out: RingVector = np.empty(vector.shape, dtype=self.dtype)
        signed = out.view(f"<i{self.bits // 8}")
        work = np.empty((2, min(_BLOCK, vector.size)), dtype=np.float64)
        for first, block, fixed, outside in self._blocks(vector, start):
            scaled = work[0, : block.size]
            if outside:
                block = np.clip(block, -fixed.value_range, fixed.value_range, dtype=np.float64)
            np.multiply(block, fixed.scale, out=scaled, dtype=np.float64)
            if random is not None and self.at_random:
                round_at_random(scaled, random, work[1, : block.size])
            else:
                np.rint(scaled, out=scaled)
            signed[first : first + block.size] = scaled
        return out

    def clamped(self, vector: _Floats, start: int = 0) -> int:
        """Count the coordinates beyond their range, which `encode` would clamp.

        The count is computed from the owner's rows: it stays with its owner unless it is charged or public.
        """
        beyond = 0
        for _, block, fixed, outside in self._blocks(vector, start):
            if outside:
                beyond += int(np.count_nonzero(np.abs(block.astype(np.float64)) > fixed.value_range))
        return beyond

    def decode_sum(self, total: RingVector, count: int, start: int = 0) -> NDArray[np.float64]:
        """Turn the ring sum of `count` encoded vectors, or a slice of it, into the exact sum of their
        rounded values.

        Args:
            total: uint[d] of the ring's width.
            count: how many vectors were added, 1 to n.
            start: which element of the whole vector its first one is.

        Returns:
            float64[d], not divided by `count`.

        Raises:
            InputError: wrong dtype, shape or count.
            ProtocolError: no `count` vectors encoded by the rules have this sum.
        """
        if total.dtype != self.dtype or total.ndim != 1:
            raise InputError(f"the total is not a vector of {self.bits}-bit ring elements")
        if not 1 <= count <= self.parties:
            raise InputError(f"a sum of {count} vectors", where=f"encoding for {self.parties}")
        signed = total.view(f"<i{self.bits // 8}")
        decoded = np.empty(total.size, dtype=np.float64)
        for first, end, fixed in self.pieces(start, start + total.size):
            piece, bound = signed[first - start : end - start], count * fixed.largest
            if int(piece.max()) > bound or int(piece.min()) < -bound:
                raise ProtocolError(
                    "the sum lies outside what its sites can have sent",
                    fix="A site did not clamp its update, or used another model; leave the round out",
                )
            np.multiply(piece, fixed.unit, out=decoded[first - start : end - start])
        return decoded

    def to_bytes(self, vector: RingVector) -> memoryview:
        """Return the elements' little-endian bytes, where they lie; not copied."""
        return np.ascontiguousarray(vector, dtype=self.dtype).data.cast("B").toreadonly()

    def from_bytes(self, data: bytes | memoryview, size: int) -> RingVector:
        """Return a read-only uint[size] over `data`. Raises ProtocolError where the length does not fit."""
        if len(data) != size * self.dtype.itemsize:
            raise ProtocolError(
                f"a vector has {len(data)} bytes where {size} elements of {self.bits} bits are due"
            )
        vector: RingVector = np.frombuffer(data, dtype=self.dtype)
        return vector

    def _blocks(self, vector: _Floats, start: int) -> Iterator[tuple[int, _Floats, FixedPoint, bool]]:
        """Yield (first, block, its grid, whether any value lies beyond its range), `first` counted within
        `vector`; what is not finite is refused."""
        if vector.ndim != 1 or vector.dtype not in (np.float64, np.float32):
            raise InputError(
                "an update is one vector of float64 or float32", where=f"got {vector.dtype}, {vector.ndim}-d"
            )
        for begin, end, fixed in self.pieces(start, start + vector.size):
            for first in range(begin - start, end - start, _BLOCK):
                block = vector[first : min(first + _BLOCK, end - start)]
                high, low = float(block.max()), float(block.min())  # both are NaN if any value is
                if not (math.isfinite(high) and math.isfinite(low)):
                    raise InputError(
                        "the update holds NaN or an infinity",
                        fix="Lower the learning rate, or check the features' bounds",
                    )
                yield first, block, fixed, high > fixed.value_range or low < -fixed.value_range


def _most(bits: int, parties: int) -> int:
    """Return how many units a value may have at most, so that as many as `parties` cannot overflow."""
    limit = (1 << (bits - 1)) - 1
    if not 1 <= parties <= limit:
        raise PlanError(
            f"{parties} vectors cannot be added in a ring of {bits} bits", fix="Take a wider ring"
        )
    most = limit // parties
    if bits == 8 and most < FEWEST_LEVELS:
        values = "value" if most == 1 else "values"
        raise PlanError(
            f"a ring of 8 bits leaves each of {parties} sites {most} {values} on either side of zero",
            where="[aggregation] bits",
            fix=f"Write bits = 16, or take at most {limit // FEWEST_LEVELS} sites",
        )
    return most
