"""A pseudo-random generator: the AES-256-CTR keystream, made at the speed of memory.

Definition. Block i (from 0) of the stream under a key is the keystream of AES-256-CTR (NIST SP 800-38A) over
131,072 bytes with the initial counter block i (12 bytes, big-endian) | 00000002 (hex). The same bytes are the
AES-256-GCM ciphertext of zeros under nonce i, which is how they are computed here: the library runs GCM
faster than CTR. The tag is thrown away. Any AES-CTR reproduces the stream; a test does.

A key is used for one stream. Rings of 8, 16 and 32 bits read the stream as little-endian words.

`apply_masks` works block by block, all keys on one block of the target before the next, so that target,
keystream and zeros stay in the processor's cache; nothing is copied.

`StreamRandom` draws numbers from a stream. All its draws use only operations that IEEE 754 rounds correctly
(no library logarithm or sine), so that one key gives the same bits on every machine: an initial model can be
pinned by its digest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from cloister.crypto._base import HoldsSecret, check_length
from cloister.crypto.aead import KEY_BYTES, NONCE_BYTES, TAG_BYTES
from cloister.crypto.kdf import hkdf
from cloister.errors import InputError

__all__ = ["BLOCK_BYTES", "Keystream", "RingArray", "StreamRandom", "apply_masks"]

BLOCK_BYTES: Final = 128 << 10
RingArray: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

_RING_BYTES: Final = (1, 2, 4)
_ZEROS: Final = memoryview(bytes(BLOCK_BYTES))
_MAX_LENGTH: Final = 2**62
_LOG_2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476


def _fill(cipher: AESGCM, block: int, out: memoryview) -> None:
    """Write the first len(out) - 16 bytes of keystream block `block` into `out`, and a tag nobody reads."""
    cipher.encrypt_into(block.to_bytes(NONCE_BYTES, "big"), _ZEROS[: len(out) - TAG_BYTES], None, out)


def _cipher(key: bytes) -> AESGCM:
    check_length(key, KEY_BYTES, "a keystream's key")
    return AESGCM(key)


class Keystream(HoldsSecret):
    """The stream under one 32-byte key. It has no position: methods start at `offset`, or at 0."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = _cipher(key)

    def bytes(self, length: int, offset: int = 0) -> bytes:
        """Return `length` bytes of the stream from byte `offset` on.

        Raises:
            InputError: a negative argument, or a stream of more than 2**62 bytes.
        """
        if length < 0 or offset < 0 or length + offset > _MAX_LENGTH:
            raise InputError(
                "a keystream's range is not allowed", fix="Give a length and an offset of 0 or more"
            )
        first, skip = divmod(offset, BLOCK_BYTES)
        remaining, parts = skip + length, []
        out = memoryview(bytearray(min(remaining, BLOCK_BYTES) + TAG_BYTES))
        while remaining > 0:
            size = min(remaining, BLOCK_BYTES)
            _fill(self._cipher, first, out[: size + TAG_BYTES])
            parts.append(bytes(out[skip:size]))
            first, skip, remaining = first + 1, 0, remaining - size
        return b"".join(parts)

    def add_into(self, target: RingArray, sign: int, offset: int = 0) -> None:
        """Add (sign +1) or subtract (-1) the stream's words to `target` in its ring, in place.

        Raises:
            InputError: as `apply_masks`.
        """
        _apply(_ring_view(target), [(self._cipher, _sign(sign))], offset)


def apply_masks(target: RingArray, keys: Sequence[tuple[bytes, int]], offset: int = 0) -> None:
    """Add sign * stream(key), for every (key, sign), to `target` in its ring, in place and without a copy.

    Args:
        target: uint8, uint16 or uint32, C-contiguous, native byte order; wraps around.
        keys: 32-byte keys, each with +1 or -1.
        offset: word of the stream that meets the target's first one, for a vector that arrives in pieces.

    Raises:
        InputError: another array, key length, sign or offset. Nothing has been added then.
    """
    _apply(_ring_view(target), [(_cipher(key), _sign(sign)) for key, sign in keys], offset)


def _sign(sign: int) -> Any:
    if sign not in (1, -1):
        raise InputError("a mask's sign must be +1 or -1", fix="Give one of them")
    return np.add if sign == 1 else np.subtract


def _ring_view(target: RingArray) -> NDArray[Any]:
    fits = target.dtype.kind == "u" and target.dtype.itemsize in _RING_BYTES and target.dtype.isnative
    if not (fits and target.flags.c_contiguous and target.flags.writeable):
        raise InputError(
            "masks need a writeable contiguous array of uint8, uint16 or uint32", fix="Convert it first"
        )
    return target.reshape(-1)


