"""What must not survive the machine: the keys of the running epoch, in memory that looks like a file.

One small file in a file system that the kernel keeps in memory (tmpfs). A process that is killed finds it
again; a reboot, a backup, or a copy of the disk does not have it, and with it goes the epoch. It holds one
`Ratchet`, overwritten in place, and says how far the log on the disk had come, so that an older copy of the
log is seen.

A half-written state counts as none. Pages of tmpfs may be swapped out, as any memory of a process: swap has
to be encrypted or off, on any machine that holds keys.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.crypto import HoldsSecret, hkdf, sha256
from cloister.errors import ProtocolError, StorageError
from cloister.runtime.journal.lock import locked

__all__ = ["Ratchet", "Volatile", "volatile_folder", "why_not_volatile"]

_STATE: Final = struct.Struct(">16s16sq32s32sQQ32s")
_MAGIC: Final = b"cloister epoch 1"
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def volatile_folder() -> Path | None:
    """Return where this user's volatile files go on this machine, None where there is no such place."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(runtime) / "cloister"] if runtime else []
    places.append(Path(f"/dev/shm/cloister-{os.geteuid()}"))  # noqa: S108  # checked for owner and mode
    return next((place for place in places if place.parent.is_dir() and _in_memory(place.parent)), None)


def why_not_volatile(folder: Path) -> str | None:
    """Make the folder where it is missing; say why it cannot hold keys, or None if it can."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        return f"{folder} cannot be made: {os.strerror(error.errno or 0)}"
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return f"{folder} is not a private folder of this user"
    if not _in_memory(folder):
        return f"{folder} is not in memory (tmpfs)"
    return None


def _in_memory(folder: Path) -> bool:
    """Tell whether the file system that holds `folder` is kept in memory."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    folder, best, kind = folder.resolve(), -1, ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = Path(before.split(" ")[4].encode().decode("unicode_escape"))
        if folder.is_relative_to(point) and len(point.parts) >= best:  # the last mount lies on top
            best, kind = len(point.parts), after.split(" ")[0]
    return kind in _IN_MEMORY


@dataclass(frozen=True, repr=False)
class Ratchet(HoldsSecret):
    """The keys of an epoch from one attempt on.

    Attributes:
        epoch: 16 random bytes that name what is kept of it on the disk.
        attempt: the last one entered, -1 before the first.
        common_key: opens what all attempts share.
        key: opens what belongs to `attempt` (before the first: to attempt 0), and leads to the later ones.
    """

    epoch: bytes
    attempt: int
    common_key: bytes
    key: bytes

    @classmethod
    def fresh(cls) -> Ratchet:
        """Return that of a new epoch."""
        return cls(os.urandom(16), -1, os.urandom(32), os.urandom(32))

    def entered(self, attempt: int) -> Ratchet:
        """Return it moved on to `attempt`. Raises ProtocolError where that is over."""
        if attempt < self.attempt:
            raise ProtocolError(f"attempt {attempt} is over, the journal is at {self.attempt}", fix="Refused")
        key = self.key
        for _ in range(max(self.attempt, 0), attempt):
            key = hkdf(key, info=b"cloister/journal/next/v1")
        return Ratchet(self.epoch, attempt, self.common_key, key)

    def secrets_key(self) -> bytes:
        """Return the key of the attempt's secrets."""
        return hkdf(self.key, info=b"cloister/journal/secrets/v1")

    def upload_key(self) -> bytes:
        """Return the key of the attempt's upload."""
        return hkdf(self.key, info=b"cloister/journal/upload/v1")


class Volatile:
    """The file.

    Args:
        folder: one for which `why_not_volatile` gave None.
        name: of the file.

    Attributes:
        ratchet: of the epoch that runs, or None.
        log: generation and count of the log on the disk, as they were told last.

    Raises:
        InputError: another process has it, over another copy of the journal.
        StorageError: it cannot be opened.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._file = locked(self._path)
        try:
            content = os.pread(self._file, _STATE.size, 0)
        except OSError as error:
            raise self._failed(error) from error
        self.ratchet: Ratchet | None = None
        self.log = (0, 0)
        if len(content) == _STATE.size and sha256(content[:-32]) == content[-32:]:
            self._unpack(content)

    def put(self, ratchet: Ratchet | None, log: tuple[int, int]) -> None:
        """Overwrite what is there. Raises StorageError."""
        epoch, attempt, common, key = b"", -1, b"", b""
        if ratchet is not None:
            epoch, attempt, common, key = ratchet.epoch, ratchet.attempt, ratchet.common_key, ratchet.key
        body = _STATE.pack(_MAGIC, epoch, attempt, common, key, *log, b"")[:-32]
        try:
            os.pwrite(
                self._file, body + sha256(body), 0
            )  # within one page: a killed process does not split it
        except OSError as error:
            raise self._failed(error) from error
        self.ratchet, self.log = ratchet, log

    def remove(self) -> None:
        """Overwrite and remove the file."""
        self.put(None, (0, 0))
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _unpack(self, content: bytes) -> None:
        magic, epoch, attempt, common, key, generation, count, _ = _STATE.unpack(content)
        if magic != _MAGIC:
            return
        self.log = (generation, count)
        if any(epoch):
            self.ratchet = Ratchet(epoch, attempt, common, key)

    def _failed(self, error: OSError) -> StorageError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return StorageError(f"cannot write: {reason}", where=str(self._path), fix="Free memory")
