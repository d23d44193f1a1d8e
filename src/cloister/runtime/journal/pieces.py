"""One record as ciphertext: pieces of at most 256 KiB, each sealed while it is in the processor's cache.

Every record has a key of its own, from the file's key and a fresh salt, so its pieces are numbered from 0 and
no nonce is used twice, whatever was half-written under the same number before. The last piece says that it is
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from cloister.crypto import TAG_BYTES, Buffer, Opener, Sealer, hkdf
from cloister.errors import IntegrityError
from cloister.runtime.bodies import Body, body_of

__all__ = ["SALT_BYTES", "opened", "opened_pieces", "sealed", "sealed_bytes"]

SALT_BYTES: Final = 16
_PIECE: Final = 256 << 10


def sealed(key: bytes, salt: bytes, record: Buffer | Body) -> Iterator[memoryview]:
    """Yield the pieces of a record; each is overwritten by the next.

    Args:
        key: 32 bytes, of the file.
        salt: 16 fresh random bytes.
        record: what is sealed; read piece by piece, never copied.
    """
    body = body_of(record)
    sealer = Sealer(_record_key(key, salt), max(1, min(body.size, _PIECE)))
    for start, size, what in _pieces(body.size):
        yield sealer.seal(body.part(start, start + size), what)


def sealed_bytes(length: int) -> int:
    """Return how many bytes the pieces of a record of this length have."""
    return length + TAG_BYTES * max(1, -(-length // _PIECE))


def opened(key: bytes, salt: bytes, length: int, read: Callable[[int], bytes]) -> bytearray:
    """Return a record.

    Args:
        key: of the file.
        salt: of the record.
        length: of the record.
        read: returns the next so many bytes of ciphertext, or fewer at the end of the file.

    Raises:
        IntegrityError: it is not the one that was sealed.
    """
    record = bytearray(length)
    for start, piece in opened_pieces(key, salt, length, read):
        record[start : start + len(piece)] = piece
    return record


def opened_pieces(
    key: bytes, salt: bytes, length: int, read: Callable[[int], bytes]
) -> Iterator[tuple[int, memoryview]]:
    """Yield where each piece of a record begins, and the piece, which the next overwrites; as `opened`."""
    opener = Opener(_record_key(key, salt), max(1, min(length, _PIECE)))
    for start, size, what in _pieces(length):
        piece = read(size + TAG_BYTES)
        if len(piece) != size + TAG_BYTES:
            raise IntegrityError("a record ends too early", fix="Bring the whole file back")
        yield start, opener.open(piece, what)


def _pieces(length: int) -> Iterator[tuple[int, int, bytes]]:
    for start in range(0, max(length, 1), _PIECE):
        size = min(_PIECE, length - start)
        yield start, size, b"last" if start + size == length else b"more"


def _record_key(key: bytes, salt: bytes) -> bytes:
    return hkdf(key, salt=salt, info=b"cloister/journal/record/v1")
