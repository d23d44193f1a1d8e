"""Landlock: a wall around files that holds whatever the mounts say; one for network and signals beside it.

Every right that the running kernel's ABI knows is handled, that is refused unless allowed: reading is
allowed beneath the named paths, writing beneath the writable ones. Nothing may be executed anywhere; no
device, socket, pipe or link made (who reads a result is not led elsewhere); no TCP port bound or connected to
(ABI 4); no device driver asked (ABI 5); no abstract socket reached and no process outside signalled (ABI 6).

Source: Documentation/userspace-api/landlock.rst of Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cloister.enclave.sandbox import kernel
from cloister.errors import PolicyRefused

__all__ = ["abi", "restrict"]

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG = 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_HANDLED_FS: Final = {
    1: (1 << 13) - 1,
    2: (1 << 14) - 1,
    3: (1 << 15) - 1,
    4: (1 << 15) - 1,
    5: (1 << 16) - 1,
}
_HANDLED_NET: Final = 0b11  # bind, connect: ABI 4
_SCOPED: Final = 0b11  # abstract Unix sockets, signals: ABI 6

_READ: Final = _READ_FILE | _READ_DIR
_WRITE: Final = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER
_FILE_RIGHTS: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE


def abi() -> int:
    """The running kernel's Landlock ABI.

    Raises:
        PolicyRefused: it has none, or it is switched off.
    """
    try:
        return kernel.landlock_abi()
    except OSError as error:
        raise PolicyRefused(
            f"this kernel has no Landlock: {error.strerror}",
            fix="Use Linux 5.13 or newer with landlock among the security modules (lsm=landlock,...)",
        ) from error


def restrict(read: Iterable[Path], write: Iterable[Path]) -> int:
    """Put the calling thread under the wall; it must be the only one. Returns the ABI that is enforced.

    Args:
        read: files and folders to be read.
        write: files and folders to be read and written.

    Raises:
        PolicyRefused: no Landlock here, or it refuses the rules.
    """
    version = abi()
    handled = _HANDLED_FS[min(version, 5)]
    try:
        ruleset = kernel.landlock_create(
            handled, _HANDLED_NET if version >= 4 else 0, _SCOPED if version >= 6 else 0, abi=version
        )
        try:
            for path in read:
                _allow(ruleset, path, _READ & handled)
            for path in write:
                _allow(ruleset, path, _WRITE & handled)
            kernel.landlock_restrict(ruleset)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise PolicyRefused(
            f"Landlock cannot be put up: {error.strerror}", where=str(error.filename or "")
        ) from error
    return version


def _allow(ruleset: int, path: Path, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.landlock_add_path(ruleset, descriptor, access if path.is_dir() else access & _FILE_RIGHTS)
    finally:
        os.close(descriptor)
