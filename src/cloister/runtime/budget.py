"""A site's budget in one study: what it asks of its owner's ledger, and when.

    admit(plan, terms)   before it agrees to a roster: the whole plan is reserved, or refused
    enter(attempt)       before a row is read for an attempt: its block is on the disk as spent
    close()              at the end: blocks that never began are given back; returns the signed debit

The order is the claim: what leaves a site was debited before. A crash between `enter` and the first byte
costs the block, never the other way round. A study that was interrupted is not admitted again under the
same plan; a site that kept its journal goes on in what was admitted (`resume`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cloister.crypto import PublicIdentity, keyring
from cloister.errors import PolicyRefused, ProtocolError
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyTerms
from cloister.privacy.ledger import Admission, Cost, Ledger, LedgerInDoubt, open_debit
from cloister.vault import Manifest, Vault

__all__ = ["Budget", "LedgerBudget", "NoBudget", "Reservation", "check_debit", "populations_of"]


class Budget(Protocol):
    """Who is asked before a site spends privacy."""

    def admit(self, plan: Plan, terms: PrivacyTerms) -> None:
        """Reserve the whole plan. Raises PolicyRefused where it does not fit."""

    def resume(self, plan: Plan, terms: PrivacyTerms, attempts_used: int) -> int:
        """Go on after a break with what was admitted, `attempts_used` attempts of which are spent.

        Returns how many are for whoever cannot rely on that number: all that what was debited pays for.
        Raises PolicyRefused where nothing was admitted.
        """

    def enter(self, attempt: int) -> None:
        """Debit the block that the study's `attempt`-th attempt (0-based) lies in; durable on return."""

    def close(self) -> bytes | None:
        """Give back what did not begin; return the signed debit, None where nothing was admitted."""


class NoBudget:
    """A site without a ledger: it takes part in no study that claims privacy."""

    def admit(self, plan: Plan, terms: PrivacyTerms) -> None:
        """Refuse."""
        raise PolicyRefused(
            "the plan claims privacy, and this site has no ledger to debit",
            where=f"study {plan.study.name}",
            fix="Declare a budget for its rows with `cloister budget`",
        )

    def resume(self, plan: Plan, terms: PrivacyTerms, attempts_used: int) -> int:
        """Refuse: nothing was admitted."""
        raise PolicyRefused("nothing was admitted", fix="Admit the plan first")

    def enter(self, attempt: int) -> None:
        """Refuse: nothing was admitted."""
        raise PolicyRefused("nothing was admitted", fix="Admit the plan first")

    def close(self) -> bytes | None:
        """Return None."""
        return None


