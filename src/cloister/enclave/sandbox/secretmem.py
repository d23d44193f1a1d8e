"""Secrets in memory that the kernel itself has no mapping of: memfd_secret(2), Linux 5.14.

What is written there is in no swap and no core file, and the kernel cannot reach it through its own map.
Where the kernel has none (or it is switched off) plain memory is used, locked where allowed, and `protected`
is False. Python copies what it computes with: `view` gives the bytes without a copy, `get` makes one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

from cloister.enclave.sandbox import kernel
from cloister.errors import InputError

__all__ = ["SecretBytes", "available"]


def _map(size: int) -> tuple[mmap.mmap, bool]:
    try:
        descriptor = kernel.memfd_secret()
    except OSError:
        return mmap.mmap(-1, size), False
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size), True
    except OSError:  # beyond the limit on locked memory
        return mmap.mmap(-1, size), False
    finally:
        os.close(descriptor)


def available() -> bool:
    """Whether secret memory can be had here, now."""
    memory, protected = _map(mmap.PAGESIZE)
    memory.close()
    return protected


class SecretBytes:
    """A secret, kept in secret memory where there is some, and overwritten by `wipe`.

    Args:
        secret: at least one byte. A bytearray is overwritten once it was taken over.

    Raises:
        InputError: it is empty.
    """

    def __init__(self, secret: bytes | bytearray) -> None:
        if not secret:
            raise InputError("an empty secret cannot be kept")
        self._size = len(secret)
        pages = -(-self._size // mmap.PAGESIZE)
        self._memory, self._protected = _map(pages * mmap.PAGESIZE)
        if not self._protected:
            self._memory.madvise(mmap.MADV_DONTDUMP)
        self._memory[: self._size] = bytes(secret) if isinstance(secret, bytearray) else secret
        if isinstance(secret, bytearray):
            secret[:] = bytes(self._size)

    @property
    def protected(self) -> bool:
        """Whether it lies in memory that memfd_secret gave."""
        return self._protected

    @contextlib.contextmanager
    def view(self) -> Iterator[memoryview]:
        """The secret itself, not a copy, read-only, until the block ends.

        Raises:
            InputError: it was wiped.
        """
        if self._memory.closed:
            raise InputError("this secret was wiped")
        with memoryview(self._memory) as whole, whole[: self._size] as part, part.toreadonly() as secret:
            yield secret

    def get(self) -> bytes:
        """A copy in ordinary memory, for callers that need bytes.

        Raises:
            InputError: it was wiped.
        """
        with self.view() as secret:
            return bytes(secret)

    def wipe(self) -> None:
        """Overwrite and let go of it; further calls do nothing."""
        if not self._memory.closed:
            self._memory[:] = bytes(len(self._memory))
            self._memory.close()

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"SecretBytes({self._size} bytes)"

    def __enter__(self) -> SecretBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, BufferError, ValueError):
            self.wipe()
