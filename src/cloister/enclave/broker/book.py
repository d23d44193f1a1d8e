"""A broker's store and its log as one: what changes is durable in the store, then entered, then acted upon.

`Book` puts every change through in this order:
1. the store commits it, with the head that the log has at this moment;
2. the hardware counter, where there is one, is raised to the value that was committed;
3. the log takes the entry;
4. the caller goes on.
If any of these fails the book is closed to everything until it is opened anew: a count may then be spent for
nothing, and is never spent twice.

Opening compares them. The log must still begin with the head that the store remembers, and what was entered
after that head must be the store's newest change and no later one: an older copy of the store, or an older or
rewritten log, is an IntegrityError. With a counter, older copies of both are noticed too; a store that has
once been opened with one does not open without it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from cloister.enclave.broker.entries import Anchored, Entry, Interrupted, decode_entry, encode_entry
from cloister.enclave.broker.store import Store
from cloister.errors import IntegrityError, StorageError
from cloister.log import Log, TreeHead
from cloister.types import Counter

__all__ = ["Book"]


class Book:
    """Store and log, opened together.

    Args:
        store: open.
        log: of the store's log id.
        at: now, for the entry on what was interrupted.
        counter: the hardware counter of this store alone; None without one.

    Attributes:
        broken: whether something could not be written, and nothing goes through any more.

    Raises:
        IntegrityError: they do not belong together as they are: something was put back or rewritten.
    """

    def __init__(self, store: Store, log: Log, at: datetime, counter: Counter | None = None) -> None:
        self.store: Final = store
        self.log: Final = log
        self._counter = counter
        self.broken = False
        self._compare_counter()
        if not self._agree():
            log.append(encode_entry(Interrupted(at, store.mark.sequence)))
        if counter is not None and store.mark.counter is None:
            self.change(store.anchor, lambda number: Anchored(at, number))

    def change(
        self, act: Callable[[TreeHead, int | None], None], entry: Callable[[int], Entry]
    ) -> tuple[int, TreeHead]:
        """Make a change durable and enter it; return the entry's index and the head over it.

        Args:
            act: the store's method, given the log's head and the counter's next value.
            entry: returns what to enter, given the change's number.

        Raises:
            StorageError: something could not be written; the book is closed.
            IntegrityError: the store is not what it was; the book is closed.
        """
        self._require_whole()
        self.broken = True  # unless all of it succeeds
        value = None if self._counter is None else self._counter.read() + 1
        act(self.log.head(), value)
        if self._counter is not None and self._counter.increment() != value:
            raise IntegrityError("somebody else uses the broker's counter", fix="Give it one of its own")
        index = self.log.append(encode_entry(entry(self.store.mark.sequence)))
        self.broken = False
        return index, self.log.head(index + 1)

    def enter(self, entry: Entry) -> tuple[int, TreeHead]:
        """Enter what changes nothing; return the entry's index and the head over it. Raises StorageError."""
        self._require_whole()
        index = self.log.append(encode_entry(entry))
        return index, self.log.head(index + 1)

    def _require_whole(self) -> None:
        if self.broken:
            raise StorageError(
                "the key broker could not write, and releases nothing",
                where=str(self.store.path),
                fix="Free space, then start it again",
            )

    def _agree(self) -> bool:
        """Return whether the newest change was entered."""
        mark = self.store.mark
        if len(self.log) < mark.log.size or self.log.head(mark.log.size) != mark.log:
            raise self._old("the log is older than the store, or was rewritten")
        numbers = [
            entry.sequence
            for index in range(mark.log.size, len(self.log))
            if (entry := decode_entry(self.log.entry(index))).sequence is not None
        ]
        if any(number != mark.sequence for number in numbers):
            raise self._old("an older copy was put back; the log knows of later changes")
        return bool(numbers) or mark.sequence == 0

    def _compare_counter(self) -> None:
        kept = self.store.mark.counter
        if self._counter is None:
            if kept is not None:
                raise self._old("it is anchored in a TPM's counter; start it with `--tpm` on its machine")
            return
        value = self._counter.read()
        if kept is None:
            if value:
                raise self._old("a copy from before its counter was put back, or anchoring was interrupted")
            self._counter.increment()
            return
        if not value:
            raise self._old("its counter is gone; this is another TPM, or it was cleared")
        if kept == value + 1:  # interrupted between commit and counter
            value = self._counter.increment()
        if kept != value:
            raise self._old("an older copy was put back; the TPM's counter has gone on")

    def _old(self, why: str) -> IntegrityError:
        return IntegrityError(
            f"the key broker's store cannot be relied on: {why}",
            where=str(self.store.path),
            fix="Nothing is released from it; bring back the newest copies of store and log",
        )
