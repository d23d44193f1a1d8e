"""The place of one upload, written over by the next.

Only the running attempt's upload is ever sent again, so there is one place on the disk, and it does not grow.
What is in it opens with the receipt that `put` returns and the key of that attempt, and with nothing else.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from cloister.crypto import Buffer
from cloister.errors import IntegrityError, StorageError
from cloister.runtime.bodies import Body, body_of
from cloister.runtime.journal.pieces import SALT_BYTES, opened, sealed

__all__ = ["Slot"]

_RECEIPT: Final = struct.Struct(f">Q{SALT_BYTES}s")


class Slot:
    """The file. Raises StorageError where it cannot be made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._failed(error) from error

    def put(self, key: bytes, record: Buffer | Body) -> bytes:
        """Write a record over the one before; return its receipt. Raises StorageError."""
        salt, position = os.urandom(SALT_BYTES), 0
        try:
            for piece in sealed(key, salt, record):
                written = 0
                while written < len(piece):
                    written += os.pwrite(self._file, piece[written:], position + written)
                position += written
        except OSError as error:
            raise self._failed(error) from error
        return _RECEIPT.pack(body_of(record).size, salt)

    def get(self, key: bytes, receipt: bytes) -> bytes:
        """Return the record of a receipt. Raises IntegrityError where it is not there any more."""
        length, salt = _RECEIPT.unpack(receipt)
        position = 0

        def read(size: int) -> bytes:
            nonlocal position
            data = os.pread(self._file, size, position)
            position += len(data)
            return data

        try:
            return bytes(opened(key, salt, length, read))
        except IntegrityError:
            raise IntegrityError(
                "the upload that was kept was altered",
                where=str(self._path),
                fix="Remove the file `epoch` beside it; the site then waits for the next epoch",
            ) from None

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _failed(self, error: OSError) -> StorageError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return StorageError(f"cannot write: {reason}", where=str(self._path), fix="Free space")
