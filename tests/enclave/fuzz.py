"""Mutations of genuine bytes, for parsers that may raise nothing but InputError."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

VARIABLE = "CLOISTER_FUZZ_SECONDS"
_EDGES = (0x00, 0x01, 0x7F, 0x80, 0xFF)


def fuzz_seconds(default: float = 30.0) -> float:
    """Return how long a fuzz test runs: 30 s, or what $CLOISTER_FUZZ_SECONDS says."""
    return float(os.environ.get(VARIABLE, default))


def flips(data: bytes, positions: Iterator[int] | range | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (position, data with the lowest bit there flipped) at every position, or at those given."""
    for position in range(len(data)) if positions is None else positions:
        changed = bytearray(data)
        changed[position] ^= 0x01
        yield position, bytes(changed)


def mutations(data: bytes, seconds_or_count: float | int, seed: int) -> Iterator[bytes]:
    """Yield mutations of some bytes, the same ones for the same seed.

    Args:
        data: what is mutated.
        seconds_or_count: an int yields that many; a float goes on for that many seconds.
        seed: of the pseudo-random choices.
    """
    chance = random.Random(seed)  # noqa: S311 - what is chosen is no secret
    if isinstance(seconds_or_count, int):
        for _ in range(seconds_or_count):
            yield _mutated(data, chance)
        return
    end = time.monotonic() + seconds_or_count
    while time.monotonic() < end:
        yield _mutated(data, chance)


def _mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        _change(changed, chance)
    return bytes(changed)


def _change(data: bytearray, chance: random.Random) -> None:
    """Change bytes in place: a bit, a byte, an edge value, a length, a cut, a copy or an insertion."""
    at = chance.randrange(len(data)) if data else 0
    length = chance.choice((1, 2, 4, 8, 32, 200))
    match chance.randrange(8) if data else 7:
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at] = chance.randrange(256)
        case 2:
            data[at] = chance.choice(_EDGES)
        case 3:  # an integer field of 2, 4 or 8 bytes at an edge
            width = chance.choice((2, 4, 8))
            data[at : at + width] = bytes([chance.choice(_EDGES)] * len(data[at : at + width]))
        case 4:
            del data[at:]
        case 5:
            del data[at : at + length]
        case 6:
            start = chance.randrange(len(data))
            data[at:at] = data[start : start + length]
        case _:
            data[at:at] = chance.randbytes(length)
