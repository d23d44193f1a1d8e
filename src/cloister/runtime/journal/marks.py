"""The few numbers of a study that must outlive the machine: promises that are never to be made twice.

A file of two places; each write goes to the older one, with a running number and a digest, so that one that
was interrupted leaves the other. `highest_epoch` and `highest_term` are on the disk when a call returns. The
count of attempts is with the next of them, or when the system sees fit: after a loss of power it may lag, and
what limits spending is the ledger, which does not.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from cloister.crypto import sha256
from cloister.errors import IntegrityError, ProtocolError, StorageError
from cloister.files import write_atomic

__all__ = ["Marks"]

_PLACE: Final = struct.Struct(">16sQqQQ16s")
_MAGIC: Final = b"cloister marks 1"


class Marks:
    """The numbers, and the file they are in.

    Args:
        path: the file; made where missing.

    Attributes:
        highest_epoch: the highest roster that was countersigned, -1 for none.
        highest_term: the highest term of a hub that was followed.
        attempts_used: attempts entered in the whole study.

    Raises:
        IntegrityError: there is a file, and it holds no numbers.
        StorageError: it cannot be read or made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self.highest_epoch, self.highest_term, self.attempts_used = -1, 0, 0
        if not path.exists():
            write_atomic(path, 2 * self._place(0, -1, 0, 0), mode=0o600)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            content = os.pread(self._file, 2 * _PLACE.size, 0)
        except OSError as error:
            raise self._failed(error) from error
        self._read(content)

    def promise(self, epoch: int) -> None:
        """Raise the highest epoch; on the disk on return. Raises ProtocolError where it is no higher."""
        if epoch <= self.highest_epoch:
            raise ProtocolError(
                f"a roster with number {epoch} or a higher one was countersigned before", fix="Refused"
            )
        self._write(durable=True, epoch=epoch)

    def obey(self, term: int) -> None:
        """Raise the highest term, if it is a higher one; on the disk on return."""
        if term > self.highest_term:
            self._write(durable=True, term=term)

    def use(self, attempts: int) -> None:
        """Raise the count of attempts."""
        if attempts > self.attempts_used:
            self._write(durable=False, attempts=attempts)

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _place(self, number: int, epoch: int, term: int, attempts: int) -> bytes:
        body = _PLACE.pack(_MAGIC, number, epoch, term, attempts, b"")[:-16]
        return body + sha256(body)[:16]

    def _read(self, content: bytes) -> None:
        found = []
        for start in (0, _PLACE.size):
            place = content[start : start + _PLACE.size]
            if len(place) == _PLACE.size and place[:16] == _MAGIC and sha256(place[:-16])[:16] == place[-16:]:
                found.append(_PLACE.unpack(place)[1:-1])
        if not found:
            self.close()
            raise IntegrityError(
                "the numbers of this study are not what was written",
                where=str(self._path),
                fix="Bring the file back",
            )
        self._number, self.highest_epoch, self.highest_term, self.attempts_used = max(found)

    def _write(
        self, *, durable: bool, epoch: int | None = None, term: int | None = None, attempts: int | None = None
    ) -> None:
        """Write, and only then hold, what is given."""
        number = self._number + 1
        numbers = (
            self.highest_epoch if epoch is None else epoch,
            self.highest_term if term is None else term,
            self.attempts_used if attempts is None else attempts,
        )
        try:
            os.pwrite(self._file, self._place(number, *numbers), number % 2 * _PLACE.size)
            if durable:
                os.fdatasync(self._file)
        except OSError as error:
            raise self._failed(error) from error
        self._number = number
        self.highest_epoch, self.highest_term, self.attempts_used = numbers

    def _failed(self, error: OSError) -> StorageError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return StorageError(f"cannot write: {reason}", where=str(self._path), fix="Check disk and folder")
