"""One file of a model, open: what is read later is what was hashed when it was opened, or an error."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.crypto import constant_time_equal, sha256
from cloister.errors import InputError, IntegrityError

__all__ = ["CHUNK", "OpenFile", "check_range"]

CHUNK: Final = 1 << 20
"""Bytes that are hashed, and read again, as one."""


def check_range(name: str, size: int, offset: int, length: int) -> None:
    """Raise InputError unless a file of `size` bytes has `length` of them from `offset` on."""
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError("a file of the model is shorter than its contents say", where=name[:200])


class OpenFile:
    """One open file, with the hash of each chunk.

    Args:
        name: for messages.
        place: the file; no link, and no device or pipe.

    Raises:
        InputError: it is no file.
        OSError: it cannot be opened.

    Attributes:
        size: bytes.
        digest: SHA-256 of the whole, 32 bytes.
    """

    def __init__(self, name: str, place: Path) -> None:
        self._name = name
        self._descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError("the model folder holds something that is not a file", where=name)
            self.size = status.st_size
            self._hash()
        except BaseException:
            self.close()
            raise

    def _hash(self) -> None:
        whole = hashlib.sha256()
        self._chunks: list[bytes] = []
        for start in range(0, self.size, CHUNK):
            data = self._take(start)
            whole.update(data)
            self._chunks.append(sha256(data))
        self.digest = whole.digest()

    def _take(self, start: int) -> bytes:
        try:
            data = os.pread(self._descriptor, CHUNK, start)
        except OSError as error:
            raise InputError("cannot read a file of the model", where=self._name) from error
        if len(data) != min(CHUNK, self.size - start):
            raise IntegrityError("a file of the model was cut while it was read", where=self._name)
        return data

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises:
            InputError: there are no such bytes, or they cannot be read.
            IntegrityError: they are not what was hashed.
        """
        check_range(self._name, self.size, offset, length)
        return b"".join(self._parts(offset, length))

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out`, of bytes, with those from `offset` on; raises as `read_at`."""
        check_range(self._name, self.size, offset, len(out))
        done = 0
        for part in self._parts(offset, len(out)):
            out[done : done + len(part)] = part
            done += len(part)

    def _parts(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield bytes of a range that is there, chunk by chunk, each as it was hashed."""
        for start in range(offset - offset % CHUNK, offset + length, CHUNK):
            data = self._take(start)
            if not constant_time_equal(sha256(data), self._chunks[start // CHUNK]):
                raise IntegrityError(
                    "a file of the model was changed after its folder was opened",
                    where=self._name,
                    fix="Start again",
                )
            yield memoryview(data)[max(offset - start, 0) : offset + length - start]

    def close(self) -> None:
        """Close it; safe to call again."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1