def _apply(target: NDArray[Any], streams: list[tuple[AESGCM, Any]], offset: int) -> None:
    if offset < 0 or offset + target.size > _MAX_LENGTH // 4:
        raise InputError("a mask's offset is out of range", fix="Give an offset of 0 or more")
    per_block = BLOCK_BYTES // target.dtype.itemsize
    out = bytearray(BLOCK_BYTES + TAG_BYTES)
    view = memoryview(out)
    words = np.frombuffer(out, target.dtype.newbyteorder("<"), per_block)
    done = 0
    while done < target.size:
        block, skip = divmod(offset + done, per_block)
        count = min(per_block - skip, target.size - done)
        piece, stream = target[done : done + count], words[skip : skip + count]
        space = view[: (skip + count) * target.dtype.itemsize + TAG_BYTES]
        for cipher, operation in streams:
            _fill(cipher, block, space)
            operation(piece, stream, out=piece)
        done += count


class StreamRandom(HoldsSecret):
    """Numbers from a stream: the same key gives the same numbers, on every machine.

    For initialisation and public choices a key from the plan; for batches and anything private
    `StreamRandom.system()`. Masks and noise of a privacy claim do not come from here.

    Args:
        key: 32 bytes.
    """

    __slots__ = ("_buffer", "_position", "_stream")

    def __init__(self, key: bytes) -> None:
        self._stream = Keystream(key)
        self._buffer = np.empty(0, np.uint64)
        self._position = 0  # bytes of the stream already moved into the buffer

    @classmethod
    def system(cls) -> StreamRandom:
        """Return a stream under a fresh key of the operating system's."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: int, purpose: str) -> StreamRandom:
        """Return the stream of a public seed (0 to 2**64 - 1) for one purpose.

        Other purposes get unrelated streams.
        """
        if not 0 <= seed < 2**64 or not purpose:
            raise InputError("a seed must be 0 to 2**64 - 1 and its purpose named", fix="Correct the seed")
        return cls(hkdf(seed.to_bytes(8, "big"), info=b"cloister seed v1 " + purpose.encode()))

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` 64-bit words."""
        missing = 8 * (count - len(self._buffer))
        if missing > 0:
            size = -(-missing // BLOCK_BYTES) * BLOCK_BYTES if missing > 4096 else 4096
            fresh = np.frombuffer(self._stream.bytes(size, self._position), "<u8").astype(
                np.uint64, copy=False
            )
            self._position += size
            self._buffer = np.concatenate((self._buffer, fresh))
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def uniform(self, shape: int | tuple[int, ...] = ()) -> NDArray[np.float64]:
        """Return float64 multiples of 2**-53 in [0, 1), uniform."""
        words = self.words(math.prod(shape) if isinstance(shape, tuple) else shape)
        return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def integers(self, high: int | NDArray[np.int64], shape: int | tuple[int, ...] = ()) -> NDArray[np.int64]:
        """Return int64 in [0, high), exactly uniform (words that would bias it are drawn again).

        Args:
            high: 1 to 2**63 - 1; one, or an array that broadcasts to `shape`.
            shape: of the result.

        Raises:
            InputError: `high` is out of range.
        """
        if np.any(np.asarray(high) < 1) or np.any(np.asarray(high) >= 2**63):
            raise InputError("a random integer needs a bound of 1 to 2**63 - 1", fix="Correct the bound")
        bound = np.broadcast_to(np.asarray(high, dtype=np.uint64), shape).reshape(-1)
        excess = (np.uint64(0) - bound) % bound  # 2**64 mod bound
        words = self.words(bound.size).copy()
        while np.any(biased := words > np.uint64(2**64 - 1) - excess):
            words[biased] = self.words(int(np.count_nonzero(biased)))
        return (words % bound).astype(np.int64).reshape(shape)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Return 0 to count - 1 in random order (equal sort keys, chance count**2 / 2**65, keep theirs)."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64, copy=False)

    def normal(self, shape: int | tuple[int, ...] = ()) -> NDArray[np.float64]:
        """Return float64 from the standard normal distribution (Marsaglia's polar method, 1964).

        For initialisation. It is not the noise of a differential privacy claim: floating point leaks.
        """
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        parts: list[NDArray[np.float64]] = []
        have = 0
        while have < count:
            pairs = self.uniform((max(16, (count - have) * 3 // 4), 2)) * 2.0 - 1.0
            square = pairs[:, 0] * pairs[:, 0] + pairs[:, 1] * pairs[:, 1]
            inside = (square > 0.0) & (square < 1.0)
            square = square[inside]
            parts.append((pairs[inside] * np.sqrt(-2.0 * _log(square) / square)[:, None]).reshape(-1))
            have += parts[-1].size
        return np.concatenate([np.empty(0), *parts])[:count].reshape(shape)


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the natural logarithm of positive x, within 1e-15 of max(1, |log x|), by + - * / alone.

    x = m 2**e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172, by its
    series to s**21.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    power = exponent.astype(np.float64) - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 21.0)
    for odd in range(19, 0, -2):
        series = series * square + 1.0 / odd
    return power * _LOG_2 + 2.0 * s * series
