"""How far a command is that reads a large model: a line now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cloister.cli.common import say

if TYPE_CHECKING:
    from cloister.learning.modelfiles.files import ModelFiles

__all__ = ["Told"]

_TELL_SECONDS: Final = 10.0


class Told:
    """A model's files; reading them piece by piece says how much of them was read.

    Args:
        files: the files.
        done: what becomes of what was read, in a word.
    """

    def __init__(self, files: ModelFiles, done: str) -> None:
        self._files, self._word = files, done
        self.digest, self.names = files.digest, files.names
        self._all = sum(map(files.size, files.names))
        self._read, self._told = 0, time.monotonic()

    def size(self, name: str) -> int:
        """Return as the files do."""
        return self._files.size(name)

    def read(self, name: str) -> bytes:
        """Return as the files do."""
        return self._files.read(name)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return as the files do."""
        self._count(length)
        return self._files.read_at(name, offset, length)

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Do as the files do."""
        self._count(out.nbytes)
        self._files.read_into(name, offset, out)

    def _count(self, length: int) -> None:
        self._read += length
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            say(f"{self._read / 1e9:,.1f} of {self._all / 1e9:,.1f} GB are {self._word} ...")
