"""A counter that anchors a ledger: the newest head carries its value, so an older copy carries an older one.

Once a `types.Counter` anchors a ledger, every group of rows is committed with a head that says the
value after the counter's present one, and the counter is incremented before anybody is answered. So of what
was ever answered, nothing can be put back unseen, also where the whole disk is put back. From then on the
counter is required: without it, nothing is spent.

What a head says, when a ledger is opened, against the counter:

    the same value      the newest copy
    the value after it  its writer was killed before it incremented, and nobody was answered: that is done now
    0                   its writer was killed while the counter was taken into use: that is begun anew
    nothing, and the counter is 0
                        it is taken into use now: first a head that says 0, then the counter is made
    nothing, and it is not to be taken into use
                        no counter is looked at
    anything else       an older copy, another ledger's counter, or a counter that somebody else moved

It is as good as the counter. One of a software TPM is a file, and is put back with the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.head import Head
from cloister.types import Counter

__all__ = ["Counters", "Counting"]


@dataclass(frozen=True)
class Counters:
    """Where the counter of a ledger is.

    Attributes:
        of: gives it by the ledger's id; asked only where one anchors the ledger, or shall.
        begin: whether a ledger without one shall be anchored from now on.
    """

    of: Callable[[str], Counter]
    begin: bool = False


class Counting:
    """The counter of one open ledger.

    Args:
        counters: where its counter is; None for nowhere.
        head: the newest, as it was read.
        folder: the ledger's, for messages.

    Raises:
        LedgerInDoubt: they do not belong together.
    """

    def __init__(self, counters: Counters | None, head: Head, folder: Path) -> None:
        wanted = counters is not None and (counters.begin or isinstance(head.counter, int))
        counter = counters.of(head.ledger) if counters is not None and wanted else None
        self._counter = counter
        self._where = str(folder)
        self.begins = False
        """Whether the first head with a counter is still to be written."""
        self._present = 0
        if counter is None and isinstance(head.counter, int):
            raise LedgerInDoubt(
                "the ledger is anchored by a counter, and is opened without it",
                where=self._where,
                fix="Open it on the machine, and with the TPM, that it was kept with",
            )
        if counter is not None:
            self._present = counter.read()
            self._compare(counter, head)

    def _compare(self, counter: Counter, head: Head) -> None:
        said = head.counter
        if said == 0 or (said is msgspec.UNSET and self._present == 0):
            self.begins = True
        elif said == self._present + 1:
            self.counted(said)
        elif said != self._present:
            raise LedgerInDoubt(
                "the ledger was restored from an older copy: its counter has moved on"
                if not isinstance(said, int) or said < self._present
                else "the counter is not the one that anchors this ledger",
                where=self._where,
                fix="Bring back its newest copy; what was spent since cannot be known otherwise",
            )

    def next(self) -> int | msgspec.UnsetType:
        """Return what the next head says: 0 in the one that begins."""
        if self._counter is None:
            return msgspec.UNSET
        return 0 if self.begins else self._present + 1

    def counted(self, said: int | msgspec.UnsetType) -> None:
        """Increment, after a head that says so is on the disk and before anybody is answered.

        Raises:
            LedgerInDoubt: somebody else moved the counter.
        """
        if self._counter is None:
            return
        if self.begins:
            self._present, self.begins = self._counter.increment(), False
            return
        self._present = self._counter.increment()
        if self._present != said:
            raise LedgerInDoubt(
                "somebody else has moved the counter that anchors this ledger",
                where=self._where,
                fix="Give every ledger a counter of its own",
            )