class Reservation:
    """Blocks of one admission, started one after another; studies and queries keep their budgets with it.

    Args:
        ledger: the owner's.
        populations: whose rows the dataset holds, as the ledger bound them.
    """

    def __init__(self, ledger: Ledger, populations: tuple[str, ...]) -> None:
        self._ledger, self._populations = ledger, populations
        self._admission: Admission | None = None
        self._block = -1

    def reserve(self, study: str, name: str, cost_at: Callable[[int], Cost], blocks: int) -> None:
        """Reserve all blocks; what an abandoned roster had reserved is given back first.

        Args:
            study: digest of the plan, hex.
            name: for people.
            cost_at: what a block costs, by the order of the ledger's filter.
            blocks: how many.

        Raises:
            PolicyRefused: it does not fit.
        """
        self.close()
        self._block = -1
        cost = cost_at(self._ledger.order(self._populations))
        self._admission = self._ledger.admit(self._populations, study, name, cost, blocks)

    def resume(self, study: str, block: int, cost_at: Callable[[int], Cost], *, unused: bool) -> int:
        """Take up an admission whose blocks up to `block` were started, -1 where none was; return the last
        that was.

        Args:
            study: digest of the plan, hex.
            block: the one that the last attempt lies in.
            cost_at: what a block costs, by the order of the ledger's filter.
            unused: that attempt is the block's last. Then the next block may have been started as well, by a
                process that was killed before it used it: it is spent, and used now.

        Raises:
            PolicyRefused: there is none, it was interrupted or is of another cost, or later blocks were
                started too.
        """
        admission = self._ledger.resume(study)
        if admission is None or admission.state == "interrupted":
            raise PolicyRefused(
                "the ledger holds no open admission of this study", fix="Start it anew under another name"
            )
        order = admission.cost.order
        if order is None or cost_at(order) != admission.cost:
            raise PolicyRefused(
                "the ledger admitted this study at another cost", fix="Start it anew under another name"
            )
        last = max(admission.started, default=-1)
        if not block <= last <= block + unused:
            other = "more" if last > block else "less"
            raise PolicyRefused(
                f"the ledger has spent {other} than this site's journal knows of",
                fix="Start the study anew under another name; what was spent stays spent",
            )
        self._admission, self._block = admission, last
        return last

    def enter(self, block: int) -> None:
        """Debit a block unless it runs already, and commit the one before it; durable on return."""
        if self._admission is None:
            raise PolicyRefused("nothing was admitted", fix="Admit the plan first")
        if block == self._block:
            return
        if self._block >= 0:
            self._ledger.commit(self._admission, self._block)
        self._ledger.start(self._admission, block)
        self._block = block

    def close(self) -> bytes | None:
        """Commit the running block, give back the others, and return the ledger's signed statement; None
        where nothing was admitted."""
        admission, self._admission = self._admission, None
        if admission is None:
            return None
        if admission.state == "open":  # it was closed by a process that was killed before it could say so
            if self._block >= 0:
                self._ledger.commit(admission, self._block)
            self._ledger.close(admission)
        return self._ledger.debit(admission)


class LedgerBudget:
    """A study's budget kept in a ledger.

    Args:
        ledger: the owner's.
        populations: whose rows the study's dataset holds, as the ledger bound them.
        site: the owner's name in the study, for messages.
    """

    def __init__(self, ledger: Ledger, populations: tuple[str, ...], site: str) -> None:
        self._reservation, self._site = Reservation(ledger, populations), site
        self._block_attempts = 1

    def admit(self, plan: Plan, terms: PrivacyTerms) -> None:
        """Reserve the whole plan at the larger of its two views. Raises PolicyRefused."""
        self._block_attempts = terms.block_attempts
        try:
            self._reservation.reserve(plan.digest.hex(), plan.study.name, terms.block_cost, terms.blocks)
        except LedgerInDoubt:
            raise
        except PolicyRefused as error:  # the ledger does not know its owner's name in the study
            raise PolicyRefused(error.what, where=self._site, fix=error.fix) from error

    def resume(self, plan: Plan, terms: PrivacyTerms, attempts_used: int) -> int:
        """Take up the plan's admission, whose running block goes on; return how many attempts were paid for.
        Raises PolicyRefused."""
        self._block_attempts = terms.block_attempts
        block, unused = (attempts_used - 1) // terms.block_attempts, attempts_used % terms.block_attempts == 0
        last = self._reservation.resume(plan.digest.hex(), block, terms.block_cost, unused=unused)
        return (last + 1) * terms.block_attempts

    def enter(self, attempt: int) -> None:
        """Debit the attempt's block, and commit the one before it."""
        self._reservation.enter(attempt // self._block_attempts)

    def close(self) -> bytes | None:
        """Commit the running block, give back the others, and return the ledger's signed statement."""
        return self._reservation.close()


def populations_of(ledger: Ledger, vault: Vault, manifest: Manifest) -> tuple[str, ...]:
    """Return whom a dataset is charged to; its rows are read only where the ledger does not know it yet.

    Raises:
        PolicyRefused: no budget covers its rows.
    """
    return ledger.bound(manifest.dataset_id) or ledger.bind(
        None, manifest.dataset_id, vault.fingerprints(manifest.name)
    )


def check_debit(envelope: bytes, owner: PublicIdentity, plan: Plan) -> None:
    """Raise IntegrityError or ProtocolError unless `envelope` is the owner's debit for this plan."""
    if open_debit(envelope, keyring([owner])).study != plan.digest.hex():
        raise ProtocolError("sent the debit of another study", peer=owner.name)
