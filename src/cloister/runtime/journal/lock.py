"""A file that one process at a time may hold."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cloister.errors import InputError, StorageError

__all__ = ["locked"]


def locked(path: Path) -> int:
    """Open `path` for this process alone, made where missing; closing the returned descriptor lets it go.

    Raises:
        InputError: another process, or another part of this one, holds it.
        StorageError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise StorageError(f"cannot write: {reason}", where=str(path), fix="Check the folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            "another process works with this journal", where=str(path), fix="Stop it first"
        ) from None
    return descriptor
