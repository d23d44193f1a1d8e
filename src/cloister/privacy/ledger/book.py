"""The state of the ledger: what its rows, in their order, add up to. No I/O, no clock.

`apply` takes one row. It checks, and only then changes; a row that does not fit raises and changes nothing.
The same checks admit a row when it is made and when it is read again, so no sequence of rows, whoever signed
it, overdraws a cap, raises one, starts a block twice or refunds a started one.

Invariants, for every population, in whole units (see `units`):
- spent = all queries + cost of every block that was ever started;
- held = cost of every block of an open admission that was not started;
- a row is admitted only if spent + held stays within the cap, in RDP and in delta.

A cost at a higher order than a cap's is an upper bound at the cap's (Renyi divergence grows with the order),
so one cost may be charged to populations of different orders if it was computed at the highest.

A dataset is charged to all populations its rows were found in when it was bound, and its rows are recorded
in all of them: so the first population that a row was ever recorded in is charged for everything that is
ever computed from it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cloister.crypto import PublicIdentity, follows
from cloister.errors import CloisterError, InputError, PolicyRefused
from cloister.privacy.ledger.cap import Cap
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.refusals import overdraft
from cloister.privacy.ledger.rows import (
    Admit,
    AnchorAt,
    Bind,
    Charge,
    Close,
    Commit,
    Declare,
    Genesis,
    Owner,
    Row,
    Spend,
    Start,
)
from cloister.privacy.ledger.units import DELTA_BITS, RDP_BITS, charge, grant

__all__ = ["Account", "Book", "Plan", "RowSet", "Tally"]

_REMEMBERED: Final = 4096
"""Requests whose answer is kept for a retry. A retry that comes later is refused or charged again."""


class Tally(msgspec.Struct):
    """Queries of one kind in a population: how many, and their cost in units."""

    count: int = 0
    rdp: int = 0
    delta: int = 0


class Account(msgspec.Struct):
    """A population: its cap, and what is spent and held of it, in units."""

    cap: Cap
    spent_rdp: int = 0
    spent_delta: int = 0
    held_rdp: int = 0
    held_delta: int = 0
    queries: dict[str, Tally] = {}

    def left(self) -> tuple[int, int]:
        """Return what may still be reserved, in units; below 0 where the cap was lowered under it."""
        rdp, delta = grant(self.cap.rdp, RDP_BITS), grant(self.cap.delta_terms, DELTA_BITS)
        return rdp - self.spent_rdp - self.held_rdp, delta - self.spent_delta - self.held_delta


class Plan(msgspec.Struct):
    """An admission: what was reserved, which blocks were started and which came to their end."""

    study: str
    name: str
    populations: tuple[str, ...]
    cost: Charge
    rdp: int
    delta: int
    blocks: int
    started: set[int]
    committed: set[int]
    state: Literal["open", "closed", "interrupted"] = "open"


class RowSet(msgspec.Struct):
    """Fingerprints that were bound: the digest of the stored set, their number, where they belong."""

    dataset: str
    populations: tuple[str, ...]
    sha256: str
    count: int


Answer = int | tuple[str, ...] | None


class Book(msgspec.Struct):
    """All of the state. Made by `Book()`, filled by `apply`; encoded whole for a checkpoint."""

    size: int = 0
    ledger: str = ""
    tag_key: str = ""
    owners: list[PublicIdentity] = []
    anchor: str | None = None
    accounts: dict[str, Account] = {}
    datasets: dict[str, tuple[str, ...]] = {}
    sets: list[RowSet] = []
    plans: dict[str, Plan] = {}
    studies: dict[str, int] = {}
    answers: dict[str, tuple[int, Answer]] = {}

    @property
    def owner(self) -> PublicIdentity:
        """Whose ledger it is at present."""
        return self.owners[-1]

    def apply(self, row: Row) -> Answer:
        """Take one more row; return the answer to the request that made it.

        Raises:
            CloisterError: the row does not fit, and nothing was changed.
        """
        if (self.size == 0) != isinstance(row, Genesis):
            raise InputError("a ledger begins with its owner, once", fix="Begin a new ledger")
        answer = self._take(row)
        self.size += 1
        self.answers[row.id] = (self.size, answer)
        if len(self.answers) >= 2 * _REMEMBERED:
            oldest = self.size - _REMEMBERED
            self.answers = {key: kept for key, kept in self.answers.items() if kept[0] > oldest}
        return answer

    def replay(self, row: Row) -> None:
        """Take a row that was stored. Raises LedgerInDoubt where it does not follow those before it."""
        try:
            self.apply(row)
        except CloisterError as error:
            raise LedgerInDoubt(
                f"row {self.size + 1} of the ledger does not follow from those before it: {error.what}",
                fix="Restore the ledger from its newest copy",
            ) from None

    def account(self, population: str) -> Account:
        """Return a population's account. Raises PolicyRefused where it was not declared."""
        found = self.accounts.get(population)
        if found is None:
            raise PolicyRefused(
                f"the population {population!r} has no budget",
                fix="Declare one with `cloister budget DATASET --epsilon ... --delta ...`",
            )
        return found

    def plan(self, admission: int) -> Plan:
        """Return an admission. Raises InputError where there is none of this number."""
        found = self.plans.get(str(admission))
        if found is None:
            raise InputError(f"the ledger has no admission {admission}", fix="Ask for one with `admit`")
        return found

    def _take(self, row: Row) -> Answer:
        match row:
            case Start():
                self._start(row)
            case Commit():
                self._commit(row)
            case Spend():
                self._spend(row)
            case Admit():
                return self._admit(row)
            case Close():
                self._close(row)
            case Bind():
                return self._bind(row)
            case Declare():
                self._declare(row)
            case AnchorAt():
                self.anchor = row.path
            case Owner():
                if not follows(self.owner, row.owner, row.successions):
                    raise InputError("the new owner does not follow the old one", fix="Give the successions")
                self.owners.append(row.owner)
            case Genesis():
                self.ledger, self.tag_key, self.owners = row.ledger, row.tag_key, [row.owner]
        return None  # a checkpoint is compared with the state by `store`

    def _declare(self, row: Declare) -> None:
        known = self.accounts.get(row.population)
        if known is None:
            self.accounts[row.population] = Account(row.cap)
            return
        old, new = known.cap, row.cap
        if new.order != old.order or new.epsilon > old.epsilon or new.delta > old.delta:
            raise PolicyRefused(
                f"the population {row.population!r} has epsilon {old.epsilon:g}, delta {old.delta:g} at "
                f"order {old.order}, and a cap is only ever lowered, at its order",
                fix="What was promised stays promised; choose a lower epsilon or delta",
            )
        known.cap = new

    def _bind(self, row: Bind) -> tuple[str, ...]:
        for population in row.populations:
            self.account(population)
        missing = set(self.datasets.get(row.dataset, ())) - set(row.populations)
        if missing or len(set(row.populations)) < len(row.populations):
            raise InputError("a dataset leaves no population", where=row.dataset, fix="Name them all, once")
        self.datasets[row.dataset] = row.populations
        self.sets.append(RowSet(row.dataset, row.populations, row.sha256, row.count))
        return row.populations

    def _spend(self, row: Spend) -> None:
        rdp, delta = self._afford(row.populations, row.cost, 1)
        for population in row.populations:
            account = self.accounts[population]
            account.spent_rdp += rdp
            account.spent_delta += delta
            tally = account.queries.setdefault(row.what, Tally())
            tally.count, tally.rdp, tally.delta = tally.count + 1, tally.rdp + rdp, tally.delta + delta

    def _admit(self, row: Admit) -> int:
        before = self.studies.get(row.study)
        if before is not None and self.plan(before).state != "closed":
            raise PolicyRefused("this study was admitted before", fix="Close its admission")
        rdp, delta = self._afford(row.populations, row.cost, row.blocks)
        for population in row.populations:
            account = self.accounts[population]
            account.held_rdp += rdp * row.blocks
            account.held_delta += delta * row.blocks
        number = self.size + 1
        self.plans[str(number)] = Plan(
            row.study, row.name, row.populations, row.cost, rdp, delta, row.blocks, set(), set()
        )
        self.studies[row.study] = number
        return number

    def _afford(self, populations: tuple[str, ...], cost: Charge, times: int) -> tuple[int, int]:
        """Return `cost` in units, if all populations can bear it `times` times."""
        if len(set(populations)) < len(populations):
            raise InputError("a population is named twice", fix="Name each once")
        if not (0 <= cost.rdp <= 1e6 and 0 <= cost.delta < 1):  # NaN passes the checks of a message's types
            raise InputError("a cost is not a number", fix="Take it from the accountant")
        rdp, delta = charge(cost.rdp, RDP_BITS), charge(cost.delta, DELTA_BITS)
        for population in populations:
            account = self.account(population)
            if cost.order < account.cap.order:
                raise InputError(
                    f"a cost was computed at order {cost.order}, and the budget of {population!r} is kept at "
                    f"order {account.cap.order}",
                    fix="Compute it at the order of the population's cap, or a higher one",
                )
            left_rdp, left_delta = account.left()
            if rdp * times > left_rdp or delta * times > left_delta:
                need, left = (rdp * times, delta * times), (left_rdp, left_delta)
                raise overdraft(population, account.cap, need, left, blocks=times)
        return rdp, delta

    def _start(self, row: Start) -> None:
        plan = self._open_plan(row.admission, row.block)
        if row.block in plan.started:
            raise PolicyRefused(
                f"block {row.block} of {plan.name} was started before, and is run once",
                fix="Go on with the next block",
            )
        plan.started.add(row.block)
        for population in plan.populations:
            account = self.accounts[population]
            account.held_rdp -= plan.rdp
            account.held_delta -= plan.delta
            account.spent_rdp += plan.rdp
            account.spent_delta += plan.delta

    def _commit(self, row: Commit) -> None:
        plan = self._open_plan(row.admission, row.block)
        if row.block not in plan.started:
            raise InputError(f"block {row.block} of {plan.name} was not started", fix="Start it first")
        plan.committed.add(row.block)

    def _open_plan(self, admission: int, block: int) -> Plan:
        plan = self.plan(admission)
        if plan.state != "open":
            raise PolicyRefused(
                f"the admission of {plan.name} is {plan.state} and starts no more blocks",
                fix="Ask for a new admission",
            )
        if block >= plan.blocks:
            raise PolicyRefused(
                f"{plan.name} was admitted for {plan.blocks} blocks, and block {block} is beyond them",
                fix="Stop here; a longer study needs a plan of its own",
            )
        return plan

    def _close(self, row: Close) -> None:
        plan = self.plan(row.admission)
        if plan.state != "open":
            raise PolicyRefused(f"the admission of {plan.name} is {plan.state} already", fix="Go on")
        unstarted = plan.blocks - len(plan.started)
        for population in plan.populations:
            account = self.accounts[population]
            account.held_rdp -= plan.rdp * unstarted
            account.held_delta -= plan.delta * unstarted
        plan.state = "interrupted" if row.interrupted else "closed"
