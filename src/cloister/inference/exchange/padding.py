"""Blocks: what a frame holds, and the sizes it may have.

    block = kind u8 | length u32 | content | zeros

Content that is known whole is cut into blocks whose sum is a bucket: a power of two from 1,024 bytes to 1
MiB, a multiple of 1 MiB beyond. Streamed content is cut into blocks of 1,024 bytes, whatever it holds, so
that a short piece and a long one look alike.

Invariants: a block has 1,024 to 65,536 bytes, a power of two; its zeros are zeros, so that a plaintext has
one form. What stays visible: the bucket, and of a stream the number of blocks and their times.
"""

from __future__ import annotations

import enum
from typing import Final

from cloister.crypto import Buffer
from cloister.errors import InputError, IntegrityError

__all__ = [
    "MAX_BLOCK",
    "MAX_CONTENT",
    "STREAM_BLOCK",
    "BlockKind",
    "block",
    "blocks",
    "bucket",
    "padded",
    "unblock",
]

MAX_BLOCK: Final = 65_536
"""Bytes of the largest block."""
STREAM_BLOCK: Final = 1_024
"""Bytes of every block of a streamed body."""
_HEADER: Final = 5
MAX_CONTENT: Final = MAX_BLOCK - _HEADER
"""Bytes of content that the largest block holds."""
_STREAM_CONTENT: Final = STREAM_BLOCK - _HEADER
_SMALLEST: Final = 1_024
_STEP: Final = 1 << 20
_ZEROS: Final = bytes(MAX_BLOCK)
_SIZES: Final = frozenset(1 << power for power in range(10, 17))


class BlockKind(enum.IntEnum):
    """What a block holds."""

    HEAD = 1
    BODY = 2
    END = 3


def bucket(size: int) -> int:
    """Return the smallest bucket of at least `size` bytes."""
    if size <= _SMALLEST:
        return _SMALLEST
    if size <= _STEP:
        return int(1 << (size - 1).bit_length())
    return -(-size // _STEP) * _STEP


def padded(length: int) -> int:
    """Return the bytes of all blocks together that hold `length` bytes of content."""
    size = bucket(length + _HEADER)
    while size - _HEADER * -(-size // MAX_BLOCK) < length:
        size = bucket(size + 1)
    return size


def block(kind: BlockKind, content: Buffer, size: int) -> bytes:
    """Return one block of exactly `size` bytes. Raises InputError where `content` does not fit into it."""
    length = len(content)
    if length > size - _HEADER:
        raise InputError(f"content of {length} bytes for a block of {size}", fix="Cut it into blocks")
    header = (kind << 32 | length).to_bytes(_HEADER, "big")
    return b"".join((header, content, _ZEROS[: size - _HEADER - length]))


def blocks(kind: BlockKind, content: Buffer, *, streamed: bool = False) -> list[bytes]:
    """Return the blocks that hold `content`, at least one.

    Args:
        kind: written into each.
        content: any number of bytes.
        streamed: whether each has `STREAM_BLOCK` bytes; else their sum is a bucket.
    """
    size = len(content)
    if streamed:
        if size <= _STREAM_CONTENT:
            return [block(kind, content, STREAM_BLOCK)]
        each, count = STREAM_BLOCK, -(-size // _STREAM_CONTENT)
    else:
        total = padded(size)
        each = min(total, MAX_BLOCK)
        if total == each:
            return [block(kind, content, each)]
        count = total // each
    view, room = memoryview(content).cast("B"), each - _HEADER
    return [block(kind, view[at * room : (at + 1) * room], each) for at in range(count)]


def unblock(plaintext: bytes) -> tuple[BlockKind, memoryview]:
    """Return kind and content of a block.

    Raises:
        IntegrityError: its size, kind or length cannot be, or its padding is not zeros.
    """
    size = len(plaintext)
    if size in _SIZES:
        start = int.from_bytes(plaintext[:_HEADER], "big")
        kind, length = start >> 32, start & 0xFFFF_FFFF
        pad = size - _HEADER - length
        if 1 <= kind <= 3 and pad >= 0 and plaintext.endswith(_ZEROS[:pad]):
            return BlockKind(kind), memoryview(plaintext)[_HEADER : _HEADER + length]
    raise IntegrityError(
        "a block that is none, or padded wrongly", fix="Check that both ends run one version"
    )
