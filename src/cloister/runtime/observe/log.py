"""The event log of one party in one study: JSON lines that rotate by size.

    logs/STUDY.jsonl     the newest lines; logs/STUDY.jsonl.1 is older, .2 older still

A line is `{"time", "party", "study", "event", ...}` with the fields of `event_fields`, and nothing else.

Invariants:
- a line is written whole or not at all, also on a full disk; what a killed process left of one is closed off;
- several processes of one home (a hub and its stand-by) share the file: a lock is held for each line;
- files are private (0600) and bounded, and one loud peer cannot push the history out: of refusals only
  `REFUSALS` a minute are written, and the rest are counted;
- a log that cannot be written never stops a study: lines that were lost are counted, and the count is
  written once there is room again.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cloister.errors import StorageError
from cloister.runtime.events import Event, Refused
from cloister.runtime.observe.fields import event_fields, event_name
from cloister.types import check_name

__all__ = ["EventLog", "log_path", "rotated"]

MAX_BYTES: Final = 8 << 20
KEPT: Final = 3
REFUSALS: Final = 60
_MINUTE: Final = 60.0


def log_path(logs: Path, study: str) -> Path:
    """Return where a study's event log is, in a home's folder of logs."""
    return logs / f"{check_name(study, 'study')}.jsonl"


def rotated(path: Path) -> list[Path]:
    """Return the files a log may consist of, the oldest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(KEPT, 0, -1)] + [path]


class EventLog:
    """Writes events to a file; a `Watcher`.

    Args:
        logs: the home's folder of logs; made where missing.
        study: the study's name.
        party: this party's name.
        public: the plan declares its rows public, so that measures of the model are written.
        limit: bytes at which a file is put aside.
        clock: the time, with its zone.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(
        self,
        logs: Path,
        *,
        study: str,
        party: str,
        public: bool = False,
        limit: int = MAX_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = log_path(logs, study)
        self._head = {"party": check_name(party), "study": study}
        self._public, self._limit, self._clock = public, limit, clock
        self._descriptor: int | None = None
        self._closed = False
        self.lost = 0
        self._minute, self._refused = 0.0, 0
        try:
            logs.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open()
        except OSError as error:
            raise StorageError(
                f"cannot write the event log: {os.strerror(error.errno) if error.errno else 'no such file'}",
                where=str(self.path),
                fix="Check the folder's permissions",
            ) from error

    def __call__(self, event: Event) -> None:
        """Write an event; refusals beyond the bound of their minute are counted instead."""
        if self._closed or (isinstance(event, Refused) and self._too_many()):
            return
        self._write(event_name(event), event_fields(event, public=self._public))

    def close(self) -> None:
        """Write how many refusals were left out, and close the file."""
        if not self._closed:
            self._tell_refused()
            self._closed = True
            self._close_file()

    def _too_many(self) -> bool:
        now = self._clock().timestamp()
        if not 0 <= now - self._minute < _MINUTE:  # also where the clock was set back
            self._tell_refused()
            self._minute, self._refused = now, 0
        self._refused += 1
        return self._refused > REFUSALS

    def _tell_refused(self) -> None:
        if self._refused > REFUSALS:
            self._write("refused_more", {"count": self._refused - REFUSALS})
        self._refused = 0

    def _write(self, name: str, fields: dict[str, Any]) -> None:
        now = self._clock().astimezone(UTC)
        head = {"time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z")} | self._head
        try:
            if self.lost:
                self._append(head | {"event": "lines_lost", "count": self.lost})
                self.lost = 0
            self._append(head | {"event": name} | fields)
        except OSError:
            self.lost += 1

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        descriptor = self._newest(len(line))
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody was killed while writing
                line = b"\n" + line
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(0, "the disk is full")
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _newest(self, size: int) -> int:
        """Return the newest file, locked and with room for `size` bytes."""
        while True:
            descriptor = self._open() if self._descriptor is None else self._descriptor
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = os.fstat(descriptor)
            if not self._is_newest(held):  # another process has put it aside
                self._close_file()
            elif held.st_size and held.st_size + size > self._limit:
                self._put_aside()
            else:
                return descriptor

    def _is_newest(self, held: os.stat_result) -> bool:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def _put_aside(self) -> None:
        """Move every file one place back, the oldest out; only who holds the newest one's lock does."""
        files = rotated(self.path)
        for older, newer in itertools.pairwise(files):
            if newer.exists():
                newer.replace(older)
        self._close_file()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o600)
        return self._descriptor

    def _close_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # the lock goes with it
            self._descriptor = None
