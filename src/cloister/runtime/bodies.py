"""Bytes that need not lie in memory in one piece: what is sent or written is read from them a part at a time.

A model's update or sum has hundreds of megabytes. A message that carries one is encoded around it
(`encode_around`), to the very bytes that the plain encoder gives, and link and journal read it as it goes.
`SealedBody` keeps such bytes in a file that has no name, under a key that no other process ever has: for what
many receivers get, each at its own pace, and for what no disk may hold in the clear.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from cloister.crypto import TAG_BYTES, Buffer, HoldsSecret
from cloister.crypto.aead import Numbered
from cloister.errors import IntegrityError, StorageError

__all__ = ["LEAST_BYTES", "Body", "Joined", "SealedBody", "as_field", "body_of", "encode_around", "parts_of"]

PART_BYTES: Final = 256 << 10
LEAST_BYTES: Final = 1 << 20
"""What is smaller is copied into its message."""


class Body(ABC):
    """Bytes with a length; each part can be asked for again and again, and is always the same."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes in all."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Buffer:
        """Return bytes [start, stop), which must lie within."""


class _View(Body):
    """Bytes in memory; a part is a view."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data).cast("B").toreadonly()

    @property
    def size(self) -> int:
        return len(self._data)

    def part(self, start: int, stop: int) -> memoryview:
        return self._data[start:stop]


class Joined(Body):
    """Bodies one after another; what does not lie within one of them is copied together."""

    def __init__(self, parts: Sequence[Buffer | Body]) -> None:
        self._parts = [body_of(part) for part in parts]
        self._size = sum(part.size for part in self._parts)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def part(self, start: int, stop: int) -> Buffer:
        """Return bytes [start, stop): a view where one part has them all."""
        found: list[Buffer] = []
        for each in self._parts:
            if start < each.size and stop > 0:
                found.append(each.part(max(start, 0), min(stop, each.size)))
            start, stop = start - each.size, stop - each.size
        return found[0] if len(found) == 1 else b"".join(found)


class SealedBody(Body, HoldsSecret):
    """Bytes in a file without a name, encrypted under a key that dies with this object.

    Args:
        folder: where the file lies, for as long as this object lives.
        data: is copied there.

    Raises:
        StorageError: the folder takes no more.
    """

    def __init__(self, folder: Path, data: Buffer | Body) -> None:
        body = body_of(data)
        self._size, self._folder = body.size, folder
        self._cipher = Numbered(secrets.token_bytes(32))
        self._last: tuple[int, bytes] = (-1, b"")
        self._lock = threading.Lock()
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
            for number, part in enumerate(parts_of(body)):
                sealed = self._cipher.seal(number, part, b"body")
                written = 0
                while written < len(sealed):
                    written += os.write(self._file, memoryview(sealed)[written:])
        except OSError as error:
            raise self._failed(error) from error

    def __repr__(self) -> str:
        return f"<SealedBody of {self._size} bytes>"

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def part(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop). Raises StorageError where the file cannot be read any more."""
        found = []
        for number in range(start // PART_BYTES, -(-stop // PART_BYTES)):
            first = number * PART_BYTES
            found.append(self._opened(number)[max(start - first, 0) : stop - first])
        return found[0] if len(found) == 1 else b"".join(found)

    def _opened(self, number: int) -> bytes:
        with self._lock:
            if self._last[0] != number:  # readers at one pace want the same one
                length = min(PART_BYTES, self._size - number * PART_BYTES) + TAG_BYTES
                try:
                    sealed = os.pread(self._file, length, number * (PART_BYTES + TAG_BYTES))
                    self._last = number, self._cipher.open(number, sealed, b"body")
                except OSError as error:
                    raise self._failed(error) from error
                except IntegrityError:
                    raise StorageError("what was set aside was altered", where=str(self._folder)) from None
            return self._last[1]

    def _failed(self, error: OSError) -> StorageError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return StorageError(f"cannot set aside: {reason}", where=str(self._folder), fix="Free space")


def body_of(data: Buffer | Body) -> Body:
    """Return it as a body."""
    return data if isinstance(data, Body) else _View(data)


def parts_of(body: Body, most: int = PART_BYTES) -> Iterator[Buffer]:
    """Yield all of it, in parts of `most` bytes; one empty part where it is empty."""
    for start in range(0, max(body.size, 1), most):
        yield body.part(start, min(start + most, body.size))


def as_field(data: Buffer | Body) -> memoryview:
    """Return it for a message's field of bytes: what is large as a body, which `encode_around` knows."""
    body = body_of(data)
    return cast("memoryview", body) if body.size >= LEAST_BYTES else memoryview(body.part(0, body.size))


def encode_around(message: Any) -> bytes | Joined:
    """Return the msgpack bytes of a message, with large fields (`as_field`) where they are.

    What comes out is what the plain encoder makes of the same message with those fields as bytes.
    """
    held: list[tuple[bytes, Body]] = []

    def hold(body: Any) -> Any:
        if not isinstance(body, Body):
            raise NotImplementedError  # how msgspec is told that a value has no encoding
        held.append((secrets.token_bytes(16), body))
        return held[-1][0]

    encoded = msgspec.msgpack.encode(message, enc_hook=hold)
    if not held:
        return encoded
    parts: list[Buffer | Body] = []
    for token, body in held:
        before, encoded = encoded.split(b"\xc4\x10" + token, 1)
        parts += [before + b"\xc6" + body.size.to_bytes(4, "big"), body]
    return Joined([*parts, encoded])
