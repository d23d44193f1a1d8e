"""What a site's budget takes up again, for every instant at which its process may have been killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.homes import Homes

from cloister.crypto import keyring
from cloister.errors import PolicyRefused
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyTerms
from cloister.privacy.ledger import open_debit
from cloister.runtime.budget import LedgerBudget
from cloister.runtime.party import site_of

BLOCK = 4


class Owner:
    """A home whose ledger a process opens, and another after it was killed."""

    def __init__(self, root: Path) -> None:
        self.homes = Homes.prepare(root, 3, budgets=True)
        self.plan: Plan = self.homes.add_study(0, private=True)
        with self.homes.ledger("site0") as ledger:
            site = site_of(self.plan, self.homes.public()["hub"], self.homes.party("site0", ledger))
            self.terms = PrivacyTerms.of(self.plan, self.plan.params(3), site.bounded)

    @contextmanager
    def process(self) -> Iterator[LedgerBudget]:
        with self.homes.ledger("site0") as ledger:
            yield LedgerBudget(ledger, ("people",), "site0")

    def began(self, attempts: int) -> None:
        """Let a process enter so many attempts, and die."""
        with self.process() as budget:
            budget.admit(self.plan, self.terms)
            for attempt in range(attempts):
                budget.enter(attempt)

    def started(self) -> int:
        with self.homes.ledger("site0") as ledger:
            ledger.verify()
            return sum(entry.count for entry in ledger.status("people").entries)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


@pytest.mark.parametrize("used", [1, 3, 4, 5, 8])
def test_the_block_that_runs_goes_on(owner: Owner, used: int) -> None:
    owner.began(used)
    with owner.process() as budget:
        budget.resume(owner.plan, owner.terms, used)
        budget.enter(used)
    assert owner.started() == used // BLOCK + 1


def test_a_block_that_was_started_and_not_counted_is_used_once(owner: Owner) -> None:
    owner.began(5)  # the fifth attempt started block 1, and the process died before it counted it
    with owner.process() as budget:
        budget.resume(owner.plan, owner.terms, 4)
        for attempt in range(4, 8):
            budget.enter(attempt)
    assert owner.started() == 2


@pytest.mark.parametrize(("entered", "counted"), [(6, 3), (9, 4), (9, 5), (3, 5)])
def test_a_ledger_that_does_not_fit_the_journal_is_refused(owner: Owner, entered: int, counted: int) -> None:
    owner.began(entered)
    with owner.process() as budget, pytest.raises(PolicyRefused, match="than this site's journal"):
        budget.resume(owner.plan, owner.terms, counted)


def test_one_that_was_closed_is_told_again_and_starts_nothing(owner: Owner) -> None:
    owner.began(5)
    with owner.process() as budget:
        budget.resume(owner.plan, owner.terms, 5)
        assert budget.close() is not None
    with owner.process() as budget:
        budget.resume(owner.plan, owner.terms, 5)
        with pytest.raises(PolicyRefused):
            budget.enter(2 * BLOCK)
        debit = budget.close()
    assert debit is not None
    trusted = keyring([owner.homes.public()["site0"]])
    assert open_debit(debit, trusted).started == owner.started() == 2
