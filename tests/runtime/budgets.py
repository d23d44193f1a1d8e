"""Budgets for tests of the protocol, where the ledger is not what is tested."""

from __future__ import annotations

from cloister.crypto import Identity, canonical_bytes, sign_envelope
from cloister.errors import PolicyRefused
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyTerms
from cloister.privacy.ledger import DEBIT_TYPE, Debit, Head


class Noting:
    """Admits everything, and notes what it was asked, in order."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._study = ""
        self._admitted: PrivacyTerms | None = None
        self.asked: list[object] = []

    def admit(self, plan: Plan, terms: PrivacyTerms) -> None:
        self._study, self._admitted = plan.digest.hex(), terms
        self.asked.append("admit")

    def resume(self, plan: Plan, terms: PrivacyTerms, attempts_used: int) -> int:
        if terms != self._admitted:
            raise PolicyRefused("admitted at another cost")
        self.asked.append(f"resume {attempts_used}")
        return attempts_used

    def enter(self, attempt: int) -> None:
        self.asked.append(attempt)

    def close(self) -> bytes | None:
        self.asked.append("close")
        head = Head("0" * 32, 1, "0" * 64)
        debit = Debit(1, self._study, ("0" * 64,), 1, 1, 1.0, 0.0, 2, head)
        return sign_envelope(DEBIT_TYPE, canonical_bytes(debit), [self._identity])
