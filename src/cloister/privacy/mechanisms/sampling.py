"""Integer noise drawn from alias tables, in blocks that stay in the processor's cache.

A draw is made of levels, the most significant first: x = first; then x = k x + next for every further level.
Each call takes one fresh 32-byte key from the operating system and reads 128 bits of its AES-256-CTR stream
for each level of each draw. No key, stream or draw is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import KEY_BYTES, Keystream
from cloister.errors import InputError
from cloister.privacy.mechanisms.alias import BYTES_PER_DRAW, AliasTable, Scratch
from cloister.types import RandomBytes

__all__ = ["IntegerNoise", "Levels", "NoiseTarget"]

Levels: TypeAlias = tuple[tuple[int, AliasTable], ...]
NoiseTarget: TypeAlias = NDArray[np.int64] | NDArray[np.uint32] | NDArray[np.uint16]

_BLOCK: Final = 8192  # draws; one level's random bytes are one block of the keystream


class IntegerNoise:
    """What the noises share. Use `DiscreteGaussian` or `DiscreteLaplace`."""

    __slots__ = ("_distance", "_levels")

    def __init__(self, levels: Levels, distance: float) -> None:
        self._levels = levels
        self._distance = distance

    @property
    def distance(self) -> float:
        """Upper bound on the total variation distance of one sample from the exact distribution."""
        return self._distance

    def sample(self, count: int, *, insecure_test_random: RandomBytes | None = None) -> NDArray[np.int64]:
        """Return int64[count], independent samples.

        Args:
            count: 0 or more.
            insecure_test_random: replaces the operating system's randomness, in tests.

        Raises:
            InputError: a negative count.
        """
        if count < 0:
            raise InputError("a number of samples is negative", fix="Give 0 or more")
        result = np.empty(count, np.int64)
        for piece, values in self._blocks(count, insecure_test_random):
            result[piece] = values
        return result

    def add_into(self, target: NoiseTarget, *, insecure_test_random: RandomBytes | None = None) -> None:
        """Add one independent sample to every element of `target`, in place; it wraps around in its ring.

        Args:
            target: int64, uint32 or uint16 of any shape, C-contiguous, native byte order.
            insecure_test_random: replaces the operating system's randomness, in tests.

        Raises:
            InputError: another array. Nothing has been added then.
        """
        flat = _flat(target)
        for piece, values in self._blocks(flat.size, insecure_test_random):
            part = flat[piece]
            np.add(part, values.astype(flat.dtype, copy=False), out=part)

    def _blocks(self, count: int, random: RandomBytes | None) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """Yield samples for `count` elements, piece by piece, each in one array that is used again."""
        stream = Keystream((random or os.urandom)(KEY_BYTES))
        scratch = Scratch(min(count, _BLOCK))
        buffer = np.empty(min(count, _BLOCK), np.int64)
        (_, leading), *rest = self._levels
        offset = 0
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            values = buffer[:size]
            length = BYTES_PER_DRAW * size
            values[:] = leading.draw(_words(stream.bytes(length, offset)), scratch)
            for multiplier, table in rest:
                offset += length
                values *= multiplier
                values += table.draw(_words(stream.bytes(length, offset)), scratch)
            offset += length
            yield slice(start, start + size), values


def _words(stream: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(stream, "<u8").astype(np.uint64, copy=False)


def _flat(target: NoiseTarget) -> NDArray[Any]:
    fits = target.dtype in (np.int64, np.uint32, np.uint16) and target.dtype.isnative
    if not (fits and target.flags.c_contiguous and target.flags.writeable):
        raise InputError(
            "noise needs a writeable contiguous array of int64, uint32 or uint16", fix="Convert it first"
        )
    return target.reshape(-1)
