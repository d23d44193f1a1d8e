"""The face of the ledger: what an owner has spent on its rows, what is reserved, and what is left.

Order of use:
1. `declare` a population and its cap, once;
2. `bind` a dataset: it is charged to every population whose rows it shares, whatever its name;
3. a study: `admit` its whole plan; before a block's first byte leaves, `start` it; `commit` it when it came
   to its end; `close` the admission. A query: `spend`, before its answer is shown;
4. `status` and `debit` say what was spent.

When one of these returns, what it says is on the disk. When one raises StorageError, it is unknown whether it
took effect, and nothing may be released. What was started is spent, whatever happens next.

Any number of processes may hold the same ledger open; one of them writes (see `writer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import UNSET

from cloister.crypto import Identity
from cloister.errors import InputError, StorageError
from cloister.privacy.accounting.cost import Cost
from cloister.privacy.ledger.admission import Admission, Debit, sign_debit
from cloister.privacy.ledger.anchors import SeenHeads, anchor_place
from cloister.privacy.ledger.cap import Cap
from cloister.privacy.ledger.counting import Counters
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.fingerprints import FingerprintSet
from cloister.privacy.ledger.head import HeadFile, open_head
from cloister.privacy.ledger.link import Link
from cloister.privacy.ledger.rows import Admit, Charge, Close, Commit, Declare, Spend, Start, new_id, now
from cloister.privacy.ledger.status import Status
from cloister.privacy.ledger.view import LedgerView, ledger_exists, read_ledger
from cloister.privacy.ledger.wire import (
    AdmissionOf,
    AnchorQuery,
    AnchorRequest,
    BindRequest,
    BoundQuery,
    DebitQuery,
    HeadQuery,
    OrderQuery,
    OverlapQuery,
    PopulationsQuery,
    StatusQuery,
)
from cloister.types import check_name

__all__ = ["Ledger"]

_LONGEST = 256


class Ledger:
    """One owner's ledger. Made by `open`; close it, or use it in a with-statement."""

    def __init__(self, folder: Path, identity: Identity, link: Link, successions: Sequence[bytes]) -> None:
        self._folder = folder
        self._identity = identity
        self._link = link
        self._successions = tuple(successions)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        *,
        anchor: Path | None = None,
        successions: Sequence[bytes] = (),
        counters: Counters | None = None,
    ) -> Ledger:
        """Open the ledger in a folder, or begin one there.

        Args:
            folder: made where it is missing, for its owner alone.
            identity: the owner.
            anchor: a file elsewhere that shall hold the newest head; kept from now on, and required from now
                on. If it exists, the ledger must contain the head in it.
            successions: how the identity followed earlier ones, if the ledger was begun under an earlier one.
            counters: where a counter of this ledger alone is, such as a TPM's: no older copy then passes for
                the newest. Once it was begun, it is required.

        Raises:
            LedgerInDoubt: the ledger is not what its owner signed, older than it was seen, gone, or another
                identity's.
            InputError: the anchor cannot be one.
            StorageError: the file system refused.
        """
        folder = folder.absolute()
        place = None if anchor is None else anchor_place(anchor, folder)
        if not ledger_exists(folder):
            if place is not None and place.exists():
                raise LedgerInDoubt(
                    "there is no ledger, and the anchor says that there was one",
                    where=str(folder),
                    fix="Bring back its newest copy, or name a new anchor",
                )
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cannot make the ledger's folder: {error.strerror}",
                    where=str(folder),
                    fix="Check the path",
                ) from None
        ledger = cls(folder, identity, Link(folder, identity, successions, counters), successions)
        try:
            ledger._link.connect()
            if counters is not None and counters.begin:
                ledger._check_counted()
            if place is not None:
                ledger._set_anchor(place)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def writer_pid(self) -> int:
        """The process that writes the ledger at present."""
        return self._link.writer_pid

    def declare(self, population: str, cap: Cap) -> None:
        """Give a population its cap, or lower it; at the order it was declared with.

        Raises:
            InputError: the name is not allowed.
            PolicyRefused: the cap would rise, or change its order.
        """
        check_name(population, "a population's name")
        self._link.call(Declare(id=new_id(), at=now(), population=population, cap=cap))

    def bind(self, population: str | None, dataset_id: str, fingerprints: bytes) -> tuple[str, ...]:
        """Say which rows a dataset has; return the populations that it is charged to.

        These are the named population, those it was bound to before, and every one that has recorded one of
        its rows. Its rows are recorded in all of them.

        Args:
            population: declared; None to find it by the rows alone.
            dataset_id: of the dataset, such as the id in its manifest; not its name.
            fingerprints: 32 bytes a row, as `Vault.fingerprints` returns.

        Raises:
            PolicyRefused: no population is named and none shares a row; or the cap's delta is 1 / rows or
                more.
            InputError: the fingerprints have another length.
        """
        content = FingerprintSet.of(fingerprints).content
        request = BindRequest(
            id=new_id(), at=now(), population=population, dataset=_text(dataset_id, "an id"), content=content
        )
        answer: tuple[str, ...] = self._link.call(request, tuple[str, ...])
        return answer

    def bound(self, dataset_id: str) -> tuple[str, ...]:
        """Return the populations that a dataset is charged to; empty where it was never bound."""
        answer: tuple[str, ...] = self._link.call(BoundQuery(_text(dataset_id, "an id")), tuple[str, ...])
        return answer

    def overlap(self, fingerprints: bytes) -> tuple[str, ...]:
        """Return the populations that have recorded any of these rows; binds nothing. See `bind`."""
        content = FingerprintSet.of(fingerprints).content
        answer: tuple[str, ...] = self._link.call(OverlapQuery(content), tuple[str, ...])
        return answer

    def order(self, populations: str | Sequence[str]) -> int:
        """Return the order at which a cost to all of these populations must be computed: their highest.

        Raises:
            PolicyRefused: one was not declared.
        """
        answer: int = self._link.call(OrderQuery(_names(populations)), int)
        return answer

    def admit(
        self, populations: str | Sequence[str], study: str, name: str, cost: Cost, blocks: int
    ) -> Admission:
        """Reserve a study's whole plan.

        A study whose admission was started and not closed was interrupted: it is closed now, its unstarted
        blocks are free again, and it is refused. One that was not started is replaced.

        Args:
            populations: who is charged.
            study: digest of the plan, as 64 hexadecimal digits.
            name: for people.
            cost: of each block, at `order(populations)` or a higher order.
            blocks: how many may be started.

        Raises:
            PolicyRefused: it does not fit into what is left of a population; or it was interrupted.
            InputError: the cost is none, or was computed at a lower order.
        """
        if not 1 <= blocks <= 2**24:
            raise InputError("a study has 1 to 2**24 blocks", fix="Make blocks of more steps")
        names = _names(populations)
        charge = Charge.of(cost)
        request = Admit(
            id=new_id(),
            at=now(),
            populations=names,
            study=_digest(study),
            name=_text(name, "a study's name"),
            cost=charge,
            blocks=blocks,
        )
        number = self._link.call(request, int)
        return Admission(number, study, name, names, cost, blocks)

    def resume(self, study: str) -> Admission | None:
        """Return the newest admission of a study as it stands, or None.

        A process that was killed and holds what its study needs to go on starts the blocks that are not in
        `started`; it does not admit the study again.
        """
        answer: Admission | None = self._link.call(AdmissionOf(_digest(study)), Admission | None)
        return answer

    def start(self, admission: Admission, block: int) -> None:
        """Spend a block: when this returns, and not before, its first byte may leave.

        Raises:
            PolicyRefused: it was started before, is beyond the plan, or the admission is closed.
            StorageError: it could not be made durable; nothing may leave.
        """
        self._link.call(Start(id=new_id(), at=now(), admission=admission.number, block=_block(block)))

    def commit(self, admission: Admission, block: int) -> None:
        """Record that a started block came to its end. Raises as `start`, or InputError if it was not."""
        self._link.call(Commit(id=new_id(), at=now(), admission=admission.number, block=_block(block)))

    def close(self, admission: Admission | None = None) -> None:
        """Close an admission: its blocks that were not started are free again. Without one, leave the ledger.

        Leaving closes no admission. If this process is the writer, another may take over.

        Raises:
            PolicyRefused: the admission is closed.
        """
        if admission is None:
            self._link.close()
            return
        self._link.call(Close(id=new_id(), at=now(), admission=admission.number, interrupted=False))

    def spend(self, populations: str | Sequence[str], what: str, cost: Cost) -> None:
        """Spend one query: when this returns, and not before, its answer may be shown.

        Args:
            populations: who is charged.
            what: was asked, in a few words without any value; queries with the same words are shown together.
            cost: at `order(populations)` or a higher order.

        Raises:
            PolicyRefused: it does not fit into what is left of a population.
            InputError: the cost is none, or was computed at a lower order.
        """
        request = Spend(
            id=new_id(),
            at=now(),
            populations=_names(populations),
            what=_text(what, "a query's description"),
            cost=Charge.of(cost),
        )
        self._link.call(request)

    def populations(self) -> tuple[str, ...]:
        """Return the names of all populations, sorted."""
        answer: tuple[str, ...] = self._link.call(PopulationsQuery(), tuple[str, ...])
        return answer

    def status(self, population: str) -> Status:
        """Return a population's budget. Raises PolicyRefused where it was not declared."""
        answer: Status = self._link.call(StatusQuery(check_name(population, "a population's name")), Status)
        return answer

    def head(self) -> bytes:
        """Return the signed head: a DSSE envelope over the ledger's id, its size and its last hash.

        Who keeps it can later tell whether this ledger still contains it (`check_head`).
        """
        answer: bytes = self._link.call(HeadQuery(), bytes)
        return answer

    def debit(self, admission: Admission) -> bytes:
        """Return the signed statement of what a study has cost so far, for partners; see `open_debit`."""
        return sign_debit(self._link.call(DebitQuery(admission.number), Debit), self._identity)

    def check_head(self, envelope: bytes) -> None:
        """See that the ledger contains a head that somebody kept, and check all of it on the way.

        Raises:
            LedgerInDoubt: it does not: it was restored from an older copy, or is another one.
            IntegrityError: the envelope is not a head that the owner signed.
        """
        head = open_head(envelope, self._read().loaded.book.owners)
        self._read(SeenHeads((("a head that was kept", head),)))

    def verify(self) -> LedgerView:
        """Read the whole ledger from the disk and check every row of it; return what it says.

        Raises:
            LedgerInDoubt: it is not what its owner signed, or older than what its writer holds.
        """
        owners = self._read().loaded.book.owners
        return self._read(SeenHeads((("the head that its writer holds", open_head(self.head(), owners)),)))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Ledger {self._folder}>"

    def _read(self, contains: SeenHeads | None = None) -> LedgerView:
        return read_ledger(
            self._folder, self._identity.public, successions=self._successions, contains=contains
        )

    def _check_counted(self) -> None:
        """See that whoever writes the ledger at present counts; this process does, where it is the writer."""
        if open_head(self.head(), [self._identity.public]).counter is UNSET:
            raise InputError(
                "another process writes the ledger, without its counter",
                where=f"process {self.writer_pid}",
                fix="End it, then open the ledger with the counter first",
            )

    def _set_anchor(self, place: Path) -> None:
        if self._link.call(AnchorQuery(), str | None) == str(place):
            return
        if place.exists():
            book = self._read().loaded.book
            head = HeadFile(place, durable=True).read(book.ledger, book.owners)
            self._read(SeenHeads(((str(place), head),)))
        self._link.call(AnchorRequest(id=new_id(), at=now(), path=str(place)))


def _names(populations: str | Sequence[str]) -> tuple[str, ...]:
    names = (populations,) if isinstance(populations, str) else tuple(populations)
    if not 1 <= len(names) <= _LONGEST:
        raise InputError("a cost is charged to 1 to 256 populations", fix="Name them")
    return tuple(check_name(name, "a population's name") for name in names)


def _text(text: str, what: str) -> str:
    if not 1 <= len(text) <= _LONGEST:
        raise InputError(f"{what} has 1 to {_LONGEST} characters", fix="Shorten it")
    return text


def _digest(study: str) -> str:
    if len(study) != 64 or set(study) - set("0123456789abcdef"):
        raise InputError(
            "a study is named by the 64 hexadecimal digits of its plan's digest", fix="Give them"
        )
    return study


def _block(block: int) -> int:
    if not 0 <= block < 2**24:
        raise InputError("blocks are numbered from 0 to 2**24 - 1", fix="Count from 0")
    return block
