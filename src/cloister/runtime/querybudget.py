"""A site's budget in a query over several sites: reserved before it agrees, debited before a byte leaves.

    admit(plan, events)   before the roster is countersigned: all attempts are reserved, or refused; events
                          are those of the larger view, the hub with colluders
    enter(attempt)        before the site's rows are read: this attempt is on the disk as spent
    close()               at the end: what never began is given back; returns the signed debit

A crash between `enter` and the first byte costs the attempt, never the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cloister.privacy.accounting import Event, renyi
from cloister.privacy.ledger import Ledger
from cloister.runtime.budget import Reservation
from cloister.runtime.queryplan import QueryPlan

__all__ = ["LedgerQueryBudget", "QueryBudget"]


class QueryBudget(Protocol):
    """Who is asked before a site answers."""

    def admit(self, plan: QueryPlan, events: Sequence[Event]) -> None:
        """Reserve every attempt of the plan, each costing `events`. Raises PolicyRefused."""

    def enter(self, attempt: int) -> None:
        """Debit an attempt; durable on return. Raises PolicyRefused."""

    def close(self) -> bytes | None:
        """Give back what did not begin; return the signed debit, None where nothing was admitted."""


class LedgerQueryBudget:
    """A budget kept in a ledger; an attempt is a block of its own.

    Args:
        ledger: the owner's.
        populations: whose rows the dataset holds, as the ledger bound them.
    """

    def __init__(self, ledger: Ledger, populations: tuple[str, ...]) -> None:
        self._reservation = Reservation(ledger, populations)

    def admit(self, plan: QueryPlan, events: Sequence[Event]) -> None:
        """Reserve every attempt; what an abandoned roster had reserved is given back first."""
        self._reservation.reserve(
            plan.digest.hex(), plan.title[:200], lambda order: renyi(events, order), plan.attempts
        )

    def enter(self, attempt: int) -> None:
        """Debit an attempt."""
        self._reservation.enter(attempt)

    def close(self) -> bytes | None:
        """Commit what was entered and give back the rest."""
        return self._reservation.close()
