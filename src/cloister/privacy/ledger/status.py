"""What a ledger says of itself: a population's cap, what is spent, held and left, and for what it was spent.

Spent and held are rounded up, left is rounded down. `Worth` says in figures people know what a rest would
buy; it admits nothing.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cloister.crypto import hmac_sha256
from cloister.privacy.accounting.cost import Cost
from cloister.privacy.ledger.book import Book, Plan, Tally
from cloister.privacy.ledger.cap import Cap
from cloister.privacy.ledger.units import DELTA_BITS, RDP_BITS, shown_at_least, shown_at_most
from cloister.privacy.ledger.worth import gaussian_worth, laplace_rdp

__all__ = ["NOT_DETECTABLE", "Entry", "Status", "Worth", "population_tag", "status_of", "worth"]

NOT_DETECTABLE: Final = "not detectable"
"""What `Status.rollback_detected` says without an anchor: a home put back whole looks like the newest."""
_QUERY_EPSILON: Final = 0.1


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One study, or all queries of one kind.

    Attributes:
        kind: study or query.
        name: of the study, or what was asked.
        study: digest of the study's plan, as 64 hexadecimal digits; None for queries.
        spent: of started blocks, or of the queries.
        held: of blocks that may still start.
        count: how many blocks were started, or how many queries were answered.
        blocks: how many blocks were admitted; 0 for queries.
        committed: how many blocks came to their end; 0 for queries.
        state: of an admission; "spent" for queries.
    """

    kind: Literal["study", "query"]
    name: str
    study: str | None
    spent: Cost
    held: Cost
    count: int
    blocks: int
    committed: int
    state: Literal["open", "closed", "interrupted", "spent"]


class Worth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rest would buy, one of the three; figures to plan with.

    Attributes:
        noise_multiplier: of one Gaussian release that takes all of it; None where nothing is left.
        epsilon: of that release at the cap's delta, which is what one more study could have, about.
        queries: how many queries with Laplace noise of epsilon 0.1.
    """

    noise_multiplier: float | None
    epsilon: float
    queries: int


class Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A population's budget.

    Attributes:
        population: its name.
        tag: what partners see in its place.
        cap: what was declared.
        spent: queries, and every block that was ever started.
        reserved: blocks of open admissions that may still start.
        left: what may still be admitted.
        entries: studies in the order of their admission, then queries by what was asked.
        datasets: ids of the datasets that are charged here.
        ledger: its id.
        size: how many rows the ledger has.
        anchor: where the newest head is kept too; None for nowhere.
        rollback_detected: "not detectable", or against what an older copy would be noticed.
    """

    population: str
    tag: str
    cap: Cap
    spent: Cost
    reserved: Cost
    left: Cost
    entries: tuple[Entry, ...]
    datasets: tuple[str, ...]
    ledger: str
    size: int
    anchor: str | None
    rollback_detected: str

    @property
    def epsilon_spent(self) -> float:
        """The epsilon, at the cap's delta, that all that was spent implies; at small sums far too high."""
        return self.cap.epsilon_of(self.spent.rdp)

    @property
    def share_spent(self) -> float:
        """Spent RDP as a share of the cap's."""
        return self.spent.rdp / self.cap.rdp

    @property
    def worth(self) -> Worth:
        """What is left would buy this."""
        return worth(self.left.rdp, self.cap)


def worth(rdp: float, cap: Cap) -> Worth:
    """Return what `rdp` at the order of `cap` would buy."""
    if rdp <= 0:
        return Worth(None, 0.0, 0)
    noise, epsilon = gaussian_worth(rdp, cap.order, cap.delta)
    return Worth(noise, epsilon, int(rdp / laplace_rdp(_QUERY_EPSILON, cap.order)))


def population_tag(tag_key: str, population: str) -> str:
    """Return the name that partners see: HMAC-SHA-256 under a key of the ledger, 64 hexadecimal digits."""
    return hmac_sha256(bytes.fromhex(tag_key), b"population\x00", population.encode()).hex()


def status_of(book: Book, population: str, *, counted: bool = False) -> Status:
    """Return the status of a population.

    Args:
        book: the ledger's state.
        population: declared.
        counted: whether the ledger was compared with the counter that anchors it.

    Raises:
        PolicyRefused: it was not declared.
    """
    account = book.account(population)
    left_rdp, left_delta = account.left()
    order = account.cap.order
    against = [*(["its counter"] if counted else []), *([book.anchor] if book.anchor else [])]
    plans = (plan for _, plan in sorted(book.plans.items(), key=lambda item: int(item[0])))
    studies = (_study(plan, order) for plan in plans if population in plan.populations)
    queries = (_query(what, tally, order) for what, tally in sorted(account.queries.items()))
    return Status(
        population=population,
        tag=population_tag(book.tag_key, population),
        cap=account.cap,
        spent=_up(account.spent_rdp, account.spent_delta, order),
        reserved=_up(account.held_rdp, account.held_delta, order),
        left=Cost(
            max(0.0, shown_at_most(left_rdp, RDP_BITS)),
            max(0.0, shown_at_most(left_delta, DELTA_BITS)),
            order,
        ),
        entries=(*studies, *queries),
        datasets=tuple(sorted(name for name, found in book.datasets.items() if population in found)),
        ledger=book.ledger,
        size=book.size,
        anchor=book.anchor,
        rollback_detected=f"against {' and '.join(against)}" if against else NOT_DETECTABLE,
    )


def _up(rdp: int, delta: int, order: int) -> Cost:
    return Cost(shown_at_least(rdp, RDP_BITS), shown_at_least(delta, DELTA_BITS), order)


def _study(plan: Plan, order: int) -> Entry:
    started = len(plan.started)
    waiting = plan.blocks - started if plan.state == "open" else 0
    return Entry(
        kind="study",
        name=plan.name,
        study=plan.study,
        spent=_up(plan.rdp * started, plan.delta * started, order),
        held=_up(plan.rdp * waiting, plan.delta * waiting, order),
        count=started,
        blocks=plan.blocks,
        committed=len(plan.committed),
        state=plan.state,
    )


def _query(what: str, tally: Tally, order: int) -> Entry:
    return Entry(
        kind="query",
        name=what,
        study=None,
        spent=_up(tally.rdp, tally.delta, order),
        held=Cost(0.0, 0.0, order),
        count=tally.count,
        blocks=0,
        committed=0,
        state="spent",
    )
