"""Journals for tests: one that is a list, and ones under which a process dies. Importable, not collected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cloister.crypto import Buffer
from cloister.runtime.bodies import Body, body_of, encode_around, parts_of
from cloister.runtime.hubjournal import KeepsHub, Kept, outcomes_in
from cloister.runtime.messages import Outcome


class Killed(Exception):
    """The process of this name is no more."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ListJournal:
    """A hub's journal that outlives the hub; every record passes through its encoding.

    Attributes:
        full: whether the next round's end compacts it.
    """

    def __init__(self, *, full: bool = False) -> None:
        self.kept: list[bytes] = []
        self.full = full
        self._decoder = msgspec.msgpack.Decoder(Kept)

    def append(self, record: Kept, *, durable: bool = False) -> None:
        self.kept.append(_encoded(record))

    def records(self, *, sums: bool = True) -> Iterator[Kept]:
        for data in list(self.kept):
            yield self._decoder.decode(data)

    def set_aside(self, data: Buffer | Body) -> Buffer | Body:
        return b"".join(parts_of(data)) if isinstance(data, Body) else data

    def outcomes(self, first: int) -> list[Outcome]:
        return list(outcomes_in(self.records(), first))

    def compact(self, records: Sequence[Kept]) -> None:
        self.kept = [_encoded(record) for record in records]


def _encoded(record: Kept) -> bytes:
    return b"".join(parts_of(body_of(encode_around(record))))


class Fuse:
    """Counts down; at nought the process dies, once."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def burn(self, name: str) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise Killed(name)


class Dying:
    """Any journal under which its process dies at the fuse's end: before a record is kept, or just after.

    The fuse counts twice a record, so that every place has its number.
    """

    KEEPING = (
        "append",
        "compact",
        "promised",
        "begin_epoch",
        "entered",
        "uploaded",
        "chosen",
        "applied",
        "checkpoint",
        "end_epoch",
    )

    def __init__(self, journal: Any, fuse: Fuse, name: str) -> None:
        self._journal, self._fuse, self._name = journal, fuse, name

    def __getattr__(self, what: str) -> Any:
        found = getattr(self._journal, what)
        if what not in self.KEEPING:
            return found

        def kept(*arguments: Any, **named: Any) -> Any:
            self._fuse.burn(self._name)
            result = found(*arguments, **named)
            self._fuse.burn(self._name)
            return result

        return kept


def dying_hub(journal: ListJournal, fuse: Fuse) -> KeepsHub:
    return Dying(journal, fuse, "hub")
