"""Fixed point: real vectors become integers of the ring Z_2^bits, and a sum of them becomes real again.

Invariants:

- the unit is a power of two, 2**-k, the finest for which n vectors cannot overflow: with
  `largest = round(value_range / unit)` holds `parties * largest < 2**(bits - 1)`, or the plan is refused;
- values beyond +-value_range are clamped to it (`clamped` counts them), the rest is rounded half to even;
  NaN and infinities are refused, since a clamp would hide a model that has diverged;
- because the unit is a power of two nothing is rounded a second time: `decode_sum` returns exactly the sum
  of the rounded values, and all parties get the same bits;
- negative integers stand in two's complement, so ring addition is integer addition as long as nothing
  overflows.

A total that the stated number of vectors cannot produce proves that some party did not encode by the rules;
it is refused. Overflow that ends inside the range cannot be seen in a sum: integrity against lying sites is
not claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, PlanError, ProtocolError

__all__ = ["RING_BITS", "Encoding", "RingVector", "ring_dtype"]

RING_BITS = (16, 32)
RingVector = NDArray[np.uint16] | NDArray[np.uint32]
"""A vector of ring elements, little-endian, uint16 or uint32."""

_BLOCK = 32768
"""Elements per pass: the block of the input and the work buffer stay in the second-level cache together."""


def ring_dtype(bits: int) -> np.dtype[Any]:
    """Return the dtype of ring elements: '<u2' or '<u4'. Raises PlanError for another width."""
    if bits not in RING_BITS:
        raise PlanError(f"bits = {bits} in [aggregation]", fix="This version has rings of 16 and 32 bits")
    return np.dtype(f"<u{bits // 8}")


class Encoding:
    """The map between float vectors and the ring, the same at every party of a study.

    Args:
        bits: ring width, 16 or 32.
        parties: n, the most vectors that are ever added.
        value_range: the largest absolute value a coordinate may have; larger ones are clamped.

    Raises:
        PlanError: the width is unknown, the range is not a positive finite number, or n vectors could
            overflow.
    """

    def __init__(self, bits: int, parties: int, value_range: float) -> None:
        self.dtype = ring_dtype(bits)
        if not (math.isfinite(value_range) and 1e-30 <= value_range <= 1e30):
            raise PlanError(
                "value_range in [aggregation] must be positive and finite", fix="Give a number such as 1.0"
            )
        if not 1 <= parties < 2 ** (bits - 1):
            raise PlanError(
                f"{parties} vectors cannot be added in a ring of {bits} bits", fix="Take a wider ring"
            )
        self.bits = bits
        self.parties = parties
        self.value_range = float(value_range)
        # the greatest k with value_range * 2**k <= (2**(bits-1) - 1) // parties, exactly
        most, most_exponent = math.frexp((2 ** (bits - 1) - 1) // parties)
        mantissa, exponent = math.frexp(self.value_range)
        self.exponent = most_exponent - exponent - (mantissa > most)
        self.scale = 2.0**self.exponent
        self.largest = round(self.value_range * self.scale)

    @property
    def unit(self) -> float:
        """The distance between neighbouring values, a power of two."""
        return 1.0 / self.scale

    def encode(self, vector: NDArray[np.floating[Any]]) -> RingVector:
        """Round a vector to the grid.

        Args:
            vector: float64[d] or float32[d]; not modified.

        Returns:
            uint[d] of the ring's width, a new array.

        Raises:
            InputError: not a float vector, or it holds NaN or an infinity.
        """
        out: RingVector = np.empty(vector.shape, dtype=self.dtype)
        signed = out.view(f"<i{self.bits // 8}")
        work = np.empty(min(_BLOCK, vector.size), dtype=np.float64)
        for start, block, outside in self._blocks(vector):
            scaled = work[: block.size]
            if outside:
                block = np.clip(block, -self.value_range, self.value_range, dtype=np.float64)
            np.multiply(block, self.scale, out=scaled, dtype=np.float64)
            np.rint(scaled, out=scaled)
            signed[start : start + block.size] = scaled
        return out

    def clamped(self, vector: NDArray[np.floating[Any]]) -> int:
        """Count the coordinates beyond +-value_range, which `encode` would clamp.

        The count is computed from the owner's rows: it stays with its owner unless it is charged or public.
        """
        beyond = 0
        for _, block, outside in self._blocks(vector):
            if outside:
                beyond += int(np.count_nonzero(np.abs(block.astype(np.float64)) > self.value_range))
        return beyond

    def decode_sum(self, total: RingVector, count: int) -> NDArray[np.float64]:
        """Turn the ring sum of `count` encoded vectors into the exact sum of their rounded values.

        Args:
            total: uint[d] of the ring's width.
            count: how many vectors were added, 1 to n.

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
        bound = count * self.largest
        if total.size and (int(signed.max()) > bound or int(signed.min()) < -bound):
            raise ProtocolError(
                "the sum lies outside what its sites can have sent",
                fix="A site did not clamp its update, or used another model; leave the round out",
            )
        decoded: NDArray[np.float64] = signed * np.float64(self.unit)
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

    def _blocks(
        self, vector: NDArray[np.floating[Any]]
    ) -> Iterator[tuple[int, NDArray[np.floating[Any]], bool]]:
        """Yield (start, block, whether any value lies beyond the range), refusing what is not finite."""
        if vector.ndim != 1 or vector.dtype not in (np.float64, np.float32):
            raise InputError(
                "an update is one vector of float64 or float32", where=f"got {vector.dtype}, {vector.ndim}-d"
            )
        for start in range(0, vector.size, _BLOCK):
            block = vector[start : start + _BLOCK]
            high, low = float(block.max()), float(block.min())  # both are NaN if any value is
            if not (math.isfinite(high) and math.isfinite(low)):
                raise InputError(
                    "the update holds NaN or an infinity",
                    fix="Lower the learning rate, or check the features' bounds",
                )
            yield start, block, high > self.value_range or low < -self.value_range
