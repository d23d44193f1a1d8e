"""Reading an event log while it is written: old lines first, then new ones, through every rotation.

Lines that do not parse are counted and passed over: a process may have been killed while writing one. Fields
that are not known are of a newer version, and left alone.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from cloister.errors import InputError
from cloister.runtime.observe.log import MAX_BYTES, log_path, rotated

__all__ = ["Line", "LogReader"]

_PIECE: Final = 1 << 20
_Place = tuple[int, int]


class Line(msgspec.Struct, frozen=True):
    """A line of a log: who, when, what, and whichever of the fields that kind of event has."""

    time: datetime
    party: str
    study: str
    event: str
    role: str = ""
    rounds: int = 0
    members: tuple[str, ...] = ()
    peer: str = ""
    kind: str = ""
    protection: str = ""
    reason: str = ""
    epoch: int = 0
    round: int = 0
    attempt: int = 0
    survivors: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    seconds: float | None = None
    metrics: dict[str, float | None] | None = None
    term: int = 0
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    population: str = ""
    epsilon: float | None = None
    limit: float | None = None
    delta: float | None = None
    share: float | None = None
    count: int = 0


_decode: Final = msgspec.json.Decoder(Line).decode


class LogReader:
    """Follows one log; a context that closes the file.

    Args:
        logs: the home's folder of logs.
        study: the study's name.

    Raises:
        InputError: there is no such log, or its folder cannot be read.
    """

    def __init__(self, logs: Path, study: str) -> None:
        self._path = log_path(logs, study)
        self._file: BinaryIO | None = None
        self._rest = b""
        self.unreadable = 0
        if not self._files():
            raise InputError(
                f"there is no event log of a study {study!r} here",
                where=str(logs),
                fix="Start `cloister hub` or `cloister site` in this home, or name its home in CLOISTER_HOME",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def read(self) -> list[Line]:
        """Return the lines that were added since the last call, the oldest first.

        Raises:
            InputError: a file cannot be read.
        """
        lines: list[Line] = []
        try:
            while True:
                following = self._following()
                lines += self._drain()  # looked for a newer one before: now this one grows no more
                if following is None:
                    return lines
                self._leave()
                self._file = following
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            raise InputError(
                f"cannot read the event log: {reason}", where=str(self._path), fix="Check its permissions"
            ) from error

    def _drain(self) -> list[Line]:
        lines: list[Line] = []
        while self._file is not None and (piece := self._file.read(_PIECE)):
            *whole, self._rest = (self._rest + piece).split(b"\n")
            lines += [line for each in whole if each and (line := self._parse(each)) is not None]
            if len(self._rest) > MAX_BYTES:  # no line of ours is that long
                self._rest, self.unreadable = b"", self.unreadable + 1
        return lines

    def _parse(self, line: bytes) -> Line | None:
        try:
            return _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.unreadable += 1
            return None

    def _following(self) -> BinaryIO | None:
        """Open the file that follows the one at hand; None where that is the newest."""
        while True:
            files = self._files()
            places = [place for _, place in files]
            held = None if self._file is None else _place_of(self._file)
            number = places.index(held) + 1 if held in places else 0
            if number >= len(files):
                return None
            path, place = files[number]
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            if _place_of(file) == place:
                return file
            file.close()  # put aside since it was looked at

    def _files(self) -> list[tuple[Path, _Place]]:
        """Return the files there are and where each lies on the disk; they may move between two looks, so
        that two must agree."""
        looked = self._look()
        while (again := self._look()) != looked:
            looked = again
        return looked

    def _look(self) -> list[tuple[Path, _Place]]:
        looked = []
        for path in rotated(self._path):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            looked.append((path, (found.st_dev, found.st_ino)))
        return looked

    def _leave(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._rest:
            self._rest, self.unreadable = b"", self.unreadable + 1


def _place_of(file: BinaryIO) -> _Place:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino
