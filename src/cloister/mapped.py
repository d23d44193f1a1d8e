"""Large bytes in a file that is mapped into memory, for who reads or writes them once, from front to back.

The file has no name and goes with the last view of it. Its pages count as this process's memory only between
being touched and `forget`. What is put there lies on the disk as it is: ciphertext, or what may be read.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from cloister.errors import StorageError

__all__ = ["forget", "mapped"]


def mapped(folder: Path, size: int) -> memoryview:
    """Return writeable room for `size` bytes, at least 1, in a new file in `folder`.

    Raises:
        StorageError: the folder has no room for it; there is never less than was given.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a page without room would end the process
            return memoryview(mmap.mmap(file.fileno(), size))
    except OSError as error:
        what = f"no room for {size} bytes: {os.strerror(error.errno or 0)}"
        raise StorageError(what, where=str(folder), fix="Free space") from None


def forget(view: memoryview) -> None:
    """Let whole pages under a view of a mapped file leave memory; they come back from the file where they are
    read again. Nothing happens to what is in no such file."""
    base = view.obj
    if not isinstance(base, mmap.mmap) or not view.nbytes:
        return
    start = _address(view) - _address(memoryview(base))
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = start + view.nbytes
    stop = end if end == len(base) else end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < stop:
        base.madvise(mmap.MADV_DONTNEED, first, stop - first)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
